"""Flower's own command `flwr`, asked for JSON: submit a run, ask how it stands, stop it.

Its exit codes do not tell how a run ended, so the answers are read. Each question costs a Python process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jointdiff.errors import RunError

COMMAND_TIMEOUT_S = 120.0
_LOG_S = 20.0  # for `flwr log --show`, which may wait for a stream that has nothing to say
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class RunStatus:
    """What the SuperLink says of a run."""

    status: str  # pending | starting | running | finished:completed | finished:failed | finished:stopped
    details: str  # the cause of a failure; may be empty

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended, well or not."""
        return self.status.startswith("finished")


class Control:
    """Asks one SuperLink through its Control API."""

    def __init__(self, flower_home: Path, environment: Mapping[str, str], connection: str) -> None:
        """Remember where to ask.

        Args:
            flower_home: FLWR_HOME of the commands: its config.toml says where the SuperLink is.
            environment: Of the commands, as `flower_environment` makes it.
            connection: The SuperLink's name in config.toml.
        """
        self.home = flower_home
        self.connection = connection
        self.environment = dict(environment)

    def submit(self, app: Path, *arguments: str) -> str:
        """Start a run of the Flower app in a folder and return the run's id.

        Raises:
            RunError: Flower refuses it.
        """
        return str(self.ask("run", str(app), self.connection, *arguments)["run-id"])

    def status(self, run_id: str) -> RunStatus:
        """Ask how a run stands; the exit codes of Flower's commands do not tell.

        Raises:
            RunError: The SuperLink does not know the run, or does not answer.
        """
        runs = self.ask("list", self.connection, "--run-id", run_id).get("runs") or []
        if not runs:
            raise RunError(f"Flower's SuperLink does not know run {run_id} any more.")
        details = runs[0].get("status-details") or ""
        return RunStatus(status=str(runs[0]["status"]), details="" if details == "N/A" else str(details))

    def unfinished(self) -> list[str]:
        """Return the ids of the runs that have not ended; raises as `status`."""
        runs = self.ask("list", self.connection).get("runs") or []
        return [str(run["run-id"]) for run in runs if not str(run.get("status", "")).startswith("finished")]

    def stop(self, run_id: str) -> None:
        """Stop a run; raises as `status`."""
        self.ask("stop", run_id, self.connection)

    def last_lines(self, run_id: str, count: int = 20) -> tuple[str, ...]:
        """Return the end of what a run's ServerApp has logged; () where it cannot be had."""
        command = [tool("flwr"), "log", run_id, self.connection, "--show"]
        try:
            done = self._call(command, timeout=_LOG_S)
        except subprocess.TimeoutExpired:
            return ()
        return last_lines(done.stdout, count) if done.returncode == 0 else ()

    def ask(self, *arguments: str) -> dict[str, Any]:
        """Run one `flwr` command and return its JSON answer.

        Raises:
            RunError: It failed, or did not answer in time.
        """
        name = arguments[0]
        try:
            done = self._call([tool("flwr"), *arguments, "--format", "json"], timeout=COMMAND_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise RunError(f"`flwr {name}` does not answer after {COMMAND_TIMEOUT_S:.0f} s.") from None
        answer = last_json(done.stdout)
        if done.returncode != 0 or not answer.get("success"):
            cause = answer.get("error-message") or done.stderr.strip() or done.stdout.strip() or "no output"
            raise RunError(f"`flwr {name}` failed (exit {done.returncode}): {' '.join(str(cause).split())}")
        return answer

    def _call(self, command: Sequence[str], *, timeout: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.home,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            start_new_session=True,  # Ctrl-C in the terminal is for us
            check=False,
        )


def flower_environment(flower_home: Path) -> dict[str, str]:
    """Return the environment of every Flower process that we start: its home, our commands first, quiet, no proxy."""
    environment = dict(os.environ)
    loopback = ",".join(
        filter(None, (environment.get("NO_PROXY") or environment.get("no_proxy"), "127.0.0.1,localhost"))
    )
    environment.update(
        PATH=os.pathsep.join((str(Path(sys.executable).parent), environment.get("PATH", os.defpath))),
        FLWR_HOME=str(flower_home),
        FLWR_TELEMETRY_ENABLED="0",
        FLWR_DISABLE_UPDATE_CHECK="1",
        NO_PROXY=loopback,
        no_proxy=loopback,
        PYTHONUNBUFFERED="1",
    )
    return environment


def tool(name: str) -> str:
    """Return the path of a command of this environment; PATH may name another one.

    Raises:
        RunError: It is not installed.
    """
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise RunError(f"{path} is missing. Install JointDiff into this environment: pip install -e .")
    return str(path)


def last_lines(log: str, count: int = 20) -> tuple[str, ...]:
    """Return the last lines of a log that are not empty, without colours."""
    lines = [_COLOURS.sub("", line).rstrip() for line in log.splitlines()]
    return tuple([line for line in lines if line][-count:])


def last_json(text: str) -> dict[str, Any]:
    """Return the JSON object in the output of a `flwr` command, which may have lines of prose before it."""
    start = text.find("{")
    if start < 0:
        return {}
    try:
        answer = json.JSONDecoder().raw_decode(text, start)[0]
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
