"""The privacy ledger as text for the people at a site."""

from __future__ import annotations

from typing import Any

from jointdiff.views.format import MISSING, number
from jointdiff.views.terminal import printable

_COLUMNS = ("#", "time (UTC)", "run", "round", "noise", "sample rate", "steps", "epsilon", "hash", "note")
_HASH_CHARACTERS = 12


def lines(found: dict[str, Any]) -> list[str]:
    """Return a table of the entries, then what is spent, what is left, and the hash to note elsewhere.

    Args:
        found: As `jointdiff.ledger.summary` gives it: the chain has been verified.
    """
    rows = [_COLUMNS, *map(_row, found["entries"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        *("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows),
        "",
        _spent(found),
        _left(found),
        f"The chain of {len(found['entries'])} entries is whole. Its last hash, worth a note outside this machine:",
        found["head_sha256"],
    ]


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    return (
        number(entry["number"]),
        entry["time"][:19].replace("T", " "),
        printable(entry["run"]),
        number(entry["round"]),
        f"{entry['noise_multiplier']:g}",
        f"{entry['sample_rate']:.4g}",
        number(entry["steps"]),
        _epsilon(entry["epsilon"]),
        entry["sha256"][:_HASH_CHARACTERS],
        printable(entry["note"]),
    )


def _spent(found: dict[str, Any]) -> str:
    return (
        f"Spent: epsilon {_epsilon(found['epsilon'])} at delta {found['delta']:g}; protected is one {found['unit']} of "
        f"{number(found['num_records'])}, added or removed."
    )


def _left(found: dict[str, Any]) -> str:
    if found["ceiling"] is None:
        return "Ceiling: none."
    left = MISSING if found["epsilon"] is None else _epsilon(max(0.0, found["ceiling"] - found["epsilon"]))
    rounds = "" if found["rounds_left"] is None else f", which is {number(found['rounds_left'])} rounds like the last"
    return f"Ceiling: epsilon {found['ceiling']:g}. Left: {left}{rounds}."


def _epsilon(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.4f}"
