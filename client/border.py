"""The site's border: whatever goes wrong inside becomes a short safe text; the whole story stays in the site's log.

An exception that left a Flower ClientApp would carry its text, and with it paths and file names, into the server's log.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import numpy as np

from client.round import run, site_folder
from jointdiff.errors import JointDiffError, RefusedError
from jointdiff.protocol import RoundInstructions, RoundReport

LOG_FILE = "site.log"
MAX_CHARACTERS = 500
# A slash of any kind, a home folder, or a file name: all that could be, or be part of, a path of the site.
_PATH_LIKE = re.compile(
    r"[\\/~]|\.(npz|npy|png|jpe?g|tiff?|dcm|nii|gz|zip|csv|tsv|xlsx?|ya?ml|json|safetensors|h5|pt|log)\b",
    re.IGNORECASE,
)
_log = logging.getLogger(__name__)


def answer(text: str, tensors: Callable[[], Mapping[str, np.ndarray]]) -> tuple[RoundReport, dict[str, np.ndarray]]:
    """Run what the instructions in `text` ask, and never raise: failures and refusals are reports with a reason.

    Args:
        text: JSON of the RoundInstructions.
        tensors: Reads the arrays of the message; called inside the border, since what came may be damaged.
    """
    instructions = None
    try:
        instructions = RoundInstructions.from_json(text)
        return run(instructions, tensors())
    except Exception as error:
        status = "refused" if isinstance(error, RefusedError) else "failed"
        _write_log(instructions, error)
        hospital = instructions.hospital if instructions else ""
        return RoundReport(hospital, status=status, reason=safe_reason(error)), {}


def safe_reason(error: BaseException) -> str:
    """Return a text about the error that may travel: our own, if nothing in it looks like a path, else its class name.

    >>> safe_reason(RefusedError("The server runs other code."))
    'The server runs other code.'
    >>> safe_reason(ValueError("scan of Jane Doe is broken"))
    'ValueError (the details are in the log of the site)'
    """
    text = " ".join(str(error).split())
    if isinstance(error, JointDiffError) and text and not _PATH_LIKE.search(text):
        return text[:MAX_CHARACTERS]
    return f"{type(error).__name__} (the details are in the log of the site)"


def _write_log(instructions: RoundInstructions | None, error: BaseException) -> None:
    """Append the whole traceback to the log in the site's own folder."""
    if instructions is None:
        _log.error("The instructions could not be read: %s", type(error).__name__)
        return
    _log.error("%s, round %d, %s: %s", instructions.hospital, instructions.round, instructions.kind, safe_reason(error))
    try:
        folder = site_folder(instructions)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / LOG_FILE, "a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} round {instructions.round} ")
            file.write(f"{instructions.kind} failed\n{''.join(traceback.format_exception(error))}\n")
    except (OSError, JointDiffError) as trouble:
        _log.error("The log of the site cannot be written: %s", type(trouble).__name__)
