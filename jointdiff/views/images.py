"""Pictures out of arrays: PNG bytes, grids, difference maps. Images are uint8 [H,W,C] with C = 1 (grey) or 3 (RGB)."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jointdiff.storage import write_atomic
from jointdiff.views.markup import Html, element

# Purple - white - green (ColorBrewer PRGn, told apart by the colour-blind): signed changes, white where the same.
_LESS, _SAME, _MORE = (np.array(rgb, np.float32) for rgb in ((118, 42, 131), (247, 247, 247), (27, 120, 55)))


def png_bytes(image: np.ndarray) -> bytes:
    """Encode one image as PNG, without any metadata.

    Args:
        image: uint8 [H,W], [H,W,1] or [H,W,3].

    Raises:
        ValueError: Another type or shape.
    """
    if image.dtype != np.uint8:
        raise ValueError(f"A PNG is made of uint8 in 0..255, not of {image.dtype}: scale and round the image first.")
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.ndim != 2 and (image.ndim != 3 or image.shape[2] != 3):
        raise ValueError(f"An image is [H,W], [H,W,1] or [H,W,3], not {list(image.shape)}.")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def write_png(path: Path, image: np.ndarray) -> Path:
    """Write one image as PNG, atomically."""
    return write_atomic(path, png_bytes(image))


def enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """Repeat every pixel `factor` times per side: small scans stay crisp in viewers that would blur them."""
    return np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)


def grid(images: Sequence[np.ndarray] | np.ndarray, *, columns: int, gap: int = 2, background: int = 255) -> np.ndarray:
    """Lay images out row by row.

    Args:
        images: uint8 [N,H,W,C], N >= 1.
        gap: Pixels between neighbours; 0 = none.
        background: Grey value of the gaps and of the cells left over, 0 to 255.

    Returns:
        uint8 [rows * (H + gap) - gap, columns * (W + gap) - gap, C].
    """
    stack = np.stack([np.asarray(image) for image in images])
    count, height, width, channels = stack.shape
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), background, dtype=np.uint8)
    for index, image in enumerate(stack):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def difference_map(before: np.ndarray, after: np.ndarray, *, full_scale: float = 80.0) -> np.ndarray:
    """Paint what an edit changed: green where it is brighter afterwards, purple where darker, white where the same.

    The scale is fixed, so that maps can be compared with one another: an edit that changed little looks pale.

    Args:
        before, after: uint8 [H,W,C]; of RGB the mean change over channels is painted.
        full_scale: Change in grey levels that gets the full colour.

    Returns:
        uint8 [H,W,3].
    """
    change = (after.astype(np.float32) - before.astype(np.float32)).mean(axis=2)[..., None]
    strength = np.clip(np.abs(change) / full_scale, 0.0, 1.0)
    colour = np.where(change > 0, _MORE, _LESS)
    painted: np.ndarray = np.round(_SAME + strength * (colour - _SAME)).astype(np.uint8)
    return painted


def data_uri(png: bytes) -> str:
    """Return PNG bytes as a data: address, so that a page carries its own pictures."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def inline_image(png: bytes, alt: str, *, max_width: int = 900) -> Html:
    """Return an <img> that carries its PNG, drawn at up to three times its size.

    Args:
        alt: Read out in place of the picture.
        max_width: Pixels on the page; a picture that is wider from the start is shrunk by the page.
    """
    with Image.open(io.BytesIO(png)) as picture:
        width, height = picture.size
    factor = max(1, min(3, max_width // width))
    return element("img", class_="pixels", src=data_uri(png), alt=alt, width=factor * width, height=factor * height)
