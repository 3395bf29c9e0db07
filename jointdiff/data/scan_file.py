"""One scan out of one file, and what is known of the file; the exceptions of files that cannot be read."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jointdiff.errors import DataError

MAX_NAMED = 5  # so many files, rows or words are named in an error


class Unreadable(Exception):
    """One file cannot be read. The text is a reason that names no file, so that equal ones can be counted."""


class FilesError(DataError):
    """Files of a site are missing or damaged. The text counts them; `files` names some, for the site's own eyes.

    Texts of errors reach logs, and safe ones the server: names of files stay out of them.
    """

    def __init__(self, text: str, files: Sequence[str] = ()) -> None:
        """Take the text, and up to MAX_NAMED names."""
        super().__init__(text)
        self.files = tuple(files[:MAX_NAMED])


@dataclass(frozen=True)
class Scan:
    """A scan as read: its pixels in 0..255, and what the file held before that."""

    pixels: np.ndarray  # uint8, or float32 in 0..255, [H, W, 1 or 3]
    low: float  # smallest and largest value in the file
    high: float
    digest: str  # of the file's own pixels: equal pictures have equal ones
    burned_in: bool = False  # the file says that text is drawn into the picture


def scan_of(stored: np.ndarray, pixels: np.ndarray | None = None, *, burned_in: bool = False) -> Scan:
    """Return the scan of the values that a file holds.

    Args:
        stored: The file's values [H, W] or [H, W, C].
        pixels: The same in 0..255; None: they are so already.
    """
    shown = stored if pixels is None else pixels
    return Scan(
        pixels=shown[..., None] if shown.ndim == 2 else shown,
        low=float(stored.min()),
        high=float(stored.max()),
        digest=digest_of(stored),
        burned_in=burned_in,
    )


def digest_of(stored: np.ndarray) -> str:
    """Return a digest of an array's values and shape, 32 hexadecimal digits."""
    stored = stored[..., 0] if stored.ndim == 3 and stored.shape[2] == 1 else stored
    form = f"{stored.dtype.newbyteorder('=').str}{stored.shape}".encode()
    return hashlib.blake2b(form + np.ascontiguousarray(stored).tobytes(), digest_size=16).hexdigest()


def unreadable_error(path: Path, num: int, failures: Sequence[tuple[str, str]]) -> FilesError:
    """Return the error of images that cannot be read.

    Args:
        path: Of the data.
        num: Images in all.
        failures: (name, reason) of each that failed.
    """
    reasons = Counter(reason for _, reason in failures)
    return FilesError(
        f"{path}: {len(failures)} of {num} images cannot be read. "
        + "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common(MAX_NAMED))
        + ". Mend or remove them, or leave them out with `skip-unreadable: true`.",
        [name for name, _ in failures],
    )


def shortened(words: Sequence[str]) -> str:
    """Return some words in quotes, the rest as a number, each cut to a readable length.

    >>> shortened(["a", "b"]), shortened(list("abcdefg"))
    ("'a', 'b'", "'a', 'b', 'c', 'd', 'e' and 2 more")
    """
    named = ", ".join(f"'{w if len(w) <= 40 else w[:37] + '...'}'" for w in words[:MAX_NAMED])
    return named + (f" and {len(words) - MAX_NAMED} more" if len(words) > MAX_NAMED else "")
