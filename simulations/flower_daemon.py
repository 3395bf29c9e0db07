"""A Flower daemon of one run's own: home, loopback port and processes, started, asked and stopped here.

`flwr run` by itself leaves a shared daemon behind, with the directory and environment of whoever ran first, and exits
with 0 for a run that crashed. Here every run has a daemon of its own that ends with it, and the run's true status is
asked for.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jointdiff.errors import RunError
from jointdiff.overrides import to_toml
from jointdiff.processes import end_with_parent
from server.deployment.control import Control, RunStatus, flower_environment, last_lines, tool
from server.follow import TASK_ENDED, Tail

CONNECTION = "jointdiff"  # the name of our SuperLink in the private Flower home's config.toml
START_TIMEOUT_S = 90.0


class FlowerDaemon:
    """A SuperLink in simulation mode, and everything that it starts. Use as a context manager."""

    def __init__(self, flower_home: Path, *, extra_environment: Mapping[str, str] | None = None) -> None:
        """Prepare; nothing is started before the `with`.

        Args:
            flower_home: A folder of this daemon's own, made if needed (FLWR_HOME).
            extra_environment: Set for the daemon and all that it starts.
        """
        self.home = flower_home
        self.daemon_log = flower_home / "superlink.log"
        self.run_log = flower_home / "run.log"
        self._extra_environment = dict(extra_environment or {})
        self._control: Control | None = None
        self._log_lines = Tail(self.daemon_log)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_stream: subprocess.Popen[bytes] | None = None
        self._ray_folder = ""
        self._environment: dict[str, str] = {}

    def __enter__(self) -> FlowerDaemon:
        """Start the daemon and wait until it answers.

        Raises:
            RunError: It ended at once, or does not answer in time.
        """
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            # Ray puts sockets there and a socket's path holds about 100 characters: the home may be too deep.
            self._ray_folder = tempfile.mkdtemp(prefix="jointdiff-ray-", dir="/tmp")
            self._environment = _environment(self.home, self._ray_folder, self._extra_environment)
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the daemon and every process that it started, whatever their state."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()  # the guard takes this as its order
            self._process.wait()
        if self._log_stream is not None:
            self._log_stream.kill()
            self._log_stream.wait()
        shutil.rmtree(self._ray_folder, ignore_errors=True)

    def _start(self) -> None:
        port = _free_port()
        address = f"127.0.0.1:{port}"
        (self.home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
            f'address = "{address}"\ninsecure = true\n',
            encoding="utf-8",
        )
        self._control = Control(self.home, self._environment, CONNECTION)
        command = [
            *(sys.executable, "-m", "simulations.guard", self._ray_folder),
            *(tool("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"),
            # Sites run what they installed: no index is asked at run time, so a run works offline.
            *("--disable-runtime-dependency-installation", "--host", "127.0.0.1", "--port", str(port)),
        ]
        with open(self.daemon_log, "wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.home,
                env=self._environment,
                stdin=subprocess.PIPE,  # held open; the guard ends everything when it closes
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal reaches the launcher alone, which then stops us
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(f"http://{address}/health"):
            if (code := self.exit_code()) is not None:
                raise RunError(f"Flower's daemon ended with code {code} at its start. Its log: {self.daemon_log}")
            if time.monotonic() > deadline:
                raise RunError(f"Flower's daemon does not answer after {START_TIMEOUT_S:.0f} s: {self.daemon_log}")
            time.sleep(0.1)

    def exit_code(self) -> int | None:
        """Return the exit code of a daemon that has ended, None while it runs."""
        return self._process.poll() if self._process else None

    def submit(self, app: Path, run_config: Mapping[str, Any], federation: Mapping[str, float]) -> str:
        """Start a run and return its id.

        Args:
            app: Folder of the Flower app.
            run_config: Overrides of the app's [tool.flwr.app.config].
            federation: Overrides of Flower's simulation settings, e.g. num-supernodes.

        Raises:
            RunError: Flower refuses it.
        """
        settings = self.home / "run-config.toml"
        settings.write_text(to_toml(run_config), encoding="utf-8")
        resources = " ".join(f"{key}={value}" for key, value in federation.items())
        assert self._control is not None
        run_id = self._control.submit(app, "--run-config", str(settings), "--federation-config", resources)
        with open(self.run_log, "wb") as log:
            self._log_stream = subprocess.Popen(
                [tool("flwr"), "log", run_id, CONNECTION, "--stream"],
                cwd=self.home,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        return run_id

    def status(self, run_id: str) -> RunStatus:
        """Ask how a run stands.

        Raises:
            RunError: The daemon does not know the run, or does not answer.
        """
        assert self._control is not None
        return self._control.status(run_id)

    def trouble(self) -> str:
        """Return why no run can end any more: the daemon is gone; '' while it runs."""
        code = self.exit_code()
        return "" if code is None else f"Flower's daemon ended with code {code} before the run did."

    def has_news(self) -> bool:
        """Say whether the daemon has logged since the last look that a task has ended."""
        return any(TASK_ENDED.search(line) for line in self._log_lines.lines())

    def last_lines(self, run_id: str) -> tuple[str, ...]:
        """Return the end of the run's log."""
        time.sleep(0.5)  # the log reaches us through two processes
        return last_lines(self.run_log.read_text(encoding="utf-8", errors="replace")) if self.run_log.exists() else ()


def _environment(home: Path, ray_folder: str, extra: Mapping[str, str]) -> dict[str, str]:
    environment = flower_environment(home)
    environment.pop("RAY_ADDRESS", None)  # never join a cluster that is there already
    environment.update(
        RAY_USAGE_STATS_ENABLED="0",
        RAY_TMPDIR=ray_folder,
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="1",
    )
    environment.update(extra)
    return environment


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False
