"""The files of a site before any is read: where each lies, what is said of it, and when it last changed."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jointdiff.errors import DataError

TRAIN, TEST, VALIDATION = "train", "test", "val"
SPLIT_WORDS = {"train": TRAIN, "training": TRAIN, "test": TEST, "testing": TEST, "val": VALIDATION,
               "valid": VALIDATION, "validation": VALIDATION}  # fmt: skip
NO_LABEL = ("unlabelled", "unlabeled")


@dataclass(frozen=True)
class Entry:
    """One image file of a site."""

    name: str  # path below the root, with /, the same on every system: what tells the file from others
    path: Path
    label: str = ""  # as the site writes it; '' = not known
    patient: str = ""  # as the site writes it; '' = not known
    split: str = ""  # TRAIN | TEST | VALIDATION; '' = nothing says it
    stamp: tuple[int, int] = (0, 0)  # bytes, time of the last change in ns


@dataclass(frozen=True)
class Listing:
    """All image files of a site, sorted by name."""

    path: Path  # the data: the folder or the table
    entries: Sequence[Entry]
    knows_patients: bool = False
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason: number of files


def listing_of(
    path: Path, entries: Sequence[Entry], *, knows_patients: bool, left_out: Mapping[str, int] | None = None
) -> Listing:
    """Return a listing without validation images (no run uses them), sorted, so that no order of finding matters.

    Raises:
        DataError: Nothing is left, nothing is to train on, or some say which part they belong to and others do not.
    """
    apart = dict(left_out or {})
    used = [entry for entry in entries if entry.split != VALIDATION]
    if len(used) < len(entries):
        apart["of a validation part, which no run uses"] = len(entries) - len(used)
    if not used:
        raise DataError(f"{path} holds no image to use.")
    with_split = sum(bool(entry.split) for entry in used)
    if 0 < with_split < len(used):
        raise DataError(
            f"{path} says for {with_split} of {len(used)} images whether they are for training or for the test: say it "
            "for all, or for none."
        )
    if with_split and not any(entry.split == TRAIN for entry in used):
        raise DataError(f"{path} holds no image for training: all are of the test part.")
    return Listing(path, sorted(used, key=lambda entry: entry.name), knows_patients, apart)


def name_of(path: Path, root: Path) -> str:
    """Return a file's name below the root, in one form of Unicode."""
    return unicodedata.normalize("NFC", Path(os.path.relpath(path, root)).as_posix())


def stamp_of(status: os.stat_result) -> tuple[int, int]:
    """Return what changes when a file changes."""
    return status.st_size, status.st_mtime_ns


def check_there(path: Path, *, folder: bool) -> None:
    """Raise a DataError where a folder or a file is missing, of the other kind, or must not be read."""
    what = "folder" if folder else "file"
    try:
        status = path.stat()
        if folder:
            os.scandir(path).close()
        else:
            path.open("rb").close()
    except PermissionError:
        raise DataError(
            f"{path} cannot be read: this account has no permission. Give it read access to the {what} and to the "
            "folders above it."
        ) from None
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        status = None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    if status is None:
        there = "is no " + what if os.path.exists(path) else "does not exist"
        raise DataError(f"{path} {there}: `path` in site.yaml must name the {what} of your data.")
