"""The exceptions a user may see. Each text says what is wrong, the value, and what to do.

Nothing here may carry an image, a patient's label, a file name below a site's data folder, or such a path:
exceptions can travel to the server (docs/hospital-it.md).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class JointDiffError(Exception):
    """Base of every error that JointDiff raises on purpose. A command ends with `exit_code`."""

    exit_code = 1


class ConfigError(JointDiffError):
    """A setting is unknown, of the wrong type, or out of its range."""

    exit_code = 2


class DataError(JointDiffError):
    """A data set is missing, damaged, or does not fit what was asked of it."""

    exit_code = 3


class CheckpointError(JointDiffError):
    """A checkpoint is missing, damaged, or of another architecture."""

    exit_code = 4


class RunError(JointDiffError):
    """A run cannot start, or ended without a result."""

    exit_code = 5


class RefusedError(JointDiffError):
    """A site says no to what the server asks. The reason may travel."""

    exit_code = 6


class DeviceMemoryError(RunError):
    """A device has no memory for what was asked, not even in smaller parts."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint that names the known word nearest to a mistyped one, or lists them all.

    >>> nearest("num-round", ["num-rounds", "seed"])
    "did you mean 'num-rounds'?"
    >>> nearest("zzz", ["b", "a"])
    'known: a, b'
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return "known: " + ", ".join(names)
