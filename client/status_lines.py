"""How a site's SuperNode stands, in words."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from jointdiff.views.terminal import printable


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return a few lines for the terminal.

    Args:
        found: As `client.supernode.status` gives it.
    """
    problem = found["problem"]
    told = [_first(found)]
    if found["running"] and not found["connected"] and found["last_contact"]:
        told.append(f"Last contact: {_time(found['last_contact'])}.")
    if problem:
        over = ", which is over" if found["connected"] else ""
        told.append(f"Last problem ({_time(problem['time'])}{over}): {problem['text']}")
        if not over:
            told.append(f"  -> {problem['remedy']}")
    if found["run"]:
        when = datetime.fromtimestamp(found["changed"], UTC).isoformat() if found["changed"] else ""
        last = f"Last run: {printable(found['run'])}, round {found['round'] or 0}"
        told.append(f"{last}, {_time(when)}." if when else f"{last}.")
    else:
        told.append("No run has asked this site for anything yet.")
    return told


def _first(found: Mapping[str, Any]) -> str:
    if not found["running"]:
        return "Not running. `jointdiff-client start` starts it."
    state = "connected to the federation" if found["connected"] else "not connected"
    return f"Running since {_time(found['since'])} (process {found['pid']}), {state}."


def _time(text: str | None) -> str:
    return f"{(text or '')[:16].replace('T', ' ')} UTC"
