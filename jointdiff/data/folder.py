"""Class folders of image files.

    PATH/healthy/...  PATH/lesion/...  PATH/unlabelled/...                   a test part is split off
    PATH/train/healthy/...  PATH/train/unlabelled/...  PATH/test/healthy/... the test part is given

Folders below a class folder are searched too; with `patient: folder` the first of them names the patient. Hidden files
and files that are no images are left out and counted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from jointdiff.data.image_files import ENDINGS
from jointdiff.data.listing import (
    NO_LABEL,
    SPLIT_WORDS,
    TEST,
    TRAIN,
    Entry,
    Listing,
    check_there,
    listing_of,
    name_of,
    stamp_of,
)
from jointdiff.data.scan_file import shortened
from jointdiff.errors import DataError

Accepts = Callable[[Path], bool]


def is_image(path: Path) -> bool:
    """Tell by its ending whether a file is an image."""
    return path.suffix.lower() in ENDINGS


def list_folder(root: Path, *, accepts: Accepts = is_image, patients: bool = False) -> Listing:
    """List the class folders below `root`.

    Args:
        accepts: Tells the images from other files.
        patients: Whether the first folder below a class folder names the patient.

    Raises:
        DataError: The folder is missing, empty or must not be read, or is laid out in another way.
    """
    check_there(root, folder=True)
    parts = _parts(root, accepts)
    entries: list[Entry] = []
    num_others = 0
    for split, folder in parts:
        for class_folder in _folders(folder):
            label = "" if class_folder.name.lower() in NO_LABEL else class_folder.name
            for path, status in _files(class_folder):
                if not accepts(path):
                    num_others += 1
                    continue
                below = path.relative_to(class_folder).parts
                patient = below[0] if patients and len(below) > 1 else ""
                name = name_of(path, root)
                entries.append(Entry(name, path, label, patient, split, stamp_of(status)))
    if not entries:
        raise DataError(_nothing(root, num_others))
    if any(entry.split == TEST and not entry.label for entry in entries):
        raise DataError(f"{root} has unlabelled images in its test part: what is evaluated needs its label.")
    left_out = {"other files than images": num_others} if num_others else {}
    return listing_of(root, entries, knows_patients=patients, left_out=left_out)


def _parts(root: Path, accepts: Accepts) -> list[tuple[str, Path]]:
    """Return (split, folder of class folders): one without a split, or those of the parts."""
    folders = _folders(root)
    given = [(SPLIT_WORDS[folder.name.lower()], folder) for folder in folders if folder.name.lower() in SPLIT_WORDS]
    others = [folder.name for folder in folders if folder.name.lower() not in SPLIT_WORDS]
    if given and others:
        raise DataError(
            f"{root} holds folders of parts ({shortened([f.name for _, f in given])}) beside others "
            f"({shortened(others)}): class folders belong either below the parts or directly here."
        )
    if given and not any(split == TRAIN for split, _ in given):
        raise DataError(f"{root} has no folder 'train' beside {shortened([f.name for _, f in given])}.")
    for _, folder in given or [("", root)]:
        loose = sum(1 for path in _entries(folder) if path.is_file() and accepts(path) and not _hidden(path))
        if loose:
            raise DataError(
                f"{folder} holds {loose} images outside of class folders: move them into the folder of their class, or "
                f"into '{NO_LABEL[0]}'."
            )
    if given and not any(split == TEST for split, _ in given):
        return [("", folder) for split, folder in given if split == TRAIN]
    return given or [("", root)]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in _entries(folder) if path.is_dir() and not _hidden(path))


def _entries(folder: Path) -> list[Path]:
    check_there(folder, folder=True)
    return list(folder.iterdir())


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield every file below a folder; links to folders are followed, none twice."""
    seen: set[tuple[int, int]] = set()
    for at, below, files in os.walk(folder, followlinks=True, onerror=_refuse):
        here = os.stat(at)
        if (here.st_dev, here.st_ino) in seen:
            below.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        below[:] = [name for name in below if not name.startswith(".")]
        for name in files:
            path = Path(at, name)
            if not _hidden(path):
                yield path, _status(path)


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError:  # a link to nothing: whoever reads the file says so
        return path.lstat()


def _refuse(error: OSError) -> None:
    check_there(Path(error.filename), folder=True)
    raise DataError(f"{error.filename} cannot be read: {error.strerror}.")


def _hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name in ("__MACOSX", "Thumbs.db")


def _nothing(root: Path, num_others: int) -> str:
    found = f"{num_others} files of other kinds" if num_others else "nothing"
    return (
        f"{root} holds no image in class folders, but {found}. Expected: one folder per class, and '{NO_LABEL[0]}' for "
        f"scans without a label, with image files ({', '.join(ENDINGS)}) in them; for DICOM files take kind: dicom."
    )
