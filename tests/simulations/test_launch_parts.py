"""The launcher's parts without Flower: sharing the machine, following a run, ending processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from simulations import follow, resources
from simulations.flower_daemon import RunStatus, _last_json
from simulations.processes import descendants, is_alive


def _share(
    device: str = "auto", hospitals: int = 3, cpus: int = 2, gpus: int = 0, free: float = 1e11
) -> resources.Resources:
    return resources.choose(device, hospitals, num_cpus=cpus, num_gpus=gpus, free_bytes=free)


@pytest.mark.parametrize("cpus", [1, 2, 3, 16])
@pytest.mark.parametrize("hospitals", [1, 3, 50])
@pytest.mark.parametrize("gpus", [0, 1, 4])
def test_at_least_one_hospital_fits(cpus: int, hospitals: int, gpus: int) -> None:
    asked = _share(hospitals=hospitals, cpus=cpus, gpus=gpus).federation
    assert asked["num-supernodes"] == hospitals
    assert 1 <= asked["client-resources-num-cpus"] <= cpus
    assert (asked["client-resources-num-gpus"] > 0) == (gpus > 0)
    assert asked["client-resources-num-gpus"] <= min(1, gpus)


def test_three_hospitals_share_one_gpu_at_once() -> None:
    assert 3 * _share(cpus=16, gpus=1).federation["client-resources-num-gpus"] <= 1


def test_a_gpu_is_asked_for_only_where_it_is_wanted() -> None:
    assert _share(device="cpu", gpus=0).federation["client-resources-num-gpus"] == 0
    named = _share(device="cuda:1", gpus=2)
    assert named.federation["client-resources-num-gpus"] == 0
    assert named.environment == {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}


def test_little_memory_means_fewer_at_once() -> None:
    assert _share(cpus=16, free=2e9).federation["client-resources-num-cpus"] == 16
    assert _share(cpus=16, free=1e11).federation["client-resources-num-cpus"] == 5


def test_json_is_found_behind_prose() -> None:
    assert _last_json('Starting ...\n{"success": true, "run-id": "7"}\nbye') == {"success": True, "run-id": "7"}
    assert _last_json("no json") == {}
    assert _last_json('{"cut": ') == {}


def test_tail_waits_for_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = follow.Tail(path)
    assert tail.lines() == []
    path.write_text("one\ntw")
    assert tail.lines() == ["one"]
    with open(path, "a") as file:
        file.write("o\nthree\n")
    assert tail.lines() == ["two", "three"]
    assert tail.lines() == []


def _verdict(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *events: dict,
    status: str,
    details: str = "",
    code: int | None = None,
):
    """Judge a run that left `events`, of which Flower says `status`."""
    monkeypatch.setattr(follow, "EVENTS_GRACE_S", 0.0)
    (tmp_path / "events.jsonl").write_text(
        "".join(json.dumps({"schema_version": 1, **event}) + "\n" for event in events)
    )
    (tmp_path / "superlink.log").write_text("Finished task 1 of run 7\n")
    (tmp_path / "run.log").write_text("\x1b[92mINFO\x1b[0m: here\nValueError: boom\n")
    daemon = SimpleNamespace(
        daemon_log=tmp_path / "superlink.log", run_log=tmp_path / "run.log", exit_code=lambda: code,
        status=lambda _: RunStatus(status, details),
    )  # fmt: skip
    shown: list[dict] = []
    verdict = follow.Follower(daemon, "7", tmp_path, shown.append).wait()  # type: ignore[arg-type]
    assert [event["event"] for event in shown] == [event["event"] for event in events]
    return verdict


def test_a_run_is_well_when_flower_and_its_events_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = _verdict(
        tmp_path, monkeypatch, {"event": "run_finished", "report": "/r.html"}, status="finished:completed"
    )
    assert verdict.ok and verdict.report == "/r.html"


def test_completed_without_a_result_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = _verdict(tmp_path, monkeypatch, {"event": "run_started"}, status="finished:completed")
    assert not verdict.ok and "no result" in verdict.cause


def test_the_reason_of_the_run_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    event = {"event": "run_failed", "reason": "hospital-2 is missing"}
    verdict = _verdict(tmp_path, monkeypatch, event, status="finished:failed", details="RunError")
    assert not verdict.ok and verdict.cause == "hospital-2 is missing"
    assert verdict.log_lines == ("INFO: here", "ValueError: boom")


def test_a_report_that_failed_after_the_last_event_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = _verdict(tmp_path, monkeypatch, {"event": "run_finished"}, status="finished:failed", details="disk full")
    assert not verdict.ok and "disk full" in verdict.cause


def test_a_daemon_that_died_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = _verdict(tmp_path, monkeypatch, {"event": "run_started"}, status="running", code=-9)
    assert not verdict.ok and "code -9" in verdict.cause


_ORPHANS = """
import os, subprocess, sys, time
from simulations.processes import adopt_orphans, descendants, end_processes
adopt_orphans()
# A child with a session of its own leaves an orphan behind that is deaf to SIGTERM.
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
middle = f'''import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {deaf!r}], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()'''
subprocess.run([sys.executable, "-c", middle], start_new_session=True, check=True)
listening = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
before = descendants(os.getpid())
end_processes(os.getpid(), set(), grace_s=0.5)
print(len(before), len(descendants(os.getpid())), *before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")
def test_orphans_and_the_deaf_are_ended_too() -> None:
    done = subprocess.run([sys.executable, "-c", _ORPHANS], capture_output=True, text=True, timeout=60, check=True)
    before, after, *pids = map(int, done.stdout.split())
    assert (before, after) == (2, 0)
    assert not any(is_alive(pid) for pid in pids)


def test_descendants_are_found_and_zombies_do_not_count() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    parent = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    try:
        deadline = time.monotonic() + 10
        while not (found := descendants(parent.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(found) == 1 and is_alive(parent.pid)
    finally:
        for pid in (*found, parent.pid):
            subprocess.run(["kill", "-9", str(pid)], check=False)
    time.sleep(0.2)
    assert not is_alive(parent.pid)  # not waited for yet: a zombie
    parent.wait()
