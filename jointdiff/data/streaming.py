"""Fitted images on disk, mapped into memory: a set may be larger than the memory, and is decoded once.

A file `scans-<key>.cache` holds a heading of one page (JSON), the images one after another, a row of facts per image,
and a JSON text. The key covers the files, their sizes and times, and all settings, so that a change of any makes
another file; what is truncated or of another version is made anew. Files are their owner's alone from the first byte,
and appear whole. N images, S pixels per side, C channels.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jointdiff.errors import DataError
from jointdiff.storage import atomic_path, locked

FORMAT = 1
FACTS = np.dtype([
    ("entry", "<i8"), ("part", "i1"), ("patient", "<i8"), ("height", "<i4"), ("width", "<i4"), ("low", "<f8"),
    ("high", "<f8"), ("burned_in", "?"), ("digest", "S32"),
])  # fmt: skip
KEPT = 3  # files in a cache: other settings come and go
_PAGE = 4096
# A private map of a file larger than the memory must not ask for as much memory (MAP_NORESERVE).
_NORESERVE = 0x4000 if sys.platform == "linux" else 0


@dataclass(frozen=True)
class Stored:
    """Fitted images with what is known of each."""

    images: np.ndarray  # uint8 [N, S, S, C], mapped; writing into it changes no file
    facts: np.ndarray  # FACTS [N]
    extra: dict[str, Any]


def find(folder: Path, key: str, shape: tuple[int, int, int]) -> Stored | None:
    """Return what is stored under a key, or None where there is none that is whole and of this version."""
    path = _path(folder, key)
    try:
        with path.open("rb") as file:
            heading = json.loads(file.read(_PAGE).rstrip(b"\0"))
            size = os.fstat(file.fileno()).st_size
            if heading["format"] != FORMAT or heading["key"] != key or heading["bytes"] != size:
                return None
            num = int(heading["num"])
            images = _mapped(file, (num, *shape), size)
            file.seek(_PAGE + images.nbytes)
            facts = np.frombuffer(file.read(num * FACTS.itemsize), dtype=FACTS)
            extra = json.loads(file.read())
        os.utime(path)  # the one used last is kept longest
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Stored(images, facts, extra)


def store(
    folder: Path,
    key: str,
    shape: tuple[int, int, int],
    num: int,
    scans: Callable[[], Iterable[tuple[np.ndarray, tuple[Any, ...]]]],
    extra: Callable[[], dict[str, Any]],
) -> Stored:
    """Store images under a key, unless another process did so meanwhile.

    Args:
        shape: (S, S, C).
        num: Images at most, for the check of the disk.
        scans: Begins an iteration over (image, row of FACTS).
        extra: Called after the last image; fit for JSON.

    Raises:
        DataError: The folder cannot be written, or holds too little space.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(folder / ".lock"):
            found = find(folder, key, shape)
            if found is not None:
                return found
            for stale in folder.glob(".scans-*.tmp"):  # of a process that was killed: nobody else holds the lock
                stale.unlink(missing_ok=True)
            _check_space(folder, num * (int(np.prod(shape)) + FACTS.itemsize))
            with atomic_path(_path(folder, key), private=True) as temporary, temporary.open("r+b") as file:
                _write(file, key, shape, scans(), extra)
            _prune(folder)
    except OSError as error:
        raise DataError(
            f"{folder} cannot hold the fitted scans: {error.strerror or error}. Make space or give permission there; "
            "the folder can be deleted at any time, it is made anew."
        ) from None
    found = find(folder, key, shape)
    if found is None:
        raise DataError(f"{folder} loses what is written to it: use a folder on a local disk.")
    return found


def _write(
    file: BinaryIO,
    key: str,
    shape: tuple[int, int, int],
    scans: Iterable[tuple[np.ndarray, tuple[Any, ...]]],
    extra: Callable[[], dict[str, Any]],
) -> None:
    file.seek(_PAGE)
    facts = []
    for image, row in scans:
        assert image.shape == shape and image.dtype == np.uint8, (image.shape, image.dtype)
        file.write(np.ascontiguousarray(image).tobytes())
        facts.append(row)
    file.write(np.array(facts, dtype=FACTS).tobytes())
    file.write(json.dumps(extra()).encode())
    heading = {"format": FORMAT, "key": key, "num": len(facts), "bytes": file.tell()}
    file.seek(0)
    file.write(json.dumps(heading).encode().ljust(_PAGE, b"\0"))


def _mapped(file: BinaryIO, shape: tuple[int, ...], size: int) -> np.ndarray:
    """Map the images; the pages are copied where somebody writes, and the file stays as it is."""
    if not shape[0]:
        return np.zeros(shape, dtype=np.uint8)
    flags, access = mmap.MAP_PRIVATE | _NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
    whole = mmap.mmap(file.fileno(), size, flags=flags, prot=access)
    return np.ndarray(shape, dtype=np.uint8, buffer=whole, offset=_PAGE)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder} has {free / 1e6:.0f} MB left, and the fitted scans need {needed / 1e6:.0f} MB: make space there."
        )


def _prune(folder: Path) -> None:
    files = sorted(folder.glob("scans-*.cache"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in files[KEPT:]:
        path.unlink(missing_ok=True)


def _path(folder: Path, key: str) -> Path:
    return folder / f"scans-{key[:32]}.cache"
