"""A whole federation for the tests: one coordinator and its sites, by their commands alone, on this machine.

Real processes, real TLS, a front door; every site has a home of its own, and everything is stopped at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from jointdiff.events import read_events

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Party:
    """A coordinator or a site: a home, and the command that it types."""

    command: str  # jointdiff-server | jointdiff-client
    home: Path

    def environment(self) -> dict[str, str]:
        return {
            **os.environ, "JOINTDIFF_HOME": str(self.home), "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1,localhost",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(BIN / self.command), *words], env=self.environment(), cwd=self.home, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, *words: str, seconds: float = 180) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / self.command), *words], env=self.environment(), cwd=self.home, capture_output=True, text=True,
            timeout=seconds, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def do(self, *words: str, seconds: float = 180) -> str:
        """Run a command that must succeed, and return what it printed."""
        done = self.run(*words, seconds=seconds)
        assert done.returncode == 0, f"{self.command} {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout


@dataclass
class Federation:
    """A coordinator whose federation is up, and the sites that were let in."""

    server: Party
    port: int
    superlink_port: int
    sites: dict[str, Party] = field(default_factory=dict)

    def site(self, name: str, *answers: str) -> Party:
        """Make a site's home, its site.yaml and its keys; nobody has let it in yet."""
        site = Party("jointdiff-client", self.server.home.parent / name)
        site.home.mkdir()
        (site.home / "ca.crt").write_bytes((self.server.home / "federation" / "ca.crt").read_bytes())
        site.do("init", f"server=localhost:{self.port}", *answers)
        site.do("keygen")
        self.sites[name] = site
        return site

    def admit(self, name: str) -> None:
        self.server.do("admit", name, str(self.sites[name].home / "site.pub"))

    def events(self, run_name: str) -> list[dict[str, Any]]:
        path = self.server.home / "runs" / run_name / "events.jsonl"
        return read_events(path) if path.exists() else []

    def wait_for(self, run_name: str, wanted: Callable[[dict[str, Any]], bool], seconds: float) -> list[dict[str, Any]]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            events = self.events(run_name)
            if any(wanted(event) for event in events):
                return events
            time.sleep(1)
        told = [(e["event"], e.get("round")) for e in self.events(run_name)][-15:]
        pytest.fail(f"not within {seconds:.0f} s; events so far: {told}\n{self.server.run('status').stdout}")

    def connected(self) -> dict[str, bool]:
        found = json.loads(self.server.run("status", "--json").stdout)
        return {name: state == "connected" for name, state in found["hospitals"].items()}

    def wait_until_connected(self, *names: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not all(self.connected().get(name) for name in names):
            if time.monotonic() > deadline:
                logs = [self.sites[name].run("status").stdout for name in names]
                pytest.fail(f"not connected within {seconds:.0f} s: {self.connected()}\n" + "\n".join(logs))
            time.sleep(2)


@contextlib.contextmanager
def federation(folder: Path) -> Iterator[Federation]:
    """Start a coordinator in `folder`/coordinator; stop it and every site at the end."""
    server = Party("jointdiff-server", folder / "coordinator")
    server.home.mkdir(parents=True)
    server.do("certificates", "init", "--name", "Test federation")
    server.do("certificates", "issue-server", "localhost")
    found = Federation(server, free_port(), free_port())
    try:
        server.do(
            "start", "--host", "127.0.0.1", "--port", str(found.port), "--superlink-port", str(found.superlink_port)
        )
        yield found
    finally:
        for site in found.sites.values():
            site.run("stop")
        server.run("stop", "--force")
