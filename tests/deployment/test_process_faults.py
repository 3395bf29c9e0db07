"""Real processes: a SuperLink and three SuperNodes, whose ClientApps are killed, hang, and whose node dies.

Minutes, since Flower starts a Python process for every message: `pytest -m slow tests/deployment`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jointdiff.config import to_mapping
from jointdiff.events import read_events
from jointdiff.overrides import to_toml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
TIMEOUT_S = 60
BIN = Path(sys.executable).parent

# The real ClientApp behind a fault: in round 1 one process is killed, in round 2 another one hangs.
FAULTY_CLIENT = f"""
import json, os, signal, time
from flwr.clientapp import ClientApp
from client import app as real

app = ClientApp()

def _answer(message, context, kind):
    asked = json.loads(str(message.content["instructions"]["json"]))
    at = (asked["round"], asked["hospital"], kind)
    if at == (1, "hospital-1", "train"):
        os.kill(os.getpid(), signal.SIGKILL)
    if at == (2, "hospital-2", "train"):
        time.sleep({2 * TIMEOUT_S})
    return real._answer(message)

@app.train()
def train(message, context):
    return _answer(message, context, "train")

@app.evaluate()
def evaluate(message, context):
    return _answer(message, context, "evaluate")

@app.query("describe")
def describe(message, context):
    return _answer(message, context, "describe")

@app.query("head")
def head(message, context):
    return _answer(message, context, "head")
"""
APP = """
[project]
name = "process-faults"
version = "0.1.0"
description = "Faults of real processes"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "jointdiff"
[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "faulty_client:app"
[tool.flwr.app.config]
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def processes(home: Path) -> Iterator[tuple[dict[str, subprocess.Popen[bytes]], dict[str, str]]]:
    """Start a SuperLink and three SuperNodes; stop them with everything that they started."""
    ports = {name: free_port() for name in ("runtime", "one", "two", "three")}
    environment = {
        **os.environ, "FLWR_HOME": str(home / "flower"), "PYTHONPATH": str(home), "OMP_NUM_THREADS": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "NO_PROXY": "127.0.0.1,localhost",
    }  # fmt: skip
    (home / "flower").mkdir()
    address = f"127.0.0.1:{ports['runtime']}"
    connection = f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{address}"\ninsecure = true\n'
    (home / "flower" / "config.toml").write_text(connection)
    running: dict[str, subprocess.Popen[bytes]] = {}

    def start(name: str, *command: str) -> None:
        with open(home / f"{name}.log", "wb") as log:
            running[name] = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]], env=environment, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, cwd=home,
            )  # fmt: skip

    try:
        start("superlink", "flower-superlink", "--insecure", "--disable-runtime-dependency-installation",
              "--host", "127.0.0.1", "--port", str(ports["runtime"]))  # fmt: skip
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", ports["runtime"]), 1):
                break
            time.sleep(0.2)
        for name in ("one", "two", "three"):
            start(name, "flower-supernode", "--insecure", "--superlink", address, "--port", str(ports[name]))
        yield running, environment
    finally:
        for process in running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(path: Path, wanted, seconds: float) -> list[dict]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        events = read_events(path) if path.exists() else []
        if any(wanted(event) for event in events):
            return events
        time.sleep(1)
    pytest.fail(f"not within {seconds:.0f} s; events so far: {[(e['event'], e.get('round')) for e in events][-20:]}")


def test_killed_hanging_and_dead_processes_cost_their_rounds_and_are_named(tiny_run, tmp_path):
    run = tiny_run(
        num_rounds=3, num_labels=0, local_steps=1, round_timeout_s=TIMEOUT_S, round_retries=1, min_hospitals=1,
        home=str(tmp_path / "home"), run_name="faults",
    )  # fmt: skip
    app = tmp_path / "app"
    app.mkdir()
    (app / "pyproject.toml").write_text(APP + to_toml(to_mapping(run)))
    (tmp_path / "faulty_client.py").write_text(FAULTY_CLIENT)
    events_path = tmp_path / "home" / "runs" / "faults" / "events.jsonl"
    with processes(tmp_path) as (running, environment):
        time.sleep(10)  # three nodes connect
        answer = subprocess.run(
            [str(BIN / "flwr"), "run", str(app), "here", "--format", "json"],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert json.loads(answer.stdout[answer.stdout.index("{") :])["success"], answer.stdout + answer.stderr
        wait_for(events_path, lambda e: e["event"] == "round_started" and e["round"] == 3, 900)
        os.killpg(running["three"].pid, signal.SIGKILL)
        events = wait_for(events_path, lambda e: e["event"] in ("run_finished", "run_failed"), 600)
    assert events[-1]["event"] == "run_finished", events[-1]
    failed = {(e["round"], e["hospital"], e["kind"]): e["reason"] for e in events if e["event"] == "hospital_failed"}
    assert (1, "hospital-1", "train") in failed and (2, "hospital-2", "train") in failed
    assert f"no reply within {TIMEOUT_S} s" in failed[2, "hospital-2", "train"]
    assert any(number == 3 for number, _, _ in failed), "whoever the dead node answered for in round 3 is named"
    counts = [e["num_replies"] for e in events if e["event"] == "round_aggregated"]
    assert len(counts) == 3 and counts[0] == 2 and counts[1] == 2 and counts[2] >= 1
