"""Remove old runs and give their disk space back.

A run is renamed to a hidden name first and deleted then, so that nobody ever meets half a run; what a stopped removal
left behind goes with the next one. A run that a server writes, or whose Flower daemon lives, is never touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from jointdiff import storage
from jointdiff.errors import RunError
from server.runs import RUNNING, RunSummary, list_runs, num_bytes_below

_HIDDEN = ".pruned-"


@dataclass(frozen=True)
class Compacted:
    """What became of Flower's databases."""

    num_files: int
    num_bytes: int  # freed
    skipped: tuple[str, ...]  # one line each: which and why


def choose(
    runs: Sequence[RunSummary],
    *,
    now: datetime,
    latest: str = "",
    names: Collection[str] = (),
    keep: int = 0,
    older_than_days: float = 0.0,
    states: Collection[str] = (),
) -> list[RunSummary]:
    """Return the runs to remove. Pure. All conditions must hold; one that is empty or 0 asks for nothing.

    Args:
        runs: All of them, the newest first.
        now: With its time zone.
        latest: Name of the run that runs/latest points at: spared unless `names` has it.
        names: Only these.
        keep: Spare the newest so many of all runs.
        older_than_days: Only runs that started longer ago.
        states: Only runs in one of these states. One that is running is always spared.
    """
    limit = now - timedelta(days=older_than_days)
    return [
        run
        for place, run in enumerate(runs)
        if run.state != RUNNING
        and place >= keep
        and (run.name in names if names else run.name != latest)
        and (not states or run.state in states)
        and (not older_than_days or datetime.fromisoformat(run.started) < limit)
    ]


def parts_of(home: Path, name: str) -> list[Path]:
    """Return the folders that belong to a run: its own, and Flower's logs of it."""
    return [folder for folder in (home / "runs" / name, home / "flower" / name) if folder.is_dir()]


def remove(home: Path, name: str) -> int:
    """Remove a run and return how many bytes it had.

    Raises:
        RunError: The run is in use, or a file cannot be deleted.
    """
    parts = parts_of(home, name)
    for part in parts:
        if part.parent.name == "flower" and in_use(part):
            raise RunError(f"The run '{name}' is in use: a process, perhaps Flower's daemon, still works in {part}.")
    size = sum(map(num_bytes_below, parts))
    try:
        with storage.run_locked(home / "runs" / name):  # a server that wants to carry it on is refused meanwhile
            hidden = [part.rename(part.with_name(f"{_HIDDEN}{name}-{os.getpid()}")) for part in parts]
        point_latest(home)
        for folder in hidden:
            shutil.rmtree(folder)
    except OSError as error:
        raise RunError(
            f"The run '{name}' cannot be removed whole: {error.strerror or error}: {error.filename}. "
            "Mend that and call prune again; it goes on where it stopped."
        ) from error
    return size


def sweep(home: Path) -> int:
    """Delete what an earlier removal that was stopped has left; return how many bytes that was."""
    left = [path for place in ("runs", "flower") for path in (home / place).glob(f"{_HIDDEN}*")]
    size = sum(map(num_bytes_below, left))
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    return size


def point_latest(home: Path) -> None:
    """Point runs/latest at the newest run that is left, where the one it pointed at is gone."""
    link = home / "runs" / storage.LATEST
    if not link.is_symlink() or link.exists():
        return
    left = list_runs(home)
    with contextlib.suppress(OSError):
        link.unlink()
        if left:
            link.symlink_to(left[0].name, target_is_directory=True)


def compact(home: Path) -> Compacted:
    """Let SQLite give back the space that Flower's databases (state.db) no longer need; they never shrink alone."""
    count, freed, skipped = 0, 0, []
    for path in sorted(path for part in ("flower", "federation") for path in (home / part).rglob("state.db")):
        before = _size(path)
        try:
            if in_use(path.parent):
                raise sqlite3.OperationalError("a Flower daemon uses it")
            with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=0)) as database:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                database.execute("VACUUM")
        except sqlite3.Error as error:
            skipped.append(f"{path}: {error}")
            continue
        count, freed = count + 1, freed + before - _size(path)
    return Compacted(count, freed, tuple(skipped))


def _size(database: Path) -> int:
    """Return the bytes of a database and of the write-ahead log beside it."""
    return sum(path.stat().st_size for path in database.parent.glob(f"{database.name}*"))


def in_use(folder: Path) -> bool:
    """Tell whether a process works in this folder or holds a file below it open, as far as this user may look."""
    inside = f"{os.path.realpath(folder)}{os.sep}"
    return any(f"{path}{os.sep}".startswith(inside) for path in _held(Path("/proc").glob("[0-9]*")))


def _held(processes: Iterable[Path]) -> Iterator[str]:
    for process in processes:
        with contextlib.suppress(OSError):  # ended meanwhile, or of another user
            yield os.readlink(process / "cwd")
            for handle in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    yield os.readlink(handle)
