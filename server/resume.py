"""Carry on a run that stopped: may it, and by which command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from jointdiff import storage
from jointdiff.errors import RunError
from jointdiff.views.run_data import load_run
from server import runs


def check_resumable(folder: Path) -> str:
    """Return how the run was started: simulation | deployment.

    Raises:
        RunError: It goes on already, has finished, or was one site alone.
    """
    writing, name = storage.is_locked(folder), folder.name
    run = load_run(folder)
    state, started = runs.state_of(run, writing=writing), runs.how_started(run)
    if state == runs.RUNNING:
        raise RunError(f"The run '{name}' is still running: there is nothing to resume.")
    if state == runs.FINISHED:
        report = folder / "report.html"
        raise RunError(f"The run '{name}' has finished: there is nothing to resume. Its report: {report}")
    if started == "alone":
        raise RunError(f"The run '{name}' was one site alone (`jointdiff train`), which cannot be resumed: train anew.")
    return started


def launch(folder: Path, run_config: Sequence[str]) -> int:
    """Carry on a simulation to its end and return the launcher's exit status.

    The server's packages may not import the launcher's, which knows both sides: hence a process.
    """
    command = [sys.executable, "-m", "simulations.launch", "--resume", folder.name]
    for text in run_config:
        command += ["--run-config", text]
    return call(command, home=folder.parent.parent)


def call(command: Sequence[str], *, home: Path) -> int:
    """Run a command to its end and return its exit status as a shell would; it stops by itself when we are asked to."""
    process: subprocess.Popen[bytes] | None = None

    def hand_on(number: int, _: FrameType | None) -> None:
        if process is not None:
            process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        sys.stdout.flush()
        process = subprocess.Popen(command, env={**os.environ, storage.HOME_VARIABLE: str(home)})
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
