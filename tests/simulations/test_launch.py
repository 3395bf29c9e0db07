"""`jointdiff-simulate` as its user runs it: real Flower, real Ray, real processes. Each test starts a daemon."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jointdiff.config import parse_run_config
from jointdiff.processes import descendants, is_alive
from simulations import checks
from simulations.local import run_local

APP = Path(checks.__file__).parent / "3_hospitals"
COMMAND = Path(sys.executable).with_name("jointdiff-simulate")
pytestmark = pytest.mark.timeout(600)
START_S = 240  # until a run is on its way; a busy machine takes long to start Ray

# Apps that stand in for ours: `crash` fails in the server, `hang` starts Ray and then waits for ever.
_STAND_IN = """
import time
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

app = ServerApp()
client = ClientApp()

@client.query()
def answer(message, context):
    return Message(RecordDict(), reply_to=message)

@app.main()
def main(grid, context):
    if context.run_config["run-name"] == "crash":
        raise RuntimeError("the disk is full of frogs")
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.2)
    grid.send_and_receive([Message(RecordDict(), node, "query") for node in nodes], timeout=60)
    folder = Path(context.run_config["home"], "runs", context.run_config["run-name"])
    folder.mkdir(parents=True)
    (folder / "events.jsonl").write_text('{"schema_version": 1, "event": "run_started"}' + chr(10))
    time.sleep(600)
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """Return the folder of an app whose server and client are the stand-ins."""
    app = tmp_path / "app"
    shutil.copytree(APP, app)
    text = (app / "pyproject.toml").read_text()
    text = text.replace("server.app:app", "stand_in_apps:app").replace("client.app:app", "stand_in_apps:client")
    (app / "pyproject.toml").write_text(text)
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "stand_in_apps.py").write_text(_STAND_IN)
    return app


def start(home: Path, app: str | Path, settings: str) -> subprocess.Popen[str]:
    """Start the launcher in a session of its own, as a terminal would."""
    return subprocess.Popen(
        [COMMAND, str(app), "-c", settings, "-c", f"home='{home}' device=cpu"],
        env={**os.environ, "PYTHONPATH": str(home.parent / "modules"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.fixture
def hanging(tmp_path: Path, stand_in: Path) -> Iterator[tuple[subprocess.Popen[str], set[int]]]:
    """Give a launcher whose run is under way, and every process below it."""
    launcher = start(tmp_path / "home", stand_in, "run-name=hang")
    try:
        events = tmp_path / "home" / "runs" / "hang" / "events.jsonl"
        deadline = time.monotonic() + START_S
        while not events.exists() and launcher.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        processes = descendants(launcher.pid)
        assert events.exists(), launcher.poll()
        assert len(processes) > 5  # daemon, executor, simulation, Ray's own and its workers
        yield launcher, processes
    finally:
        launcher.kill()
        launcher.wait()


def test_two_rounds_from_the_command_to_the_report(tmp_path: Path, tiny_files: Path) -> None:
    home = tmp_path / "home"
    settings = "run-name=tiny num-rounds=2 local-steps=2 explain=2 num-hospitals=2 num-labels=8 batch-size=4 "
    settings += f"dataset=npz:{tiny_files / 'data.npz'} image-size=16 model={tiny_files / 'model.yaml'}"
    launcher = start(home, "3_hospitals", settings)
    out, _ = launcher.communicate(timeout=500)
    assert launcher.returncode == 0, out
    run = home / "runs" / "tiny"
    assert str(run / "report.html") in out.strip().splitlines()[-1]
    assert (run / "report.html").stat().st_size > 10_000
    metrics = json.loads((run / "metrics.json").read_text())
    assert [entry["round"] for entry in metrics["rounds"]] == [1, 2]
    assert set(metrics["final"]["hospitals"]) == {"hospital-1", "hospital-2"}
    assert "1/2" in out and "2/2" in out  # progress was shown
    assert not (home / "flower").exists()
    assert not _strangers_of(home)


def test_a_killed_run_is_carried_on_to_the_same_weights(tmp_path: Path, tiny_files: Path) -> None:
    """Launcher, daemon and workers die in round 2 of 4; `jointdiff-server resume` ends as one process would have."""
    home = tmp_path / "home"
    settings = {
        "run-name": "killed", "num-rounds": 4, "local-steps": 2, "explain": 0, "num-hospitals": 2, "num-labels": 8,
        "batch-size": 4, "dataset": f"npz:{tiny_files / 'data.npz'}", "image-size": 16,
        "model": str(tiny_files / "model.yaml"), "device": "cpu", "home": str(home),
    }  # fmt: skip
    launcher = start(home, "3_hospitals", " ".join(f"{key}={value}" for key, value in settings.items()))
    processes: set[int] = set()
    try:
        events = home / "runs" / "killed" / "events.jsonl"
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and not (events.exists() and '"evaluated"' in events.read_text()):
            time.sleep(0.05)
        processes = descendants(launcher.pid)
    finally:
        launcher.kill()
        launcher.wait()
    while any(is_alive(pid) for pid in processes):
        time.sleep(0.2)
    assert "run_finished" not in events.read_text()
    resume = subprocess.run(
        [Path(sys.executable).with_name("jointdiff-server"), "resume", "killed", "--home", str(home)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert resume.returncode == 0, resume.stdout + resume.stderr
    assert "Resumed after round" in resume.stdout and "4/4" in resume.stdout
    straight = run_local(parse_run_config({**settings, "home": str(tmp_path / "straight")}))
    weights = [load_file(f / "checkpoints" / "last.safetensors") for f in (home / "runs" / "killed", straight)]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_a_crash_ends_non_zero_with_its_cause_in_the_last_line(tmp_path: Path, stand_in: Path) -> None:
    launcher = start(tmp_path / "home", stand_in, "run-name=crash")
    out, _ = launcher.communicate(timeout=500)
    assert launcher.returncode == 5, out
    last = out.strip().splitlines()[-1]
    assert last.startswith("error: ") and "the disk is full of frogs" in last
    assert "Traceback" in (tmp_path / "home" / "flower" / "crash" / "run.log").read_text()
    assert not _strangers_of(tmp_path / "home")


def test_ctrl_c_stops_run_daemon_and_workers(hanging: tuple[subprocess.Popen[str], set[int]], tmp_path: Path) -> None:
    launcher, processes = hanging
    launcher.send_signal(signal.SIGINT)
    time.sleep(0.5)
    launcher.send_signal(signal.SIGINT)  # the impatient press twice
    out, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 130, out
    assert "stopped by SIGINT" in out
    assert "--resume hang" in out.strip().splitlines()[-1]
    assert not [pid for pid in processes if is_alive(pid)]
    assert not _strangers_of(tmp_path / "home")
    events = [json.loads(line) for line in (tmp_path / "home/runs/hang/events.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "run_failed" and "SIGINT" in events[-1]["reason"]


@pytest.mark.slow
def test_sigterm_stops_everything_too(hanging: tuple[subprocess.Popen[str], set[int]]) -> None:
    launcher, processes = hanging
    launcher.terminate()
    out, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 143, out
    assert not [pid for pid in processes if is_alive(pid)]


@pytest.mark.slow
def test_a_killed_launcher_takes_its_processes_along(hanging: tuple[subprocess.Popen[str], set[int]]) -> None:
    launcher, processes = hanging
    launcher.kill()
    deadline = time.monotonic() + 60
    while (left := [pid for pid in processes if is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left


def _strangers_of(home: Path) -> list[str]:
    """Return the command lines of living processes that work in `home` or were started with it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            where = os.readlink(entry / "cwd")
        except OSError:
            continue
        if line and (str(home) in line or where.startswith(str(home))):
            found.append(line)
    return found
