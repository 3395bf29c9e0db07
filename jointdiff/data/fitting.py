"""Bring a scan of any size to what the model sees. Pure: numpy arrays in, uint8 out.

H x W pixels, C channels (1 grey, 3 RGB), S pixels per side of the model's square.

Rules. *Channels:* RGB becomes grey by ITU-R 601 luma (0.299 R + 0.587 G + 0.114 B); grey becomes RGB by repetition.
*Aspect:* `pad` keeps the whole scan and fills the square with black, `crop` keeps the central square, `stretch`
squeezes the scan into the square. *Size:* averaged over areas where it shrinks, bilinear where it grows, as it is where
it fits.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

ASPECTS = ("pad", "crop", "stretch")
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def fit(pixels: np.ndarray, *, image_size: int, channels: int, aspect: str = "pad") -> np.ndarray:
    """Return a scan as the model sees it.

    Args:
        pixels: uint8, or floats in 0..255, [H, W, 1 or 3].
        image_size: S.
        channels: 1 or 3.
        aspect: One of ASPECTS.

    Returns:
        uint8 [S, S, channels].

    >>> fit(np.array([[[0], [100]], [[100], [200]]], np.uint8), image_size=1, channels=1).tolist()
    [[[100]]]
    >>> fit(np.full((1, 2, 1), 9, np.uint8), image_size=2, channels=1)[:, :, 0].tolist()
    [[9, 9], [0, 0]]
    """
    pixels = to_channels(pixels, channels)
    if aspect == "crop":
        pixels = _central_square(pixels)
    height, width = pixels.shape[:2]
    scale = image_size / max(height, width)
    wanted = (image_size, image_size)
    if aspect == "pad":
        wanted = (max(1, round(height * scale)), max(1, round(width * scale)))
    inner = to_uint8(resize(pixels, *wanted))
    if wanted == (image_size, image_size):
        return inner
    square = np.zeros((image_size, image_size, channels), dtype=np.uint8)
    top, left = (image_size - wanted[0]) // 2, (image_size - wanted[1]) // 2
    square[top : top + wanted[0], left : left + wanted[1]] = inner
    return square


def to_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Return [H, W, 1 or 3] with the wanted number of channels; RGB to grey becomes float32."""
    if pixels.shape[2] == channels:
        return pixels
    if channels == 1:
        return (pixels.astype(np.float32) @ _LUMA)[..., None]
    return np.repeat(pixels, 3, axis=2)


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Round values in 0..255 and cut what lies outside."""
    if pixels.dtype == np.uint8:
        return pixels
    return np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return [height, width, C]: area averages along an axis that shrinks, linear in between along one that grows."""
    pixels = _resize_axis(pixels, (height, pixels.shape[1]), shrinks=height < pixels.shape[0])
    return _resize_axis(pixels, (height, width), shrinks=width < pixels.shape[1])


def _resize_axis(pixels: np.ndarray, size: tuple[int, int], *, shrinks: bool) -> np.ndarray:
    if pixels.shape[:2] == size:
        return pixels
    how = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    planes = [
        np.asarray(Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32)).resize(size[::-1], how))
        for plane in np.moveaxis(pixels, 2, 0)
    ]
    return np.stack(planes, axis=2)


def _central_square(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]
