"""Scans that somebody at the site names: DICOM files are read as the site's own data are, all others as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jointdiff.config import ModelConfig
from jointdiff.data import dicom
from jointdiff.data.fitting import fit
from jointdiff.data.image_files import ENDINGS
from jointdiff.data.scan_file import Unreadable
from jointdiff.data.site_source import SiteSource
from jointdiff.errors import DataError
from jointdiff.scans import read_scans

_PREAMBLE = 128  # bytes before the letters that every DICOM file has (PS3.10)


def is_dicom(path: Path) -> bool:
    """Tell whether a file says that it is DICOM."""
    try:
        with path.open("rb") as file:
            return file.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"
    except OSError:
        return False


def listed(paths: Sequence[str]) -> list[Path]:
    """Return the files that are named, those of folders among them, sorted by name."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(each for each in path.iterdir() if each.suffix.lower() in ENDINGS or is_dicom(each))
            if not inside:
                raise DataError(f"{path} holds no image file ({', '.join(ENDINGS)}) and no DICOM file.")
            found += inside
        else:
            found.append(path)
    return found


def read_own(
    paths: Sequence[str], model: ModelConfig, source: SiteSource | None
) -> tuple[list[str], np.ndarray, list[Path | None]]:
    """Return names, what the model sees (uint8 [N,H,W,C]), and the DICOM file of each scan, None where it is none.

    A DICOM file's window and aspect are those of site.yaml where it names DICOM data, else its own range, padded.

    Args:
        paths: Image files, DICOM files, folders of both, npz files.
        source: Of the site's data.

    Raises:
        DataError: Nothing there, not an image, no contrast, or another form than the model's where nothing is fitted.
    """
    names: list[str] = []
    images: list[np.ndarray] = []
    files: list[Path | None] = []
    for path in listed(paths):
        if is_dicom(path):
            names.append(path.name)
            images.append(_read(path, model, source)[None])
        else:
            own, pixels = read_scans([str(path)], model, exact=True)
            names += own
            images.append(pixels)
        files += [path if is_dicom(path) else None] * len(images[-1])
    return names, np.concatenate(images), files


def _read(path: Path, model: ModelConfig, source: SiteSource | None) -> np.ndarray:
    dicom.check_installed()
    window = source.window if source is not None else "auto"
    aspect = source.aspect if source is not None else "pad"
    try:
        scan = dicom.read_dicom(path, window)
    except Unreadable as failure:
        raise DataError(f"{path.name} cannot be read: {failure}.") from None
    image = fit(scan.pixels, image_size=model.image_size, channels=model.channels, aspect=aspect)
    if image.min() == image.max():
        raise DataError(f"{path.name} has the same value everywhere, {int(image.min())}: there is nothing to explain.")
    return image
