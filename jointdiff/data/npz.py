"""The user's own arrays in one .npz file: `npz:PATH`.

    train_images  uint8 [N, H, W] (grey) or [N, H, W, 1 or 3]; H = W
    train_labels  integers [N] or [N, 1] (classes from 0) or [N, L] (0/1 per finding); -1 = not known
    train_source  optional, integers [N]: the scanner or department an image came from, for partition=by-source
    train_patient optional, integers [N]: whom an image is of; read at a site, not in a simulation
    val_*, test_* optional, the same; without a test split, a fifth of the labelled images becomes it
    class_names   optional, text [K or L]

Nothing is ever unpickled: a file can come from anywhere.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jointdiff.data.base import MULTI_CLASS, MULTI_LABEL, UNKNOWN, Dataset, DatasetInfo, ImageSet
from jointdiff.errors import ConfigError, DataError

TEST_FRACTION = 0.2
T = TypeVar("T")


def npz_info(path: str, *, data_root: str = "", image_size: int = 28) -> DatasetInfo:
    """Describe the user's arrays.

    Args:
        path: Of the .npz file; a relative one starts at `data_root`, or at the current folder.

    Raises:
        ConfigError: No path, or `image_size` is not that of the images.
        DataError: The file is missing, damaged, or holds something else.
    """
    return _read(path, data_root, lambda arrays: _describe(arrays, f"npz:{path}", image_size))


def load_npz(path: str, *, data_root: str = "", image_size: int = 28, seed: int = 0) -> Dataset:
    """Load the user's arrays; `seed` chooses the test split where there is none.

    Raises:
        ConfigError: No path, or `image_size` is not that of the images.
        DataError: The file is missing, damaged, or holds something else.
    """

    def build(arrays: Any) -> Dataset:
        info = _describe(arrays, f"npz:{path}", image_size)
        train = _image_set(arrays, "train", info)
        val = _image_set(arrays, "val", info) if "val_images" in arrays else train.select(np.arange(0))
        if "test_images" in arrays:
            return Dataset(info=info, train=train, val=val, test=_image_set(arrays, "test", info))
        rest, test = _split_off(train, np.random.default_rng(seed))
        return Dataset(info=info, train=rest, val=val, test=test)

    return _read(path, data_root, build)


def load_whole(path: str) -> Dataset:
    """Load a site's own arrays as they are: images of any size, patients, and no test split where there is none.

    Without `class_names` the classes are called by their numbers.

    Raises:
        ConfigError: No path.
        DataError: The file is missing, damaged, or holds something else.
    """

    def build(arrays: Any) -> Dataset:
        info = _describe(arrays, f"npz:{path}", None)
        train = _image_set(arrays, "train", info)
        test = _image_set(arrays, "test", info) if "test_images" in arrays else train.select(np.arange(0))
        known = {s: _numbers(arrays, f"{s}_patient", len(x), info.name) for s, x in (("train", train), ("test", test))}
        if len(test) and (known["train"] is None) != (known["test"] is None):
            raise DataError(f"{info.name} names patients in one of train_patient and test_patient: give both or none.")
        train = replace(train, patients=known["train"])
        test = replace(test, patients=known["test"]) if len(test) else train.select(np.arange(0))
        if "class_names" not in arrays:
            info = replace(info, class_names=tuple(str(k) for k in range(info.num_outputs)))
        return Dataset(info=info, train=train, val=train.select(np.arange(0)), test=test)

    return _read(path, "", build)


def _read(path: str, data_root: str, use: Callable[[Any], T]) -> T:
    if not path:
        raise ConfigError("dataset 'npz:' needs a path: dataset=npz:/absolute/path/to/arrays.npz")
    full = (Path(data_root) / path).expanduser()
    if not full.is_file():
        raise DataError(f"The file of dataset 'npz:{path}' does not exist: {full.absolute()}. Give its absolute path.")
    try:
        arrays = np.load(full, allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            raise DataError(f"npz:{path} is a single array (.npy). Save a .npz: np.savez(path, train_images=...).")
        with arrays:
            return use(arrays)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise DataError(
            f"npz:{path} cannot be read ({error}). The file is truncated or no .npz, or an array holds Python objects, "
            "which are never unpickled. Write it again with np.savez_compressed and plain arrays."
        ) from None


def _describe(arrays: Any, name: str, image_size: int | None) -> DatasetInfo:
    for key in ("train_images", "train_labels"):
        if key not in arrays:
            raise DataError(f"{name} holds no array '{key}'; it holds: {', '.join(arrays) or 'nothing'}.")
    images = _images(arrays, "train", name)
    if image_size is not None and images.shape[1] != image_size:
        raise ConfigError(
            f"image-size is {image_size}, but the images of {name} have {images.shape[1]} pixels per side: "
            f"set image-size={images.shape[1]}."
        )
    labels = _labels(arrays, "train", name, len(images))
    multi_label = labels.ndim == 2
    if multi_label and labels.max(initial=0) > 1:
        raise DataError(
            f"train_labels of {name} has shape {labels.shape}: with several columns, all values must be 0, 1 or -1."
        )
    num_outputs = labels.shape[1] if multi_label else int(labels.max(initial=0)) + 1
    class_names = tuple(str(c) for c in arrays["class_names"]) if "class_names" in arrays else ()
    if class_names and len(class_names) < num_outputs:
        raise DataError(f"class_names of {name} has {len(class_names)} entries, but the labels need {num_outputs}.")
    class_names = class_names or tuple(f"{'finding' if multi_label else 'class'} {k}" for k in range(num_outputs))
    if not multi_label and len(class_names) < 2:
        raise DataError(f"train_labels of {name} holds one class only; two or more are needed (or class_names).")
    return DatasetInfo(
        name=name,
        task=MULTI_LABEL if multi_label else MULTI_CLASS,
        class_names=class_names,
        channels=images.shape[3],
        image_size=images.shape[1],
        real=True,
        description="The user's own images.",
        licence="the user's own",
    )


def _images(arrays: Any, split: str, name: str) -> np.ndarray:
    key = f"{split}_images"
    images = arrays[key]
    if images.dtype != np.uint8:
        raise DataError(f"{key} of {name} must be uint8 (0 to 255), not {images.dtype}: scale and convert the images.")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] not in (1, 3) or not len(images):
        raise DataError(f"{key} of {name} must be [N, H, W] or [N, H, W, 1 or 3] with H = W, not {arrays[key].shape}.")
    return images


def _labels(arrays: Any, split: str, name: str, num: int) -> np.ndarray:
    key = f"{split}_labels"
    if key not in arrays:
        raise DataError(f"{name} holds no array '{key}'; it holds: {', '.join(arrays)}.")
    labels = arrays[key]
    if labels.dtype.kind not in "iub":
        raise DataError(f"{key} of {name} must be integers, not {labels.dtype}: number the classes from 0.")
    if labels.ndim not in (1, 2) or len(labels) != num or 0 in labels.shape:
        raise DataError(f"{key} of {name} must be [N], [N, 1] or [N, L] with N = {num} images, not {labels.shape}.")
    labels = labels.astype(np.int64)
    if labels.min() < UNKNOWN:
        raise DataError(f"{key} of {name} holds {labels.min()}: classes are numbered from 0, and -1 means not known.")
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _image_set(arrays: Any, split: str, info: DatasetInfo) -> ImageSet:
    images = _images(arrays, split, info.name)
    labels = _labels(arrays, split, info.name, len(images))
    wanted = (info.image_size, info.image_size, info.channels)
    if images.shape[1:] != wanted:
        raise DataError(f"{split}_images of {info.name} are {images.shape[1:]}, but those of train are {wanted}.")
    width, top = (info.num_outputs, 1) if info.task == MULTI_LABEL else (1, info.num_outputs - 1)
    if (labels.shape[1] if labels.ndim == 2 else 1) != width or labels.max() > top:
        raise DataError(
            f"{split}_labels of {info.name} do not fit those of train: expected {width} column(s), values up to {top}; "
            f"found shape {labels.shape} with values up to {labels.max()}."
        )
    if split != "train" and (labels == UNKNOWN).any():
        raise DataError(f"{split}_labels of {info.name} holds -1: every image that is evaluated needs its label.")
    return ImageSet(images=images, labels=labels, sources=_numbers(arrays, f"{split}_source", len(images), info.name))


def _numbers(arrays: Any, key: str, num: int, name: str) -> np.ndarray | None:
    """Return an optional array of integers [N]."""
    if key not in arrays:
        return None
    numbers = arrays[key]
    if numbers.dtype.kind not in "iu" or numbers.shape != (num,):
        raise DataError(
            f"{key} of {name} must be integers of shape ({num},), not {numbers.dtype} of shape {numbers.shape}."
        )
    return np.asarray(numbers.astype(np.int64))


def _split_off(train: ImageSet, rng: np.random.Generator) -> tuple[ImageSet, ImageSet]:
    """Move a fifth of the labelled images into a test split, each class (or combination of findings) in proportion."""
    known = np.flatnonzero(train.labelled)
    _, strata = np.unique(train.labels[known], axis=0, return_inverse=True)
    strata = strata.reshape(-1)
    groups = [rng.permutation(known[strata == s]) for s in range(strata.max(initial=-1) + 1)]
    chosen = [group[: round(TEST_FRACTION * len(group))] for group in groups] or [known]
    test = np.sort(np.concatenate(chosen))
    if not len(test):
        raise DataError(
            f"{len(known)} labelled images are too few to split off a test set: add test_images, test_labels."
        )
    return train.select(np.setdiff1d(np.arange(len(train)), test)), train.select(test)
