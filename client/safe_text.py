"""Which texts may leave the site, and what an error says of itself out there: a code and a safe text.

A text is a channel: a path, a file name, a patient's name, or pixels written as digits would all fit into an exception.
So a reason travels only if one of our own errors gave it, and if it reads like a sentence of ours: plain words, few
digits, nothing like a path. All else becomes the name of a well-known class. What could still be told in at most
MAX_CHARACTERS of plain words is in the threat model.
"""

from __future__ import annotations

import builtins
import os
import re

import torch

from jointdiff.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DeviceMemoryError,
    JointDiffError,
    RefusedError,
    RunError,
)

MAX_CHARACTERS = 500
MAX_WORD = 40  # characters between two spaces: long enough for a class's name, too short for a string of bytes
MAX_DIGITS = 60  # in the whole text: two code hashes and some numbers
# A slash of any kind, a home folder, or a file name: all that could be, or be part of, a path of the site.
_PATH_LIKE = re.compile(
    r"[\\/~]|\.(npz|npy|png|jpe?g|tiff?|dcm|nii|gz|zip|csv|tsv|xlsx?|ya?ml|json|safetensors|h5|pt|log)\b",
    re.IGNORECASE,
)
_CODES: tuple[tuple[type[BaseException], str], ...] = (
    (RefusedError, "refused"),
    (ConfigError, "configuration"),
    (DataError, "data"),
    (CheckpointError, "checkpoint"),
    (DeviceMemoryError, "memory"),
    (RunError, "run"),
    (MemoryError, "memory"),
    (torch.OutOfMemoryError, "memory"),
    (OSError, "system"),
)
_KNOWN = {t for t in vars(builtins).values() if isinstance(t, type) and issubclass(t, BaseException)} | {
    torch.OutOfMemoryError,
    *(kind for kind, _ in _CODES),
}


def may_travel(text: str) -> bool:
    """Tell whether a text may leave the site.

    >>> may_travel("The server runs JointDiff 0.2.0 (code f00dfeedf00d)."), may_travel("see /data/doe.npz")
    (True, False)
    >>> may_travel(" ".join(map(str, range(100)))), may_travel("ab" * 40)
    (False, False)
    """
    return (
        len(text) <= MAX_CHARACTERS
        and text.isascii()
        and text.isprintable()
        and not _PATH_LIKE.search(text)
        and sum(char.isdigit() for char in text) <= MAX_DIGITS
        and all(len(word) <= MAX_WORD for word in text.split())
    )


def code_of(error: BaseException) -> str:
    """Return the word of protocol.CODES for an error."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), "internal")


def safe_reason(error: BaseException) -> str:
    """Return a text about the error that may travel: our own, if it may, else the name of its class, if it is known.

    >>> safe_reason(RefusedError("The server runs other code."))
    'The server runs other code.'
    >>> safe_reason(ValueError("scan of Jane Doe is broken"))
    'ValueError (the details are in the log of the site)'
    >>> safe_reason(type("JaneDoe", (ValueError,), {})())
    'an error (the details are in the log of the site)'
    >>> safe_reason(OSError(28, "what somebody wrote here"))
    'No space left on device (the details are in the log of the site)'
    """
    text = " ".join(str(error).split())
    if isinstance(error, JointDiffError) and text:
        shortened = text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 3].rstrip() + "..."
        if may_travel(shortened):
            return shortened
    name = type(error).__name__ if type(error) in _KNOWN else "an error"
    if type(error) is OSError and error.errno and may_travel(os.strerror(error.errno)):
        name = os.strerror(error.errno)  # the system's own words, whatever the exception says
    return f"{name} (the details are in the log of the site)"
