"""Flower's SuperNode, started from site.yaml and kept running: restarted, waited for, its troubles put into words."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from client import clientapp_process, diagnosis, keys, site_process
from client.connection import ConnectionProblem
from client.site_config import FederationAddress, SiteConfig
from client.site_process import Journal
from jointdiff import certificate_checks, processes, storage
from jointdiff.errors import ConfigError, RunError

IDENTITY_WAIT_S = 75.0  # Flower counts a killed node as online for about 60 s and refuses its return until then
_FIRST_WAIT_S, _LONGEST_WAIT_S = 5.0, 60.0
_GRACE_S = 20.0  # between asking a SuperNode to end and killing it
_NUM_KEPT = 400  # lines of a SuperNode's output
_NUM_TOLD = 20  # last lines of a SuperNode that ended for no known cause
_DIAGNOSIS_S = 60.0  # the same trouble is looked into no more often
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_CONNECTED = re.compile(r"SuperNode ID: (\d+)")
_AGAIN = re.compile(r"Connection successful after")
_FAILED = re.compile(r"Connection attempt failed")
_NOISE = re.compile(r"^INFO:\s{5}|^\s*$|FastAPI lifespan|Starting Flower Super|terminated gracefully")


def check_ready(config: SiteConfig) -> FederationAddress:
    """Return the address of the federation if everything is there that a start needs.

    Raises:
        ConfigError: site.yaml names no federation or no data, or key or certificate are no good; says what to do.
    """
    if config.federation is None or config.data is None:
        what = "federation" if config.federation is None else "data"
        there = config.path.exists()
        raise ConfigError(
            f"{config.path} {f'has no section `{what}`' if there else 'is missing'}, so this site cannot join: "
            + ("configs/site.example.yaml shows its form." if there else "`jointdiff-client init` writes it.")
        )
    keys.load_private(config.federation.key)
    certificate_checks.read(config.federation.ca)
    return config.federation


def command_line(address: FederationAddress, port: int) -> list[str]:
    """Return the command that starts Flower's SuperNode.

    Args:
        port: Of its own interface to the ClientApp, on this machine alone.
    """
    return [
        _tool("flower-supernode"), "--superlink", address.server, "--root-certificates", str(address.ca),
        "--auth-supernode-private-key", str(address.key), "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip


def environment(config: SiteConfig) -> dict[str, str]:
    """Return the environment of the SuperNode: from it the ClientApp's processes find this site's home."""
    own = clientapp_process.install(config.folder / "flower" / "bin")
    return {
        **os.environ,
        storage.HOME_VARIABLE: str(config.folder),
        "FLWR_HOME": str(config.folder / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": os.pathsep.join([str(own), str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONUNBUFFERED": "1",
    }


class Supervisor:
    """Keeps one SuperNode running until it is asked to stop."""

    def __init__(
        self, config: SiteConfig, *, echo: Callable[[str], None] | None = None, identity_wait_s: float = IDENTITY_WAIT_S
    ) -> None:
        """Prepare; `run` starts.

        Args:
            echo: Takes every line of the log.
            identity_wait_s: How long to wait where Flower counts this site as online still.

        Raises:
            ConfigError: As `check_ready`.
        """
        self.address = check_ready(config)
        self.config = config
        self.stopping = threading.Event()
        self._echo = echo
        self._identity_wait_s = identity_wait_s
        self._last_lines: deque[str] = deque(maxlen=_NUM_KEPT)
        self._looked_at = -_DIAGNOSIS_S

    def run(self) -> None:
        """Start, watch and restart until `stopping` is set.

        Raises:
            RunError: Another supervisor runs for this site, or Flower is not installed.
        """
        with site_process.held(self.config.folder):
            self.journal = Journal(self.config.folder, self._echo)
            for warning in keys.warnings(self.address.key):
                self.journal.say(f"Warning: {warning}")
            self.journal.say(f"Starting Flower's SuperNode for {self.address.server}.")
            wait_s = _FIRST_WAIT_S
            while not self.stopping.is_set():
                began = time.monotonic()
                code = self._one_life()
                if self.stopping.is_set():
                    break
                problem = self._why(code)
                if time.monotonic() - began > 5 * _LONGEST_WAIT_S:
                    wait_s = _FIRST_WAIT_S
                pause_s = self._identity_wait_s if problem and problem.cause == "identity" else wait_s
                self.journal.say(f"The next attempt is in {pause_s:.0f} s.")
                if not self.stopping.wait(pause_s):
                    self.journal.update(restarts=self.journal.standing.restarts + 1)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
            self.journal.update(connected=False)
            self.journal.say("Stopped.")

    def _one_life(self) -> int:
        """Run one SuperNode until it ends, or until it is asked to; return its exit code."""
        self._last_lines.clear()
        try:
            child = subprocess.Popen(
                command_line(self.address, _free_port()), env=environment(self.config), cwd=self.config.folder,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                errors="replace", start_new_session=True, preexec_fn=processes.end_with_parent, umask=0o077,
            )  # fmt: skip
        except OSError as error:
            raise RunError(f"Flower's SuperNode cannot be started: {error.strerror or error}.") from None
        reader = threading.Thread(target=self._read, args=(child,), daemon=True)
        reader.start()
        while child.poll() is None and not self.stopping.wait(0.3):
            pass
        if child.poll() is None:
            child.terminate()  # it alone, so that it takes leave of the federation; what it leaves is ended below
            try:
                child.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                child.kill()
        code = child.wait()
        processes.end_all(lambda: processes.group_members(child.pid), grace_s=2.0)
        reader.join(5.0)
        if self.journal.standing.connected:
            self.journal.update(connected=False, last_contact=site_process.now())
        return code

    def _read(self, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        for raw in child.stdout:
            line = _COLOURS.sub("", raw).rstrip()
            self._last_lines.append(line)
            if match := _CONNECTED.search(line):
                self._hear(node_id=match[1])
            elif _AGAIN.search(line):
                self._hear()
            elif _FAILED.search(line):
                self._look(line)
            elif self.journal.standing.connected and not _NOISE.search(line):
                self.journal.say(f"flower: {line}")

    def _hear(self, **changes: str) -> None:
        self._looked_at = -_DIAGNOSIS_S
        self.journal.update(connected=True, last_contact=site_process.now(), **changes)
        self.journal.say(f"Connected to {self.address.server}.")

    def _look(self, line: str) -> None:
        """Find out why an attempt failed: Flower does not say."""
        if self.stopping.is_set() or time.monotonic() - self._looked_at < _DIAGNOSIS_S:
            return
        self._looked_at = time.monotonic()
        if self.journal.standing.connected:
            self.journal.update(connected=False, last_contact=site_process.now())
        problem = diagnosis.diagnose(self.address)
        if problem is None:
            self.journal.say(f"flower: {line}")
        else:
            self._tell(problem)

    def _why(self, code: int) -> ConnectionProblem | None:
        """Say why the SuperNode ended, and return the cause if it is one of the connection."""
        lines = list(self._last_lines)
        problem = diagnosis.diagnose(self.address) or diagnosis.from_output(lines, self.address)
        if problem is None and code == -signal.SIGKILL and any(_CONNECTED.search(line) for line in lines):
            problem = ConnectionProblem("identity", self.address)  # it took no leave: Flower refuses it for a while
        if problem is not None:
            self._tell(problem)
            return problem
        for line in lines[-_NUM_TOLD:]:
            self.journal.say(f"flower: {line}")
        end = f"by signal {-code}" if code < 0 else f"with code {code}"
        self._tell_text("ended", f"Flower's SuperNode ended {end}.", "It is started again.")
        return None

    def _tell(self, problem: ConnectionProblem) -> None:
        self._tell_text(problem.cause, problem.text, problem.remedy)

    def _tell_text(self, cause: str, text: str, remedy: str) -> None:
        self.journal.update(problem={"time": site_process.now(), "cause": cause, "text": text, "remedy": remedy})
        self.journal.say(f"{text} {remedy}")


def _tool(name: str) -> str:
    """Return the path of a Flower command: the one beside this Python, else the one on PATH.

    Raises:
        RunError: There is none.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise RunError(f"The command {name} is missing: install JointDiff with `pip install -e .` in this environment.")
    return found


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
