"""A run over real hospitals that lives through what breaks: processes, the network, a disk; the events tell the story.

Minutes: `pytest -m slow tests/deployment`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.deployment.federation import Federation, federation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed: make setup-system"),
]
SITES = ("one", "two", "three")
CUT_S = 120  # the network is away


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A federation of three sites that hold phantoms, all connected."""
    with federation(tmp_path_factory.mktemp("faults")) as found:
        for seed, name in enumerate(SITES):
            site = found.site(name, "kind=phantom", "min-cell-count=0")
            text = site.home.joinpath("site.yaml").read_text(encoding="utf-8")
            changed = text.replace("kind: phantom", f"kind: phantom\n  seed: {seed}\n  num-images: 200")
            assert changed != text
            site.home.joinpath("site.yaml").write_text(changed, encoding="utf-8")
            found.admit(name)
            site.do("start")
        found.wait_until_connected(*SITES)
        yield found


def start_run(found: Federation, name: str, *keys: str) -> subprocess.Popen[str]:
    settings = "classes=healthy,lesion local-steps=5 batch-size=8 explain=0 round-timeout-s=240 min-hospitals=2"
    return found.server.start("run", "-c", f"{settings} run-name={name}", *(f"-c{key}" for key in keys))


def processes(found: Federation) -> dict[str, int]:
    return {p["name"]: p["pid"] for p in json.loads(found.server.run("status", "--json").stdout)["processes"]}


def supernode_of(site_home: Path) -> int:
    """Return the process id of Flower's SuperNode under a site's supervisor."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(b"flower-supernode" in w for w in words) and any(str(site_home).encode() in w for w in words):
            return int(folder.name)
    pytest.fail(f"no SuperNode of {site_home} runs")


def ended(found: Federation, command: subprocess.Popen[str], name: str, seconds: float) -> list[dict]:
    events = found.wait_for(name, lambda e: e["event"] in ("run_finished", "run_failed"), seconds)
    printed, _ = command.communicate(timeout=120)
    assert events[-1]["event"] == "run_finished", (events[-1], printed[-2000:])
    assert command.returncode == 0, printed[-2000:]
    return events


def test_a_killed_supernode_comes_back_by_itself(running):
    """Its supervisor waits out Flower's minute; the run goes on without it and takes it back."""
    command = start_run(running, "node-killed", "num-rounds=8")
    running.wait_for("node-killed", lambda e: e["event"] == "round_started" and e["round"] == 2, 600)
    os.kill(supernode_of(running.sites["two"].home), signal.SIGKILL)
    events = ended(running, command, "node-killed", 1500)
    lost = [e for e in events if e["event"] == "hospital_failed" and e["hospital"] == "two"]
    assert lost, "its absence is in the events"
    counts = [e["num_replies"] for e in events if e["event"] == "round_aggregated"]
    assert min(counts) == 2 and counts[-1] == 3, counts


def test_a_killed_superlink_does_not_end_the_run(running):
    command = start_run(running, "link-killed", "num-rounds=3")
    running.wait_for("link-killed", lambda e: e["event"] == "round_started" and e["round"] == 2, 600)
    os.kill(processes(running)["superlink"], signal.SIGKILL)
    time.sleep(10)
    running.server.do("start", "--host", "127.0.0.1", "--port", str(running.port), "--superlink-port",
                      str(running.superlink_port))  # fmt: skip
    events = ended(running, command, "link-killed", 1200)
    assert len([e for e in events if e["event"] == "round_aggregated"]) == 3


def test_the_front_door_away_for_two_minutes_costs_time_and_no_round(running):
    """As a network that is cut between every site and the server."""
    running.wait_until_connected(*SITES, seconds=300)
    command = start_run(running, "cut", "num-rounds=3", "round-timeout-s=400")
    running.wait_for("cut", lambda e: e["event"] == "round_started" and e["round"] == 2, 600)
    os.kill(processes(running)["front-door"], signal.SIGTERM)
    time.sleep(CUT_S)
    running.server.do("start", "--host", "127.0.0.1", "--port", str(running.port), "--superlink-port",
                      str(running.superlink_port))  # fmt: skip
    events = ended(running, command, "cut", 1500)
    assert len([e for e in events if e["event"] == "round_aggregated"]) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_at_a_site_costs_that_site_its_rounds(running):
    running.wait_until_connected(*SITES, seconds=300)
    disk = running.sites["three"].home / "state"
    shutil.rmtree(disk, ignore_errors=True)
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount a disk")
    try:
        command = start_run(running, "disk-full", "num-rounds=2")
        events = ended(running, command, "disk-full", 1200)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
    reasons = [e["reason"] for e in events if e["event"] == "hospital_failed" and e["hospital"] == "three"]
    assert any("No space left on device" in reason for reason in reasons), reasons
    assert not any("/" in reason for reason in reasons)
    assert [e["num_replies"] for e in events if e["event"] == "round_aggregated"] == [2, 2]
