"""Synthetic chest scans whose truth is known: the default data, and the only data a counterfactual can be graded on.

Every scan is a small picture of a chest, drawn from a seed (anatomy.py). An ill scan holds a lesion inside a lung; its
mask is kept, and so is the healthy twin: the same scan without the lesion, equal to it outside the mask.
"""

from __future__ import annotations

import numpy as np

from jointdiff.data import anatomy
from jointdiff.data.base import MULTI_CLASS, MULTI_LABEL, Dataset, DatasetInfo, ImageSet
from jointdiff.errors import ConfigError, nearest

SPLIT_SIZES = {"train": 3000, "val": 500, "test": 600}
ILL_FRACTION = 0.45
VARIANTS = ("", "rgb", "3-classes", "multi-label")
NOISE = 0.02  # standard deviation of the sensor's noise, of the full range
_CHUNK_PIXELS = 2**17  # painted at once: bounds the memory, whatever the size of the images


def phantom_info(variant: str = "", *, image_size: int = 28) -> DatasetInfo:
    """Describe the phantoms `phantom[:variant]`.

    Raises:
        ConfigError: There is no such variant.
    """
    if variant not in VARIANTS:
        raise ConfigError(f"Unknown variant 'phantom:{variant}': {nearest(variant, VARIANTS[1:])}")
    names = {"3-classes": ("healthy", *anatomy.LESION_KINDS), "multi-label": anatomy.LESION_KINDS}
    return DatasetInfo(
        name=f"phantom:{variant}" if variant else "phantom",
        task=MULTI_LABEL if variant == "multi-label" else MULTI_CLASS,
        class_names=names.get(variant, ("healthy", "lesion")),
        channels=3 if variant == "rgb" else 1,
        image_size=image_size,
        real=False,
        description="Synthetic chest scans, drawn from a seed; no patient is behind them.",
        licence="none needed",
    )


def load_phantom(
    variant: str = "", *, image_size: int = 28, seed: int = 0, sizes: dict[str, int] | None = None
) -> Dataset:
    """Draw the phantoms `phantom[:variant]`.

    Args:
        variant: One of VARIANTS.
        image_size: Pixels per side; the same seed shows the same patients at any size.
        seed: Another seed, other patients.
        sizes: Scans per split, default SPLIT_SIZES.

    Raises:
        ConfigError: There is no such variant.
    """
    info = phantom_info(variant, image_size=image_size)
    sizes = sizes or SPLIT_SIZES
    splits = {
        name: draw_scans(info, sizes[name], np.random.default_rng([seed, number]))
        for number, name in enumerate(("train", "val", "test"))
    }
    return Dataset(info=info, **splits)


def draw_scans(info: DatasetInfo, num: int, rng: np.random.Generator) -> ImageSet:
    """Draw `num` scans with labels, masks and healthy twins."""
    labels = _draw_labels(info, num, rng)
    patients = anatomy.draw_patients(num, rng)
    first = anatomy.draw_lesions(patients, rng)
    lesions = (first, anatomy.draw_lesions(patients, rng, other=first))
    size = info.image_size
    images = np.empty((num, size, size, info.channels), dtype=np.uint8)
    twins = np.empty_like(images)
    masks = np.zeros((num, size, size), dtype=bool)
    step = max(1, _CHUNK_PIXELS // size**2)
    for start in range(0, num, step):
        rows = slice(start, min(start + step, num))
        some = patients.select(rows)
        healthy = anatomy.paint_chests(some, size)
        ill = healthy
        for kind, lesion, present in zip(anatomy.LESION_KINDS, lesions, _findings(info, labels[rows]), strict=True):
            if present.any():
                shown = present[:, None, None]
                with_lesion, discs = anatomy.paint_lesions(some, lesion.select(rows), kind, ill)
                ill = np.where(shown, with_lesion, ill)
                masks[rows] |= shown & discs
        noise = NOISE * rng.standard_normal((*healthy.shape, info.channels), dtype=np.float32)
        images[rows] = _digitise(some, ill, noise)
        twins[rows] = _digitise(some, healthy, noise)
    return ImageSet(images=images, labels=labels, masks=masks, twins=twins)


def _draw_labels(info: DatasetInfo, num: int, rng: np.random.Generator) -> np.ndarray:
    """Return labels in random order, with exactly ILL_FRACTION ill (in a multi-label set: with each finding)."""
    num_ill = round(ILL_FRACTION * num)
    if info.task == MULTI_LABEL:
        columns = [rng.permutation(np.arange(num) < num_ill) for _ in info.class_names]
        return np.stack(columns, axis=1).astype(np.int64)
    kinds = 1 + np.arange(num) % (info.num_outputs - 1)
    return rng.permutation(np.where(np.arange(num) < num_ill, kinds, 0)).astype(np.int64)


def _findings(info: DatasetInfo, labels: np.ndarray) -> list[np.ndarray]:
    """Return per lesion kind which scans show it, bool [N] each."""
    if info.task == MULTI_LABEL:
        return [labels[:, k] == 1 for k in range(len(anatomy.LESION_KINDS))]
    return [labels == 1 + k for k in range(len(anatomy.LESION_KINDS))]


def _digitise(patients: anatomy.Patients, brightness: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return the scan as uint8 [N, S, S, C]."""
    scan = anatomy.expose(patients, brightness)[..., None]
    if noise.shape[-1] == 3:
        scan = scan * patients.tints[:, None, None, :]
    return np.rint(255 * np.clip(scan + noise, 0, 1)).astype(np.uint8)
