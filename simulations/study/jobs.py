"""Carry out one planned run, in whatever process this is called."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jointdiff import storage
from jointdiff.config import RunConfig, to_mapping
from jointdiff.errors import RunError
from jointdiff.overrides import to_toml
from jointdiff.study_summary import CENTRALISED, LOCAL_ONLY
from simulations import baselines
from simulations.method_choice import PIXELS
from simulations.named_run import Result, run_named
from simulations.pixels import run_pixels
from simulations.study.plan import PlannedRun, runner_of_flower

Listener = Callable[[dict[str, Any]], None]
_LAST_LINES = 3  # of a simulation's log, where it fails


def carry_out(one: PlannedRun, folder: Path, listener: Listener | None = None) -> Result:
    """Return the result of a planned run: read where it has finished before, else run.

    Args:
        folder: Of the study: pixels/ holds the results of runs without a folder, logs/ what simulations print.
        listener: Called with every event of a run in this process.

    Raises:
        JointDiffError: The run failed.
    """
    row = one.row
    if one.kind == PIXELS:
        path = folder / "pixels" / f"{row.run}.json"
        with contextlib.suppress(RunError, TypeError):  # not there, or damaged: it takes a moment
            return Result(**storage.read_json(path))
        result = run_pixels(one.run)
        storage.write_json(path, asdict(result))
        return result
    if row.place == CENTRALISED:
        return run_named(one.run, lambda run: baselines.train_centralised(run, listener), resumable=False)
    if row.place == LOCAL_ONLY:
        hospital = row.hospital - 1
        return run_named(one.run, lambda run: baselines.train_hospital(run, hospital, listener), resumable=False)
    if runner_of_flower(one):
        return run_named(one.run, lambda run: _through_flower(run, folder / "logs" / f"{row.run}.log"))
    from simulations.local import run_local

    return run_named(one.run, lambda run: run_local(run, listener))


def _through_flower(run: RunConfig, log: Path) -> None:
    """Run `jointdiff-simulate` to its end; it ends with this process."""
    if run.resume:
        command = ["--resume", run.run_name, "--run-config", f'home="{run.home}"']
    else:
        text = " ".join(line.replace(" = ", "=", 1) for line in to_toml(to_mapping(run)).splitlines())
        command = ["3_hospitals", "--run-config", text]
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "simulations.launch", *command], stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
        try:
            code = process.wait()
        except BaseException:
            process.terminate()  # it stops Flower's daemon and all hospitals, and says how to go on
            process.wait()
            raise
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise RunError(f"{' '.join(lines[-_LAST_LINES:]) or 'no word'} (exit code {code}; log: {log})")


def waiting_row(one: PlannedRun, status: str, reason: str) -> PlannedRun:
    """Return a planned run that has not finished, and why."""
    return replace(one, row=replace(one.row, status=status, reason=reason))


def finished_row(one: PlannedRun, result: Result, status: str) -> PlannedRun:
    """Return a planned run with its result."""
    return replace(one, row=replace(one.row, status=status, **asdict(result)))
