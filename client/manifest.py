"""The manifest: what left the site, written before it leaves. egress/<run>/round-0001.json, one entry per reply.

An entry lists every tensor and every value of the report (name, shape, dtype, bytes, sha256), and is chained to the one
before it in the file by its sha256; a file is chained to the file that was written before it. An entry that was edited,
or one that was taken out, breaks the chain. Who rewrites the whole record can deceive: the chain shows accidents and
small edits, not a thorough forger. site.log holds each entry's sha256 too, so the end cannot be cut off unseen.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client import site_log
from jointdiff import storage
from jointdiff.errors import RunError

SCHEMA_VERSION = 1
FOLDER = "egress"
_FILE = re.compile(r"round-(\d+)\.json")
_LOG_LINE = re.compile(r" egress run (\S+) round (\d+) .* sha256 ([0-9a-f]{64})$", re.MULTILINE)
_ITEM_KEYS = {"name", "shape", "dtype", "bytes", "sha256"}


@dataclass(frozen=True)
class Tensor:
    """One tensor of a reply, as it is sent."""

    name: str
    shape: Sequence[int]
    dtype: str
    data: bytes  # its numbers, row by row


@dataclass
class RunManifest:
    """What a site's record says of one run."""

    run: str
    rounds: dict[int, list[dict[str, Any]]] = field(default_factory=dict)  # round -> entries, in order of time
    problems: list[str] = field(default_factory=list)  # where the record is not what was written

    @property
    def entries(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Every entry with its round."""
        return ((number, entry) for number in sorted(self.rounds) for entry in self.rounds[number])

    @property
    def num_bytes(self) -> int:
        """All bytes that left."""
        return sum(entry["num_bytes"] for _, entry in self.entries)


def entry_of(kind: str, report_text: str, tensors: Sequence[Tensor], *, envelope_bytes: int) -> dict[str, Any]:
    """Return the entry of a reply that is about to leave.

    Args:
        kind: Of the question.
        report_text: The report's JSON, as it is sent; its values are listed one by one.
        tensors: What is sent beside it.
        envelope_bytes: Of what stands around report and tensors: headers of the format.
    """
    report = json.loads(report_text)
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "kind": kind,
        "status": report["status"],
        "tensors": [
            _item(tensor.name, tensor.shape, tensor.dtype, tensor.data) | {"name_bytes": len(tensor.name)}
            for tensor in tensors
        ],
        "scalars": [_scalar(name, value) for name, value in _leaves(report)],
        "report": {"bytes": len(report_text), "sha256": hashlib.sha256(report_text.encode()).hexdigest()},
        "envelope_bytes": envelope_bytes,
        "num_bytes": envelope_bytes + len(report_text) + sum(len(t.data) + len(t.name) for t in tensors),
    }


def append(folder: Path, run: str, round_number: int, hospital: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Write an entry to the run's record and a line of it to site.log; return it with its place in the chain.

    Args:
        folder: The site's own.
        run: A plain name, checked by the caller.

    Raises:
        OSError, RunError: It cannot be written, or the file that is there is damaged. Then nothing may leave.
    """
    home = folder / FOLDER / run
    home.mkdir(parents=True, exist_ok=True)
    path = home / f"round-{round_number:04d}.json"
    with storage.locked(home / ".lock"):
        if path.exists():
            record = _read_file(path)
        else:
            record = {
                "schema_version": SCHEMA_VERSION, "run": run, "round": round_number, "hospital": hospital,
                "previous": _newest(home), "replies": [],
            }  # fmt: skip
        replies = record["replies"]
        before = replies[-1]["sha256"] if replies else _start(record)
        chained = {"number": len(replies) + 1, **entry, "previous_sha256": before}
        chained["sha256"] = _digest(chained)
        record["replies"] = [*replies, chained]
        storage.write_json(path, record)
        site_log.write_line(folder, _line(run, round_number, chained))
    return chained


def _line(run: str, round_number: int, entry: Mapping[str, Any]) -> str:
    return (
        f"egress run {run} round {round_number} {entry['kind']} {entry['status']}: {len(entry['tensors'])} tensors, "
        f"{len(entry['scalars'])} values, {entry['num_bytes']} bytes, sha256 {entry['sha256']}"
    )


def run_names(folder: Path) -> list[str]:
    """Return the runs of which a site has a record, sorted."""
    home = Path(folder) / FOLDER
    return sorted(path.name for path in home.iterdir() if path.is_dir()) if home.is_dir() else []


def read(folder: Path, run: str) -> RunManifest:
    """Read and verify the record of one run.

    Files must be whole, sums right, entries and files chained, and every entry that site.log tells of must be there.
    """
    home = Path(folder) / FOLDER / run
    found = RunManifest(run)
    records: dict[str, dict[str, Any]] = {}
    for path in sorted(home.glob("round-*.json")):
        match = _FILE.fullmatch(path.name)
        if not match:
            continue
        try:
            record = _read_file(path)
        except (OSError, RunError) as error:
            found.problems.append(f"{path.name}: {error}")
            continue
        found.problems += [f"{path.name}: {problem}" for problem in _problems(record, run, int(match[1]))]
        found.rounds[int(match[1])] = record["replies"]
        records[path.name] = record
    found.problems += _broken_links(records)
    known = {entry["sha256"] for _, entry in found.entries}
    try:
        log = (Path(folder) / site_log.LOG_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        log = ""
    lost = [(number, digest) for name, number, digest in _LOG_LINE.findall(log) if name == run and digest not in known]
    found.problems += [f"site.log tells of a reply in round {number} that is not here ({d[:12]})" for number, d in lost]
    return found


def _read_file(path: Path) -> dict[str, Any]:
    """Read a file whose form is right; what it says may still be wrong.

    Raises:
        RunError: It is no JSON, or of another form.
    """
    record = storage.read_json(path)
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
        raise RunError(f"it is no manifest of version {SCHEMA_VERSION}. Was it edited?")
    replies = record.get("replies")
    if not isinstance(replies, list) or not all(isinstance(r, dict) and _has_form(r) for r in replies):
        raise RunError("an entry lacks a field. Was it edited?")
    return record


def _has_form(entry: Mapping[str, Any]) -> bool:
    lists = (entry.get("tensors"), entry.get("scalars"))
    return (
        all(isinstance(entry.get(key), str) for key in ("time", "kind", "status", "previous_sha256", "sha256"))
        and all(isinstance(entry.get(key), int) for key in ("number", "envelope_bytes", "num_bytes"))
        and isinstance(entry.get("report"), dict)
        and isinstance(entry["report"].get("bytes"), int)
        and all(isinstance(items, list) for items in lists)
        and all(isinstance(i, dict) and i.keys() >= _ITEM_KEYS for items in lists for i in items)  # type: ignore[union-attr]
    )


def _problems(record: Mapping[str, Any], run: str, number: int) -> Iterator[str]:
    if (record.get("run"), record.get("round")) != (run, number):
        yield "it says that it is of another run or round"
    before = _start(record)
    for position, entry in enumerate(record["replies"], start=1):
        if entry["number"] != position:
            yield f"entry {position} says that it is number {entry['number']}"
        if entry["previous_sha256"] != before:
            yield f"entry {position} does not follow the one before it"
        if entry["sha256"] != _digest(entry):
            yield f"entry {position} is not what was written: its sha256 differs"
        sent = sum(int(t["bytes"]) + int(t.get("name_bytes", 0)) for t in entry["tensors"])
        if entry["num_bytes"] != entry["envelope_bytes"] + entry["report"]["bytes"] + sent:
            yield f"the bytes of entry {position} do not add up to {entry['num_bytes']}"
        before = entry["sha256"]


def _broken_links(records: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield the files whose predecessor is gone, or no longer holds the entry that was its last one then."""
    firsts = 0
    for name, record in records.items():
        previous = record.get("previous")
        if previous is None:
            firsts += 1
            continue
        before = records.get(previous.get("file", "")) if isinstance(previous, dict) else None
        if before is None or previous["sha256"] not in {entry["sha256"] for entry in before["replies"]}:
            yield f"{name}: the file before it is missing, or was changed since"
    if firsts > 1:
        yield "more than one file says that it is the first"


def _newest(home: Path) -> dict[str, str] | None:
    """Return the file that was written last and the sha256 of its last entry; None before the first."""
    paths = [path for path in home.glob("round-*.json") if _FILE.fullmatch(path.name)]
    if not paths:
        return None
    newest = max(paths, key=lambda path: (path.stat().st_mtime_ns, path.name))
    return {"file": newest.name, "sha256": _read_file(newest)["replies"][-1]["sha256"]}


def _start(record: Mapping[str, Any]) -> str:
    """Return what the first entry of a file is chained to: the file's own head."""
    return _digest({key: record.get(key) for key in ("run", "round", "hospital", "previous")})


def _digest(value: Mapping[str, Any]) -> str:
    known = {key: entry for key, entry in value.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _item(name: str, shape: Sequence[int], dtype: str, data: bytes) -> dict[str, Any]:
    return {
        "name": name,
        "shape": list(shape),
        "dtype": dtype,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _scalar(name: str, value: Any) -> dict[str, Any]:
    """Return the item of one value of the report; its bytes are a part of the report's."""
    kind = {bool: "bool", int: "int64", float: "float64", str: "text", type(None): "withheld"}[type(value)]
    return _item(name, (), kind, json.dumps(value).encode()) | {"value": value}


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings and lists, each with its dotted name; empty ones hold none."""
    if isinstance(value, Mapping):
        for key in sorted(value):
            yield from _leaves(value[key], f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _leaves(entry, f"{name}.{index}")
    else:
        assert not isinstance(value, float) or math.isfinite(value), name
        yield name, value
