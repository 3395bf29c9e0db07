"""MedMNIST v2, every 2D set by its name (Yang et al., Scientific Data 2023, https://medmnist.com).

A file is used only after its MD5 sum agrees with the one that the `medmnist` package lists, whoever put it there.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jointdiff.data.base import MULTI_CLASS, MULTI_LABEL, Dataset, DatasetInfo, ImageSet
from jointdiff.errors import ConfigError, DataError

SIZES = (28, 64, 128, 224)


@lru_cache(maxsize=1)
def medmnist_names() -> tuple[str, ...]:
    """Return the names of all 2D sets, sorted."""
    return tuple(sorted(name for name in _package_info() if not name.endswith("3d")))


def medmnist_info(name: str, *, image_size: int = 28) -> DatasetInfo:
    """Describe one of `medmnist_names`.

    Raises:
        ConfigError: MedMNIST has no images of that size.
    """
    if image_size not in SIZES:
        raise ConfigError(
            f"image-size {image_size} does not exist for {name}: MedMNIST offers {', '.join(map(str, SIZES))}."
        )
    entry = _package_info()[name]
    labels = entry["label"]
    return DatasetInfo(
        name=name,
        # Ordinal grades (retinamnist) and two classes are learned as classes, like MedMNIST's own baselines.
        task=MULTI_LABEL if entry["task"].startswith(MULTI_LABEL) else MULTI_CLASS,
        class_names=tuple(labels[str(number)] for number in range(len(labels))),
        channels=entry["n_channels"],
        image_size=image_size,
        real=True,
        description=entry["description"],
        licence=entry["license"],
    )


def load_medmnist(name: str, *, data_root: str = "", image_size: int = 28) -> Dataset:
    """Load one of `medmnist_names` from `data_root` ('' = ~/.medmnist), downloading it when it is not there.

    Raises:
        ConfigError: MedMNIST has no images of that size.
        DataError: The file is damaged, or missing and the download failed; the text gives the steps by hand.
    """
    info = medmnist_info(name, image_size=image_size)
    flag = "" if image_size == 28 else f"_{image_size}"
    path = (Path(data_root).expanduser() if data_root else Path.home() / ".medmnist") / f"{name}{flag}.npz"
    url, md5 = _package_info()[name][f"url{flag}"], _package_info()[name][f"MD5{flag}"]
    if not path.is_file():
        _download(name, path, url, md5, image_size)
    if (found := md5_of(path)) != md5:
        raise DataError(
            f"{path} is damaged or of another version: its MD5 sum is {found}, MedMNIST lists {md5}. "
            f"Delete the file and start again, so that it is downloaded anew, or fetch it by hand from {url}"
        )
    with np.load(path, allow_pickle=False) as arrays:
        splits = {split: _image_set(arrays, split, info) for split in ("train", "val", "test")}
    return Dataset(info=info, **splits)


def md5_of(path: Path) -> str:
    """Return the MD5 sum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _package_info() -> dict[str, dict[str, Any]]:
    from medmnist.info import INFO  # here, so that runs on other data never load the package

    return INFO


def _download(name: str, path: Path, url: str, md5: str, image_size: int) -> None:
    """Fetch a file with the package's own downloader, beside its place, and move it there when it is whole."""
    import medmnist

    folder = None
    new_folder = not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".download-", dir=path.parent))
        kind = getattr(medmnist, _package_info()[name]["python_class"])
        kind(split="test", root=str(folder), size=image_size, download=True)
        (folder / path.name).replace(path)
    except Exception as error:  # whatever the package, the network or the disk raises, the remedy is the same
        raise DataError(_manual_steps(name, path, url, md5, error)) from None
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if new_folder and not path.exists():
            with contextlib.suppress(OSError):  # not empty, or never made
                path.parent.rmdir()


def _manual_steps(name: str, path: Path, url: str, md5: str, error: Exception) -> str:
    cause = str(error).strip().splitlines()
    return (
        f"{path.name} is not in {path.parent} and could not be downloaded "
        f"({type(error).__name__}: {cause[0] if cause else 'no reason given'}). By hand:\n"
        f"  1. On a machine with internet, open {url}\n"
        f"  2. Check the file's MD5 sum: {md5}\n"
        f"  3. Put it into the folder {path.parent} as {path.name}\n"
        f"  4. Start again. A file that lies elsewhere: data-root=FOLDER\n"
        f"Or go on without a download: dataset=phantom (synthetic scans instead of {name})."
    )


def _image_set(arrays: Any, split: str, info: DatasetInfo) -> ImageSet:
    images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].astype(np.int64)
    return ImageSet(
        images=images[..., None] if images.ndim == 3 else images,
        labels=labels if info.task == MULTI_LABEL else labels[:, 0],
    )
