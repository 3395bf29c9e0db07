"""New scans that a user brings: image files, folders of them, or an npz with an array `images`."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from jointdiff.config import ModelConfig
from jointdiff.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


def read_scans(paths: Sequence[str], model: ModelConfig) -> tuple[list[str], np.ndarray]:
    """Return names and pixels of scans, resized to what the model sees.

    Args:
        paths: Image files, folders (their image files, sorted by name), or npz files with `images` [N,H,W] or
            [N,H,W,C] of uint8.
        model: Gives the size and the number of channels. Other aspect ratios are squeezed into the square.

    Returns:
        Names (file name, or `<file>[i]` in an npz), and uint8 [N,H,W,C].

    Raises:
        DataError: Nothing there, not an image, or not uint8.
    """
    names: list[str] = []
    scans: list[np.ndarray] = []
    for text in paths:
        path = Path(text)
        if path.suffix == ".npz":
            arrays = _read_npz(path)
            names += [f"{path.name}[{i}]" for i in range(len(arrays))]
            scans += [_fit(Image.fromarray(a if a.shape[2:] != (1,) else a[..., 0]), model) for a in arrays]
            continue
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix.lower() in ENDINGS)
            if not files:
                raise DataError(f"{path} holds no image file ({', '.join(ENDINGS)}).")
        else:
            files = [path]
        for file in files:
            names.append(file.name)
            scans.append(_read_image(file, model))
    if not scans:
        raise DataError("No scans were given: name image files, folders, or npz files with an array `images`.")
    return names, np.stack(scans)


def _read_image(path: Path, model: ModelConfig) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return _fit(image, model)
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}): give PNG, JPEG, TIFF or BMP.") from None


def _read_npz(path: Path) -> np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise DataError(f"{path} is a single array (.npy). Save an npz: np.savez(path, images=...).")
        with loaded as file:
            if "images" not in file:
                raise DataError(f"{path} has no array `images`; it has: {', '.join(file.files)}.")
            images = file["images"]
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read as an npz file: {error}") from None
    fits = images.ndim in (3, 4) and (images.ndim == 3 or images.shape[3] in (1, 3)) and 0 not in images.shape[1:]
    if images.dtype != np.uint8 or not fits:
        raise DataError(
            f"`images` in {path} must be uint8 [N,H,W] or [N,H,W,1 or 3], not {images.dtype} {list(images.shape)}."
        )
    return images


def _fit(image: Image.Image, model: ModelConfig) -> np.ndarray:
    if image.mode.startswith(("I", "F")):  # 16 bits and more, of either byte order: scaled by their own range
        pixels = np.asarray(image, dtype=np.float64)
        low, high = pixels.min(), pixels.max()
        image = Image.fromarray(np.rint((pixels - low) / max(high - low, 1e-12) * 255).astype(np.uint8))
    image = image.convert("L" if model.channels == 1 else "RGB")
    if image.size != (model.image_size, model.image_size):
        image = image.resize((model.image_size, model.image_size), Image.Resampling.BILINEAR, reducing_gap=None)
    return np.asarray(image, dtype=np.uint8).reshape(model.image_size, model.image_size, model.channels)
