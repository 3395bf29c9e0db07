"""A Flower daemon of one run's own: home, loopback port and processes, started, asked and stopped here.

`flwr run` by itself leaves a shared daemon behind, with the directory and environment of whoever ran first, and exits
with 0 for a run that crashed. Here every run has a daemon of its own that ends with it, and the run's true status is
asked for.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jointdiff.errors import RunError
from jointdiff.overrides import to_toml
from simulations.processes import end_with_parent

CONNECTION = "jointdiff"  # the name of our SuperLink in the private Flower home's config.toml
START_TIMEOUT_S = 90.0
COMMAND_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class RunStatus:
    """What the daemon says of a run."""

    status: str  # pending | starting | running | finished:completed | finished:failed | finished:stopped
    details: str  # the cause of a failure; may be empty

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended, well or not."""
        return self.status.startswith("finished")


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
        command = [
            *(sys.executable, "-m", "simulations.guard", self._ray_folder),
            *(_tool("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"),
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
        answer = self._ask("run", str(app), CONNECTION, "--run-config", str(settings), "--federation-config", resources)
        run_id = str(answer["run-id"])
        with open(self.run_log, "wb") as log:
            self._log_stream = subprocess.Popen(
                [_tool("flwr"), "log", run_id, CONNECTION, "--stream"],
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
        """Ask how a run stands; the exit codes of Flower's commands do not tell.

        Raises:
            RunError: The daemon does not know the run, or does not answer.
        """
        runs = self._ask("list", CONNECTION, "--run-id", run_id).get("runs") or []
        if not runs:
            raise RunError(f"Flower's daemon does not know run {run_id} any more. Its log: {self.daemon_log}")
        details = runs[0].get("status-details") or ""
        return RunStatus(status=str(runs[0]["status"]), details="" if details == "N/A" else str(details))

    def _ask(self, *arguments: str) -> dict[str, Any]:
        """Run one `flwr` command and return its JSON answer."""
        try:
            done = subprocess.run(
                [_tool("flwr"), *arguments, "--format", "json"],
                cwd=self.home,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=COMMAND_TIMEOUT_S,
                start_new_session=True,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RunError(f"`flwr {arguments[0]}` does not answer after {COMMAND_TIMEOUT_S:.0f} s.") from None
        answer = _last_json(done.stdout)
        if done.returncode != 0 or not answer.get("success"):
            cause = answer.get("error-message") or done.stderr.strip() or done.stdout.strip() or "no output"
            raise RunError(f"`flwr {arguments[0]}` failed (exit {done.returncode}): {' '.join(str(cause).split())}")
        return answer


def _environment(home: Path, ray_folder: str, extra: Mapping[str, str]) -> dict[str, str]:
    environment = dict(os.environ)
    environment.pop("RAY_ADDRESS", None)  # never join a cluster that is there already
    loopback = ",".join(
        filter(None, (environment.get("NO_PROXY") or environment.get("no_proxy"), "127.0.0.1,localhost"))
    )
    environment.update(
        PATH=os.pathsep.join((str(Path(sys.executable).parent), environment.get("PATH", os.defpath))),
        FLWR_HOME=str(home),
        FLWR_TELEMETRY_ENABLED="0",
        FLWR_DISABLE_UPDATE_CHECK="1",
        RAY_USAGE_STATS_ENABLED="0",
        RAY_TMPDIR=ray_folder,
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="1",
        NO_PROXY=loopback,
        no_proxy=loopback,
        PYTHONUNBUFFERED="1",
    )
    environment.update(extra)
    return environment


def _tool(name: str) -> str:
    """Return the path of a command of this environment; PATH may name another one."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise RunError(f"{path} is missing. Install JointDiff into this environment: pip install -e .")
    return str(path)


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


def _last_json(text: str) -> dict[str, Any]:
    """Return the JSON object in the output of a `flwr` command, which may have lines of prose before it."""
    start = text.find("{")
    if start < 0:
        return {}
    try:
        answer = json.JSONDecoder().raw_decode(text, start)[0]
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
