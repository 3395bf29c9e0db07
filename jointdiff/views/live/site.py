"""What one site knows of itself, as plain JSON: its rounds, its privacy ledger, what left it, its galleries, its log.

Read from the site's own folder alone. Nothing here is sent anywhere: it is shown to people at the site.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jointdiff import ledger_file
from jointdiff.errors import RefusedError, RunError
from jointdiff.storage import read_json
from jointdiff.views.format import is_number
from jointdiff.views.run_data import mapping

SCHEMA_VERSION = 1
_STATE_FILE = re.compile(r"round-(\d+)\.safetensors")
_EGRESS_FILE = re.compile(r"round-(\d+)\.json")
_FAILURE = re.compile(r"(\d{4}-\d\d-\d\dT\S+) round (\d+) (\S+) failed")
_LOG_BYTES = 64_000  # of the end of site.log


def read_site(folder: Path) -> dict[str, Any]:
    """Return everything that the page of a site shows.

    Args:
        folder: The site's own folder; any part of it may be missing.
    """
    folder = Path(os.path.abspath(folder))
    log = _tail(folder / "site.log")
    runs = [_run(folder, name) for name in sorted(_run_names(folder))]
    runs.sort(key=lambda run: run["changed"] or 0.0, reverse=True)
    return {
        "schema_version": SCHEMA_VERSION,
        "site": folder.name,
        "folder": str(folder),
        "runs": runs,
        "ledger": _ledger(folder),
        "failures": failures(log),
        "log": log,
    }


def failures(log: str) -> list[dict[str, Any]]:
    r"""Return the failures that a log tells of, newest first: when, in which round, at what, the last line of each.

    >>> failures("2026-01-02T03:04:05+00:00 round 3 train failed\nTraceback ...\nMemoryError: too large\n")
    [{'time': '2026-01-02T03:04:05+00:00', 'round': 3, 'kind': 'train', 'reason': 'MemoryError: too large'}]
    """
    starts = list(_FAILURE.finditer(log))
    found = []
    for index, match in enumerate(starts):
        end = starts[index + 1].start() if index + 1 < len(starts) else len(log)
        lines = [line for line in log[match.end() : end].splitlines() if line.strip()]
        found.append({"time": match[1], "round": int(match[2]), "kind": match[3],
                      "reason": lines[-1].strip() if lines else ""})  # fmt: skip
    return found[::-1]


def _run_names(folder: Path) -> set[str]:
    names: set[str] = set()
    for part in ("state", "explanations", "egress"):
        names.update(path.name for path in _entries(folder / part) if path.is_dir())
    return names


def _run(folder: Path, name: str) -> dict[str, Any]:
    states = _numbered(folder / "state" / name, _STATE_FILE)
    egress = _numbered(folder / "egress" / name, _EGRESS_FILE)
    gallery = folder / "explanations" / name
    times = [_changed(path) for path in (*states.values(), *egress.values(), gallery / "index.html")]
    return {
        "name": name,
        "last_round": max([*states, *egress], default=None),
        "changed": max((time for time in times if time is not None), default=None),
        "gallery": _gallery(gallery, name) if (gallery / "index.html").is_file() else None,
        "egress": [_egress(path, number) for number, path in sorted(egress.items(), reverse=True)],
    }


def _gallery(folder: Path, name: str) -> dict[str, Any]:
    told = _read(folder / "metrics.json") or {}
    items = told.get("items")
    return {
        "address": f"/explanations/{quote(name, safe='')}/index.html",
        "num_scans": len(items) if isinstance(items, list) else None,
        "real": told.get("real") if isinstance(told.get("real"), bool) else None,
        "metrics": mapping(told.get("metrics")),
    }


def _egress(path: Path, number: int) -> dict[str, Any]:
    """Return how much left the site in one round, by the manifest that was written before it left."""
    record = _read(path) or {}
    replies = record.get("replies")
    entries = [entry for entry in replies if isinstance(entry, dict)] if isinstance(replies, list) else []
    return {
        "round": number,
        "num_replies": len(entries),
        "num_parts": sum(len(part) for entry in entries for key in ("tensors", "scalars")
                         if isinstance(part := entry.get(key), list)),
        "num_bytes": sum(int(entry["num_bytes"]) for entry in entries if is_number(entry.get("num_bytes"))),
        "num_stopped": sum(bool(entry.get("stopped")) for entry in entries),
        "error": record.get("error"),
    }  # fmt: skip


def _ledger(folder: Path) -> dict[str, Any] | None:
    """Return the privacy ledger, verified; None where there is none; {'error': ...} where it does not hold."""
    names = (ledger_file.HEAD_FILE, ledger_file.LEDGER_FILE)
    return _ledger_version(folder, *(_version(folder / name) for name in names))


@functools.lru_cache(maxsize=16)
def _ledger_version(folder: Path, *_versions: tuple[int, ...]) -> dict[str, Any] | None:
    try:
        found = ledger_file.read(folder)
    except RefusedError as error:
        return {"error": str(error)}
    return found.to_dict() if found else None


def _numbered(folder: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    matches = ((pattern.fullmatch(path.name), path) for path in _entries(folder))
    return {int(match[1]): path for match, path in matches if match}


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _tail(path: Path) -> str:
    """Return the end of a log, from the first whole line on; '' where there is none."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LOG_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return text.partition("\n")[2] if size > _LOG_BYTES else text


def _read(path: Path) -> dict[str, Any] | None:
    """Return a JSON file's mapping; None where there is none; {'error': ...} where it is damaged."""
    version = _version(path)
    return _read_version(path, *version) if version else None


def _version(path: Path) -> tuple[int, ...]:
    """Return what changes when a file does; () where there is none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=1024)
def _read_version(path: Path, *_version: int) -> dict[str, Any]:
    """Read a file once for every state of it: the page asks every second."""
    try:
        value = read_json(path)
        return value if isinstance(value, dict) else {"entries": value}
    except RunError as error:
        return {"error": str(error)}
