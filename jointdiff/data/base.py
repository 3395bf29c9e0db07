"""What every data set is made of: images, labels, and what is known about them.

Shapes: N images, H x W pixels, C channels (1 grey, 3 RGB), L labels of a multi-label task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

MULTI_CLASS = "multi-class"
MULTI_LABEL = "multi-label"
UNKNOWN = -1  # the label of an image whose label is hidden or was never given


@dataclass(frozen=True)
class DatasetInfo:
    """What a data set says of itself; cheap to come by, and shown on every page and report."""

    name: str  # as the user wrote it
    task: str  # MULTI_CLASS | MULTI_LABEL
    class_names: tuple[str, ...]
    channels: int  # 1 grey, 3 RGB
    image_size: int  # pixels per side
    real: bool  # False for synthetic scans
    description: str
    licence: str

    @property
    def num_outputs(self) -> int:
        """Number of classes, or of labels of a multi-label task."""
        return len(self.class_names)


@dataclass(frozen=True)
class ImageSet:
    """Images with labels. Phantoms also know the truth behind the label."""

    images: np.ndarray  # uint8 [N, H, W, C]
    labels: np.ndarray  # int64 [N] (multi-class) or [N, L] (multi-label); UNKNOWN where not known
    sources: np.ndarray | None = None  # int64 [N], e.g. the scanner or department an image came from
    patients: np.ndarray | None = None  # int64 [N], whom an image is of: the unit of privacy where it is known
    masks: np.ndarray | None = None  # bool [N, H, W], the lesion's pixels
    twins: np.ndarray | None = None  # uint8 [N, H, W, C], the same scan without its lesion

    def __post_init__(self) -> None:
        """Hold the shapes and types that everything downstream relies on."""
        assert self.images.dtype == np.uint8 and self.images.ndim == 4, (self.images.dtype, self.images.shape)
        assert self.labels.dtype == np.int64 and self.labels.ndim in (1, 2), (self.labels.dtype, self.labels.shape)
        for f in fields(self):
            values = getattr(self, f.name)
            assert values is None or len(values) == len(self.images), (f.name, len(values), len(self.images))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def select(self, indices: np.ndarray) -> ImageSet:
        """Return the images at `indices` (integers [M], any order), in that order."""
        present = [f.name for f in fields(self) if getattr(self, f.name) is not None]
        return ImageSet(**{name: getattr(self, name)[indices] for name in present})

    @classmethod
    def together(cls, parts: Sequence[ImageSet]) -> ImageSet:
        """Return the images of all parts, in their order, with what is known in every part."""
        present = [f.name for f in fields(cls) if all(getattr(part, f.name) is not None for part in parts)]
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in present})

    @property
    def labelled(self) -> np.ndarray:
        """Which images have a label, bool [N]. In a multi-label task all L labels must be known."""
        known = self.labels != UNKNOWN
        return known if known.ndim == 1 else known.all(axis=1)

    @property
    def num_labelled(self) -> int:
        """Number of images that have a label."""
        return int(self.labelled.sum())


@dataclass(frozen=True)
class Dataset:
    """A data set in its official splits. `val` may be empty."""

    info: DatasetInfo
    train: ImageSet
    val: ImageSet
    test: ImageSet


def class_counts(labels: np.ndarray, num_outputs: int) -> list[int]:
    """Count the images of each class, or with each finding of a multi-label task; unknown labels count nowhere.

    >>> class_counts(np.array([0, 1, 1, -1]), 3)
    [1, 2, 0]
    >>> class_counts(np.array([[1, 0], [1, 1], [-1, -1]]), 2)
    [2, 1]
    """
    if labels.ndim == 2:
        return [int(count) for count in (labels == 1).sum(axis=0)]
    return [int(count) for count in np.bincount(labels[labels != UNKNOWN], minlength=num_outputs)]
