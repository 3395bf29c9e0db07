"""The privacy ledger as files: `ledger.json` with its hash chain, and `ledger.head` beside it. Reading verifies.

Every entry holds the sha256 of the one before and its own, over canonical JSON; the first follows the hash of the terms
(data set, unit, number of records). `ledger.head` repeats the number of entries and the last hash.

What that shows: an entry or a term that was changed, taken out, put in or moved; entries cut off at the end; a ledger
that was deleted. What no file on the site's own disk can show: that someone wrote both files anew, put back an older
pair of them, or deleted both. For that the last hash must be noted where this person cannot write: on paper, in a
ticket, at the coordinator. It stays in the chain for good, so that a note of it can be checked at any later time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jointdiff.errors import RefusedError
from jointdiff.storage import write_json

LEDGER_FILE = "ledger.json"
HEAD_FILE = "ledger.head"
LOCK_FILE = "ledger.lock"
SCHEMA_VERSION = 1
ADJACENCY = "add or remove one"

_TERMS = ("schema_version", "unit", "adjacency", "dataset", "num_records")
_STATE = ("delta", "epsilon", "ceiling")  # of the last entry, repeated at the top for whoever reads the file
_STEP = ("noise_multiplier", "sample_rate", "steps")
_ENTRY = {"number", "time", "run", "round", *_STEP, *_STATE, "accountant", "note", "key", "previous_sha256", "sha256"}
_RESTORE = (
    "Nothing more is trained with privacy here until both files of the ledger are back from a backup of the folder of "
    "the site. Without a backup what was spent on these data is not known: treat their budget as used up."
)
Entry = dict[str, Any]


@dataclass(frozen=True)
class LedgerFile:
    """A verified ledger, as it stands in the file."""

    terms: Mapping[str, Any]  # what all entries are about: unit, adjacency, dataset (fingerprint), num_records
    state: Mapping[str, Any]  # delta, epsilon (None: infinite) and ceiling (None: there is none), as last written
    entries: tuple[Entry, ...]

    @property
    def head_sha256(self) -> str:
        """The hash that stands for the whole chain: worth a note elsewhere."""
        return self.entries[-1]["sha256"] if self.entries else _hash(self.terms)

    @property
    def history(self) -> tuple[tuple[float, float, int], ...]:
        """(noise multiplier, sample rate, steps) of every entry."""
        return tuple((e["noise_multiplier"], e["sample_rate"], e["steps"]) for e in self.entries)

    def to_dict(self) -> dict[str, Any]:
        """Return what stands in the file."""
        return {**self.terms, **self.state, "entries": list(self.entries), "head_sha256": self.head_sha256}

    def with_entry(self, values: Mapping[str, Any]) -> LedgerFile:
        """Return the ledger with one more entry, numbered and linked to the last; `values` are its other fields."""
        entry = {"number": len(self.entries) + 1, **values, "previous_sha256": self.head_sha256}
        entry["sha256"] = _hash(entry)
        assert entry.keys() == _ENTRY, entry.keys() ^ _ENTRY
        return LedgerFile(self.terms, {name: entry[name] for name in _STATE}, (*self.entries, entry))


def new(*, dataset: str, num_records: int, unit: str, delta: float, ceiling: float | None) -> LedgerFile:
    """Return a ledger without entries."""
    terms = dict(zip(_TERMS, (SCHEMA_VERSION, unit, ADJACENCY, dataset, num_records), strict=True))
    return LedgerFile(terms, {"delta": delta, "epsilon": 0.0, "ceiling": ceiling}, ())


def write(folder: Path, ledger: LedgerFile) -> None:
    """Write both files, each whole and durably. The caller holds the lock.

    The ledger first: a crash in between leaves one entry more than `ledger.head` tells of, which is no loss.
    """
    write_json(folder / LEDGER_FILE, ledger.to_dict())
    write_json(folder / HEAD_FILE, {"num_entries": len(ledger.entries), "head_sha256": ledger.head_sha256})


def read(folder: Path) -> LedgerFile | None:
    """Return the verified ledger of a site's folder; None where there never was one. Needs no lock.

    Raises:
        RefusedError: It is missing although there was one, damaged, edited, or cut off. The text names no path.
    """
    head = _read(folder / HEAD_FILE)  # before the ledger, which another process may be lengthening right now
    content = _read(folder / LEDGER_FILE)
    if content is None:
        if head is None:
            return None
        raise RefusedError(f"The privacy ledger of this site is missing, though its head is there. {_RESTORE}")
    ledger = _verified(content)
    _check_head(ledger, head)
    return ledger


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise RefusedError(f"The privacy ledger of this site is damaged: it is no JSON that can be read. {_RESTORE}")
    return content


def _verified(content: dict[str, Any]) -> LedgerFile:
    if content.get("schema_version") != SCHEMA_VERSION:
        raise RefusedError(
            f"The privacy ledger of this site has the schema version {content.get('schema_version')!r:.40}, and this "
            f"version of JointDiff reads {SCHEMA_VERSION}: install the version that wrote it."
        )
    names = {*_TERMS, *_STATE, "entries", "head_sha256"}
    entries = content.get("entries")
    if content.keys() != names or not isinstance(entries, list):
        raise _edited("its fields are not those that were written")
    ledger = LedgerFile({name: content[name] for name in _TERMS}, {name: content[name] for name in _STATE}, ())
    previous = ledger.head_sha256
    for number, entry in enumerate(entries, start=1):
        if not _follows(entry, previous):
            raise _edited(f"the chain of hashes breaks at entry {number} of {len(entries)}")
        previous = entry["sha256"]
    ledger = LedgerFile(ledger.terms, ledger.state, tuple(entries))
    if content["head_sha256"] != previous:
        raise _edited("its last hash is not the one of its last entry")
    if entries and any(entries[-1].get(name) != ledger.state[name] for name in _STATE):
        raise _edited("the sums at its top are not those of its last entry")
    return ledger


def _follows(entry: Any, previous: str) -> bool:
    """Return whether this is an entry, unchanged, that was written after the one with the hash `previous`."""
    return (
        isinstance(entry, dict)
        and entry.keys() == _ENTRY
        and all(type(entry[name]) in (int, float) for name in _STEP)
        and entry["previous_sha256"] == previous
        and entry["sha256"] == _hash(entry)
    )


def _check_head(ledger: LedgerFile, head: dict[str, Any] | None) -> None:
    """Hold the chain against `ledger.head`: it may be longer, by an entry whose writer died, and never shorter."""
    if head is None:
        if ledger.entries:
            raise RefusedError(
                "The head that is written beside the privacy ledger of this site is missing: whether entries were cut "
                f"off at the end can no longer be told. {_RESTORE}"
            )
        return
    hashes = [_hash(ledger.terms), *(entry["sha256"] for entry in ledger.entries)]
    count = head.get("num_entries")
    if not isinstance(count, int) or not 0 <= count < len(hashes) or hashes[count] != head.get("head_sha256"):
        raise _edited(f"its {len(ledger.entries)} entries do not hold the last hash that was noted beside it")


def _edited(what: str) -> RefusedError:
    return RefusedError(f"The privacy ledger of this site was edited or cut: {what}. {_RESTORE}")


def _hash(values: Mapping[str, Any]) -> str:
    """Return the sha256 of canonical JSON: sorted keys, no spaces, ASCII; without the field `sha256` itself."""
    kept = {name: value for name, value in values.items() if name != "sha256"}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
