"""A run's numbers as TensorBoard files, made from its events.

One folder per line of a chart, `pooled` and one per hospital, so that TensorBoard draws them over each other. The
events stay the only source: the files can be thrown away and written again.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from jointdiff.errors import RunError
from jointdiff.events import read_events
from jointdiff.history import effective
from jointdiff.storage import is_locked
from jointdiff.views.format import is_number
from jointdiff.views.run_data import mapping

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

POOLED = "pooled"
LOOK_S = 1.0  # between two looks at the events of a run that goes on
_ENDINGS = ("run_finished", "run_failed")
Event = Mapping[str, Any]
Scalar = tuple[str, str, float]  # folder, tag, value


class TensorBoardWriter:
    """Consumes events one by one and writes their numbers. Use as a context manager, so that all reaches the disk."""

    def __init__(self, folder: Path) -> None:
        """Open nothing yet.

        Args:
            folder: Where the files go; one folder for each of `pooled` and the hospitals is made in it.

        Raises:
            RunError: The package tensorboard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise RunError(
                f"TensorBoard files need the package tensorboard, which is not installed ({error}). It is an optional "
                "extra: pip install 'jointdiff[tensorboard]'"
            ) from None
        self._make = SummaryWriter
        self._folder = folder
        self._writers: dict[str, SummaryWriter] = {}

    def __enter__(self) -> TensorBoardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, event: Event) -> None:
        """Take one event; those without numbers are passed over."""
        seconds = _seconds(event)
        for name, tag, value in scalars(event):
            if name not in self._writers:
                self._writers[name] = self._make(str(self._folder / _folder_name(name)))
            self._writers[name].add_scalar(tag, value, int(event.get("round") or 0), walltime=seconds)

    def flush(self) -> None:
        """Let a reader see everything that was taken."""
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Close the files; they are whole then."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}


def scalars(event: Event) -> list[Scalar]:
    """Return what an event has to draw, as (`pooled` or hospital, tag, value). Pure.

    >>> scalars({"event": "evaluated", "round": 1, "pooled": {"auc": 0.9}, "hospitals": {"a": {"auc": None}}})
    [('pooled', 'evaluation/auc', 0.9)]
    """
    kind = event["event"]
    if kind == "evaluated":
        found = _tagged(POOLED, "evaluation", {**mapping(event.get("pooled")), "heldout_auc": event.get("heldout_auc")})
        for name, metrics in mapping(event.get("hospitals")).items():
            found += _tagged(str(name), "evaluation", mapping(metrics))
        return found
    if kind == "round_aggregated":
        facts = {"duration_s": event.get("duration_s"), "num_replies": event.get("num_replies")}
        return _tagged(POOLED, "training", mapping(event.get("metrics"))) + _tagged(POOLED, "round", facts)
    if kind == "hospital_replied":
        name, question = str(event.get("hospital")), str(event.get("kind"))
        facts = {key: event.get(key) for key in ("bytes_in", "bytes_out", "duration_s")}
        group = "training" if question == "train" else question
        return _tagged(name, group, mapping(event.get("metrics"))) + _tagged(name, f"exchange/{question}", facts)
    return []


def _tagged(name: str, group: str, values: Mapping[str, Any]) -> list[Scalar]:
    return [(name, f"{group}/{key}", float(value)) for key, value in values.items() if is_number(value)]


def write_tensorboard(run_folder: Path) -> Path:
    """Write <run>/tensorboard/ anew from the events, and return it. What was there goes only when the new is whole.

    Raises:
        RunError: The folder holds no run, or tensorboard is not installed.
    """
    events = effective(read_events(run_folder / "events.jsonl"))
    fresh = run_folder / f".tensorboard-{os.getpid()}"
    try:
        with TensorBoardWriter(fresh) as writer:
            fresh.mkdir(exist_ok=True)  # a run without a number has an empty folder, not none
            _take(writer, events)
        return _swap(fresh, run_folder / "tensorboard")
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def follow(run_folder: Path, *, look_s: float = LOOK_S) -> Path:
    """Write <run>/tensorboard/ anew and go on until the run has ended.

    Where the run goes on from an earlier round the files are written anew: a point cannot be taken back.

    Raises:
        RunError: As `write_tensorboard`.
    """
    target = run_folder / "tensorboard"
    while True:
        written, resumed = _follow_one_attempt(run_folder, target, look_s)
        if not resumed:
            return written


def _follow_one_attempt(run_folder: Path, target: Path, look_s: float) -> tuple[Path, bool]:
    """Follow until the run ends (False) or is resumed (True)."""
    path = run_folder / "events.jsonl"
    events = effective(read_events(path))
    taken = sum(1 for event in events if event["event"] == "run_resumed")
    with TensorBoardWriter(target) as writer:
        fresh = run_folder / f".tensorboard-{os.getpid()}"
        fresh.mkdir(exist_ok=True)
        _swap(fresh, target)
        _take(writer, events)
        while True:
            writing = is_locked(run_folder)
            now = effective(read_events(path))
            if sum(1 for event in now if event["event"] == "run_resumed") != taken:
                return target, True
            _take(writer, now[len(events) :])
            writer.flush()
            events = now
            if not writing:
                return target, False
            time.sleep(look_s)


def _take(writer: TensorBoardWriter, events: Iterable[Event]) -> None:
    for event in events:
        writer(event)


def _folder_name(name: str) -> str:
    """Return a name that is one folder's: a hospital's name comes from elsewhere and may not choose the place.

    >>> _folder_name("hospital-1"), _folder_name("../a")
    ('hospital-1', '%2E.%2Fa')
    """
    quoted = quote(name, safe=" ")[:200]
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


def _swap(fresh: Path, target: Path) -> Path:
    """Put a folder in the place of another one."""
    old = target.with_name(f".{target.name}-old-{os.getpid()}")
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return target


def _seconds(event: Event) -> float | None:
    try:
        return datetime.fromisoformat(str(event.get("time"))).timestamp()
    except ValueError:
        return None
