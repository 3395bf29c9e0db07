"""The site's border: whatever goes wrong inside becomes a short safe text; the whole story stays in the site's log.

An exception that left a Flower ClientApp would carry its text, and with it paths and file names, into the server's log.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from client.round import run
from client.safe_text import MAX_CHARACTERS, code_of, safe_reason
from client.site_config import folder_of
from client.site_log import LOG_FILE
from jointdiff.errors import JointDiffError, RefusedError
from jointdiff.protocol import RoundInstructions, RoundReport

__all__ = ["LOG_FILE", "MAX_CHARACTERS", "answer", "refusal", "safe_reason", "write_log"]
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
        if instructions is None:
            _log.error("The instructions could not be read: %s", type(error).__name__)
            reason = safe_reason(error)
            return RoundReport("", status="failed", code="instructions", reason=reason), {}
        try:
            write_log(instructions, folder_of(instructions), error, safe_reason(error))
        except JointDiffError as trouble:  # the home cannot be written
            _log.error("The log of the site cannot be written: %s", type(trouble).__name__)
        return refusal(instructions, error), {}


def refusal(instructions: RoundInstructions, error: BaseException) -> RoundReport:
    """Return the report of an error: a code and a safe text, and a refusal told from a failure."""
    status = "refused" if isinstance(error, RefusedError) else "failed"
    return RoundReport(instructions.hospital, status=status, code=code_of(error), reason=safe_reason(error))


def write_log(instructions: RoundInstructions, folder: Path, error: BaseException, summary: str) -> None:
    """Append the whole traceback to the log in the site's own folder, and say in one line what went wrong."""
    _log.error("%s, round %d, %s: %s", instructions.hospital, instructions.round, instructions.kind, summary)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / LOG_FILE, "a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} round {instructions.round} ")
            file.write(f"{instructions.kind} failed\n{''.join(traceback.format_exception(error))}\n")
    except OSError as trouble:
        _log.error("The log of the site cannot be written: %s", type(trouble).__name__)
