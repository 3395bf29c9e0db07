"""The scanner of each hospital: the site shift of partition=scanner. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from jointdiff.data.base import ImageSet

_CHUNK = 512  # images treated at once
_ABROAD = 1_000_000  # number of the first scanner that no hospital has


@dataclass(frozen=True)
class Scanner:
    """How one hospital's scanner renders what another would show as it is."""

    gain: float = 1.0  # factor on the brightness
    gamma: float = 1.0  # exponent of the brightness in [0, 1]
    blur: float = 0.0  # standard deviation of a Gaussian, in pixels of a 28 pixel image; 0 disables
    noise: float = 0.0  # standard deviation, of the full range; 0 disables


def draw_scanner(hospital_index: int, *, seed: int) -> Scanner:
    """Draw the scanner of a hospital (0-based)."""
    rng = np.random.default_rng([seed, hospital_index, 7])
    return Scanner(
        gain=float(rng.uniform(0.75, 1.15)),
        gamma=float(rng.uniform(0.7, 1.4)),
        blur=float(rng.uniform(0.0, 0.6)),
        noise=float(rng.uniform(0.0, 0.04)),
    )


def render(images: np.ndarray, scanner: Scanner, *, seed: int | Sequence[int]) -> np.ndarray:
    """Return `images` (uint8 [N, H, W, C]) as the scanner shows them; `seed` draws the noise, image by image."""
    rng = np.random.default_rng(seed)
    size = images.shape[1]
    kernel = _blur_matrix(size, scanner.blur * size / 28)
    result = np.empty_like(images)
    for start in range(0, len(images), _CHUNK):
        part = images[start : start + _CHUNK].astype(np.float32) / 255
        part = np.einsum("ih,nhwc,jw->nijc", kernel, part, kernel, optimize=True)
        part = np.clip(scanner.gain * part, 0, 1) ** scanner.gamma
        part += scanner.noise * rng.standard_normal(part.shape, dtype=np.float32)
        result[start : start + _CHUNK] = np.rint(255 * np.clip(part, 0, 1))
    return result


def render_set(data: ImageSet, scanner: Scanner, *, seed: int | Sequence[int]) -> ImageSet:
    """Return the set as the scanner shows it. A twin still differs in its mask alone, which the blur widens."""
    images = render(data.images, scanner, seed=seed)
    if data.twins is None or data.masks is None:
        return ImageSet(images=images, labels=data.labels, sources=data.sources, masks=data.masks, twins=data.twins)
    twins = render(data.twins, scanner, seed=seed)
    masks = data.masks | (np.abs(images.astype(np.int16) - twins).max(axis=-1) > 2)
    twins = np.where(masks[..., None], twins, images)
    return ImageSet(images=images, labels=data.labels, sources=data.sources, masks=masks, twins=twins)


def seen_abroad(data: ImageSet, num_scanners: int, *, seed: tuple[int, int]) -> ImageSet:
    """Return every image as each of some scanners shows it that no hospital has: what a model meets at the next one.

    Args:
        num_scanners: K >= 1.
        seed: Of the split, which draws the scanners, and the hospital's number, for the noise.

    Returns:
        K N images, scanner by scanner.
    """
    split_seed, hospital_index = seed
    shown = [
        render_set(data, draw_scanner(_ABROAD + k, seed=split_seed), seed=(split_seed, hospital_index, _ABROAD + k))
        for k in range(num_scanners)
    ]
    parts: dict[str, list[Any]] = {f.name: [getattr(part, f.name) for part in shown] for f in fields(data)}
    joined: dict[str, Any] = {name: None if some[0] is None else np.concatenate(some) for name, some in parts.items()}
    return ImageSet(**joined)


def _blur_matrix(size: int, sd: float) -> np.ndarray:
    """Return the Gaussian blur along one axis, float32 [size, size]; rows sum to 1. An `sd` of 0 changes nothing."""
    if sd < 1e-3:
        return np.eye(size, dtype=np.float32)
    distance = np.arange(size)[:, None] - np.arange(size)[None, :]
    weights = np.exp(-0.5 * (distance / sd) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
