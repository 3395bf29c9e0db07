"""How long runs take, learned from those that have finished: seconds per step, of the most similar runs there are.

Measured on whatever machine and beside whatever else was running then: an estimate, not a promise.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path

from jointdiff.config import Config, RunConfig
from jointdiff.errors import JointDiffError
from jointdiff.study_summary import FINISHED
from simulations import named_run
from simulations.study.plan import PlannedRun

_MAX_RUNS = 200  # the newest of a home that are looked at


class Timings:
    """Seconds per step by likeness: same method and preset, same method, same network and batch."""

    def __init__(self) -> None:
        self._rates: dict[Hashable, list[float]] = {}

    def add(self, run: RunConfig, work: int, seconds: float | None) -> None:
        """Take in a finished run.

        Args:
            work: Steps of all hospitals together.
        """
        if work and seconds:
            for key in _likeness(run):
                self._rates.setdefault(key, []).append(seconds / work)

    def seconds(self, one: PlannedRun) -> float | None:
        """Return how long a run will take, None where nothing like it has run yet."""
        if not one.work:
            return 1.0
        for key in _likeness(one.run):
            if key in self._rates:
                return one.work * statistics.median(self._rates[key])
        return None

    def total(self, planned: Iterable[PlannedRun], workers: int) -> float | None:
        """Return how long these take with so many at a time, None where one of them cannot be known."""
        parts = [self.seconds(one) for one in planned]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        return max(sum(known) / workers, max(known, default=0.0))


def learn(planned: Iterable[PlannedRun], home: Path) -> Timings:
    """Return the timings of a home's finished runs, those of the study itself first of all."""
    timings = Timings()
    own = set()
    for one in planned:
        own.add(one.row.run)
        if one.row.status == FINISHED:
            timings.add(one.run, one.work, one.row.seconds)
    for folder in _newest(home / "runs"):
        if folder.name not in own:
            with contextlib.suppress(JointDiffError, KeyError, TypeError, ValueError, OSError):
                if named_run.state_of(folder) == named_run.FINISHED:
                    config, result = named_run.config_of(folder), named_run.result_of(folder)
                    timings.add(config.run, result.steps * _num_trained(config, folder), result.seconds)
    return timings


def _num_trained(config: Config, folder: Path) -> int:
    """Return in how many places at a time a run trained: one where somebody was alone, else all that a round asked."""
    return config.run.num_asked if (folder / "sites").is_dir() else 1


def _newest(runs: Path) -> Iterator[Path]:
    if runs.is_dir():
        folders = [path for path in runs.iterdir() if path.is_dir() and not path.is_symlink()]
        yield from sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)[:_MAX_RUNS]


def _likeness(run: RunConfig) -> list[Hashable]:
    size = (run.model, run.image_size, run.batch_size, run.device, bool(run.target_epsilon or run.noise_multiplier))
    preset = Path(run.preset).name
    return [(run.dataset, run.method, preset, *size), (run.method, *size), size]
