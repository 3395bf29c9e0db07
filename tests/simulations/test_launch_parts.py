"""The launcher's parts without Flower: sharing the machine, following a run, ending processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jointdiff.processes import descendants, is_alive
from server import follow
from server.deployment.control import RunStatus, last_json
from simulations import resources
from simulations.flower_daemon import FlowerDaemon


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


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 8, 16, 64])
@pytest.mark.parametrize("hospitals", [1, 2, 3, 4, 5, 10, 50])
def test_ample_processors_are_used_and_few_are_not_crowded(cpus: int, hospitals: int) -> None:
    """Threads of all hospitals at work together: at most one and a half a core, and more than half of the cores."""
    asked = _share(hospitals=hospitals, cpus=cpus).federation
    threads = int(asked["client-resources-num-cpus"])
    at_once = min(hospitals, int(asked["init-args-num-cpus"]) // threads)
    assert at_once * threads <= max(cpus, 1.5 * cpus if at_once > cpus else 0)
    assert at_once * threads > cpus / 2


def test_threads_that_the_shell_asks_for_are_cut_to_a_hospitals_share() -> None:
    def environment(asked: int) -> dict[str, str]:
        return resources.choose("cpu", 3, num_cpus=16, num_gpus=0, free_bytes=1e11, asked_threads=asked).environment

    assert environment(16) == {"OMP_NUM_THREADS": "5"} and environment(0) == environment(1) == environment(5) == {}


_THREADS = """
import ray
ray.init(num_cpus=5, include_dashboard=False, log_to_driver=False)
@ray.remote(num_cpus=2)
class Hospital:
    def threads(self):
        import torch
        return torch.get_num_threads()
crowd = [Hospital.remote() for _ in range(2)]
print("threads", ray.get([one.threads.remote() for one in crowd]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "found"), [("", "[2, 2]"), ("1", "[1, 1]")])
def test_ray_gives_a_hospital_the_threads_of_its_share(asked: str, found: str) -> None:
    """What the launcher relies on, with Ray itself: torch computes on as many threads as the actor has processors."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"OMP_NUM_THREADS": asked} if asked else {}
    done = subprocess.run(
        [sys.executable, "-c", _THREADS], env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert f"threads {found}" in done.stdout, done.stderr[-2000:]


def test_json_is_found_behind_prose() -> None:
    assert last_json('Starting ...\n{"success": true, "run-id": "7"}\nbye') == {"success": True, "run-id": "7"}
    assert last_json("no json") == {}
    assert last_json('{"cut": ') == {}


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
    daemon = FlowerDaemon(tmp_path)
    monkeypatch.setattr(daemon, "exit_code", lambda: code)
    monkeypatch.setattr(daemon, "status", lambda _: RunStatus(status, details))
    shown: list[dict] = []
    verdict = follow.Follower(daemon, "7", tmp_path, shown.append).wait()
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
import subprocess, sys, time
deaf = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
deaf += "print(os.getpid(), flush=True); time.sleep(60)"
# Soon an orphan, in a session of its own; known by its id once it is deaf.
orphan = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, text=True, start_new_session=True)
print(orphan.stdout.readline(), end="", flush=True)
if sys.argv[1] == "stay":
    time.sleep(60)
sys.exit(7)
"""


def _guarded(how: str, folder: Path) -> tuple[subprocess.Popen[str], int]:
    """Start a guard over a command that leaves a process behind; return the guard and that process's id."""
    command = [sys.executable, "-m", "simulations.guard", str(folder), sys.executable, "-c", _ORPHANS, how]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert guard.stdout is not None
    return guard, int(guard.stdout.readline())


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")
@pytest.mark.parametrize("end", ["close", "terminate"])
def test_the_guard_ends_orphans_and_the_deaf_too(end: str, tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    guard, deaf = _guarded("stay", folder)
    assert is_alive(deaf)
    if end == "close":
        assert guard.stdin is not None
        guard.stdin.close()
    else:
        guard.terminate()
    assert guard.wait(timeout=30) == 0
    assert not is_alive(deaf)
    assert not folder.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")
def test_the_guard_gives_on_the_exit_code_and_still_cleans(tmp_path: Path) -> None:
    guard, deaf = _guarded("leave", tmp_path)
    assert guard.wait(timeout=30) == 7
    assert not is_alive(deaf)


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
