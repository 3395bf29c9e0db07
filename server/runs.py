"""The runs of a home: which there are, how each stands, and what it has reached. Read only, and quick: no torch.

A run is known by what its folder says. While a server writes it, it holds a lock there (`jointdiff.storage`), and a
process that dies lets go of it: a run without an ending that nobody holds was interrupted.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jointdiff import storage
from jointdiff.config import SITES
from jointdiff.errors import JointDiffError, RunError, nearest
from jointdiff.views.run_data import RunData, load_run, mapping

RUNNING, FINISHED, FAILED, INTERRUPTED, UNREADABLE = "running", "finished", "failed", "interrupted", "unreadable"
ENDED = (FINISHED, FAILED, INTERRUPTED, UNREADABLE)


@dataclass(frozen=True)
class RunSummary:
    """One run in a line. None where it is not known (yet)."""

    name: str
    state: str  # running | finished | failed | interrupted | unreadable
    round: int  # rounds that are evaluated
    num_rounds: int | None
    method: str | None
    dataset: str | None
    num_hospitals: int | None
    auc: float | None  # of the last evaluated round, pooled
    balanced_accuracy: float | None
    started: str  # UTC, ISO 8601
    num_bytes: int  # of all files below the folder
    folder: str  # absolute

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, fit for JSON."""
        return asdict(self)


def home_folder(given: str = "") -> Path:
    """Return the home that the runs lie in, by the rule of `storage.home`; nothing is made or written.

    Raises:
        RunError: A home that was named, here or in the environment, is not there.
    """
    named = given or os.environ.get(storage.HOME_VARIABLE, "")
    folder = Path(os.path.abspath(os.path.expanduser(named or storage.DEFAULT_HOME)))
    if named and not folder.is_dir():
        origin = "--home" if given else storage.HOME_VARIABLE
        raise RunError(f"There is no home folder {folder} ({origin}). Name the folder that holds `runs`.")
    return folder


def run_folders(home: Path) -> list[Path]:
    """Return the folders of all runs; `latest` is only a link, and hidden ones are on their way out."""
    runs = home / "runs"
    if not runs.is_dir():
        return []
    return sorted(p for p in runs.iterdir() if p.is_dir() and not p.is_symlink() and not p.name.startswith("."))


def find_run(home: Path, name: str) -> Path:
    """Return the folder of a run.

    Args:
        name: The run's name, or `latest`.

    Raises:
        RunError: There is no such run; names the nearest one.
    """
    folders = {folder.name: folder for folder in run_folders(home)}
    if name == storage.LATEST:
        name = (home / "runs" / storage.LATEST).resolve().name
    if name in folders:
        return folders[name]
    if not folders:
        raise RunError(f"There is no run '{name}': no run at all lies in {home / 'runs'}. Is it the right --home?")
    raise RunError(f"There is no run '{name}' in {home / 'runs'}: {nearest(name, folders)}")


def state_of(run: RunData, *, writing: bool) -> str:
    """Return how a run stands.

    Args:
        writing: `storage.is_locked`, asked *before* the run was read: a server that ends in between says so in it.
    """
    if writing:
        return RUNNING  # a run that goes on after a failure still has that ending
    return {"run_finished": FINISHED, "run_failed": FAILED}.get(str(run.ending.get("event")), INTERRUPTED)


def how_started(run: RunData) -> str:
    """Return who started a run, and so who can carry it on: simulation | alone | deployment."""
    if run.dataset.get("name") == SITES:
        return "deployment"
    replies = run.replies()
    # `jointdiff train` writes the same events, but there is nobody to send anything to.
    if replies and not any(event.get("bytes_in") or event.get("bytes_out") for event in replies):
        return "alone"
    return "simulation"


def summary(folder: Path) -> RunSummary:
    """Return a run in a line; one that cannot be read says so in its state, and does not hide the others."""
    writing, when, size = storage.is_locked(folder), _changed(folder), num_bytes_below(folder)
    state = RUNNING if writing else INTERRUPTED
    nothing = RunSummary(folder.name, state, 0, None, None, None, None, None, None, when, size, str(folder))
    if not (folder / "events.jsonl").exists():
        return nothing
    try:
        run = load_run(folder)
    except JointDiffError:
        return replace(nothing, state=UNREADABLE)
    pooled = mapping(run.final.get("pooled"))
    return replace(
        nothing,
        state=state_of(run, writing=writing),
        round=int(run.final.get("round") or 0),
        num_rounds=run.num_rounds,
        method=run.run_config.get("method"),
        dataset=run.run_config.get("dataset"),
        num_hospitals=len(run.hospitals) or None,
        auc=pooled.get("auc"),
        balanced_accuracy=pooled.get("balanced_accuracy"),
        started=str(run.started.get("time") or when),
    )


def list_runs(home: Path) -> list[RunSummary]:
    """Return all runs, the newest first."""
    return sorted(map(summary, run_folders(home)), key=lambda run: (run.started, run.name), reverse=True)


def num_bytes_below(folder: Path) -> int:
    """Return the sizes of all files below a folder, added up; links are not followed, what vanishes counts nothing."""
    return sum(_sizes(folder))


def _sizes(folder: Path) -> Iterator[int]:
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                facts = os.lstat(os.path.join(parent, name))
                if stat.S_ISREG(facts.st_mode):
                    yield facts.st_size


def _changed(folder: Path) -> str:
    return datetime.fromtimestamp(folder.stat().st_mtime, UTC).isoformat(timespec="milliseconds")
