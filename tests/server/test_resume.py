"""Durable rounds: a server killed at any moment goes on from its last complete round and ends with the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jointdiff import storage
from jointdiff.config import to_mapping
from jointdiff.errors import CheckpointError, ConfigError, RunError
from jointdiff.events import read_events
from server.run_state import RunState, read_state, write_state
from simulations.local import run_local

# A whole server and its hospitals in a process that kills itself: at an event, or while a file is half written.
_VICTIM = """
import json, os, signal, sys
from jointdiff.config import parse_run_config
from jointdiff import storage
from simulations.local import run_local
import torch
torch.set_num_threads(1)
values, moment = json.loads(sys.argv[1]), json.loads(sys.argv[2])
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def at_event(event):
    if all(event.get(k) == v for k, v in moment["event"].items()):
        die()
if "file" in moment:
    seen = 0
    sync = storage._sync
    def cut(path):
        global seen
        if moment["file"] in path.name and path.name.startswith("."):
            seen += 1
            if seen == moment["nth"]:
                os.truncate(path, path.stat().st_size // 2)
                die()
        sync(path)
    storage._sync = cut
run_local(parse_run_config(values), callback=at_event if "event" in moment else None)
"""
MOMENTS = {
    "before the first head": {"event": {"event": "hospital_replied", "kind": "describe", "hospital": "hospital-2"}},
    "while round 1 trains": {"event": {"event": "hospital_replied", "kind": "train", "round": 1}},
    "after round 2 is merged": {"event": {"event": "round_aggregated", "round": 2}},
    "between state and checkpoint of round 2": {"event": {"event": "evaluated", "round": 2}},
    "at the checkpoint of round 3": {"event": {"event": "checkpoint_saved", "round": 3, "kind": "last"}},
    "in the middle of a checkpoint write": {"file": "last.safetensors", "nth": 2},
    "in the middle of a state write": {"file": "round-0002.safetensors", "nth": 4},  # three sites, then the server
}


def killed(run, moment) -> Path:
    """Run in a process of its own until it kills itself; return the run's folder."""
    victim = subprocess.run(
        [sys.executable, "-c", _VICTIM, json.dumps(to_mapping(run)), json.dumps(moment)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert victim.returncode == -signal.SIGKILL, victim.stderr[-2000:]
    return Path(run.home, "runs", run.run_name)


def weights(folder: Path, kind: str = "last") -> dict[str, np.ndarray]:
    return load_file(folder / "checkpoints" / f"{kind}.safetensors")


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def without_clocks(folder: Path) -> dict:
    metrics = json.loads((folder / "metrics.json").read_text())
    for entry in [*metrics["rounds"], metrics["best"], metrics["final"]]:
        for name in [n for n in entry["training"] if n == "images_per_s" or n.startswith("seconds.")]:
            entry["training"].pop(name)
    return metrics


@pytest.mark.parametrize(
    ("moment", "strategy"),
    [*((name, "fedavg") for name in MOMENTS), ("after round 2 is merged", "fedadam")],
)
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(tiny_run, moment, strategy):
    settings = {"num_rounds": 3, "num_labels": 0, "strategy": strategy}
    straight = run_local(tiny_run(run_name="straight", **settings))
    run = tiny_run(**settings)
    folder = killed(run, MOMENTS[moment])
    assert not [e for e in read_events(folder / "events.jsonl") if e["event"] in ("run_failed", "run_finished")]
    assert run_local(replace(run, resume=True)) == folder
    assert same(weights(folder), weights(straight)) and same(weights(folder, "best"), weights(straight, "best"))
    assert without_clocks(folder) == without_clocks(straight)
    events = read_events(folder / "events.jsonl")
    assert [e["event"] for e in events].count("run_resumed") == 1 and events[-1]["event"] == "run_finished"


def test_a_run_can_be_killed_again_and_again(tiny_run):
    settings = {"num_rounds": 4, "num_labels": 0}
    straight = run_local(tiny_run(run_name="straight", **settings))
    run = tiny_run(**settings)
    folder = killed(run, {"event": {"event": "hospital_replied", "kind": "train", "round": 2}})
    for number in (3, 4):
        killed(replace(run, resume=True), {"event": {"event": "round_started", "round": number}})
    run_local(replace(run, resume=True))
    assert same(weights(folder), weights(straight))


def interrupted(run, number: int = 2) -> Path:
    def stop(event):
        if event["event"] == "round_started" and event["round"] == number:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_local(run, callback=stop)
    return Path(run.home, "runs", run.run_name)


def test_an_interrupted_run_says_how_to_go_on(tiny_run):
    folder = interrupted(tiny_run())
    last = read_events(folder / "events.jsonl")[-1]
    assert last["event"] == "run_failed" and last["resume"].startswith("jointdiff-server resume tiny")
    assert "jointdiff-server resume tiny" in (folder / "report.html").read_text()


def test_resuming_takes_the_runs_own_settings(tiny_run, monkeypatch):
    folder = interrupted(tiny_run(num_rounds=3, local_steps=1))
    bare = tiny_run(num_rounds=12, local_steps=30, num_labels=12)  # the defaults stand for "not said"
    run_local(replace(bare, resume=True))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [entry["round"] for entry in metrics["rounds"]] == [1, 2, 3]


def test_another_configuration_is_refused(tiny_run):
    folder = interrupted(tiny_run())
    before = (folder / "events.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="local-steps=2; now 7"):
        run_local(replace(tiny_run(local_steps=7), resume=True))
    assert (folder / "events.jsonl").read_bytes() == before


def test_a_finished_or_missing_run_is_refused(tiny_run):
    run = tiny_run(num_rounds=1)
    run_local(run)
    with pytest.raises(RunError, match="has finished: there is nothing to resume"):
        run_local(replace(run, resume=True))
    with pytest.raises(RunError, match="did you mean 'tiny'"):
        run_local(replace(run, resume=True, run_name="tinny"))
    with pytest.raises(ConfigError, match="run-name"):
        run_local(replace(run, resume=True, run_name=""))


def test_a_run_that_is_being_written_is_refused(tiny_run):
    folder = interrupted(tiny_run())
    before = (folder / "events.jsonl").read_bytes()
    with storage.run_locked(folder), pytest.raises(RunError, match=f"being written by .*process {os.getpid()}"):
        run_local(replace(tiny_run(), resume=True))
    assert (folder / "events.jsonl").read_bytes() == before
    run_local(replace(tiny_run(), resume=True))


def test_a_damaged_state_names_the_file_and_the_way_back(tiny_run):
    folder = interrupted(tiny_run(num_rounds=3), number=3)
    path = folder / "state" / "round-0002.safetensors"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=r"round-0002.*damaged or cut.*goes on from round 1"):
        run_local(replace(tiny_run(num_rounds=3), resume=True))
    path.unlink()
    run_local(replace(tiny_run(num_rounds=3), resume=True))
    straight = run_local(tiny_run(num_rounds=3, run_name="straight"))
    assert same(weights(folder), weights(straight))


def test_a_last_event_that_was_cut_spoils_nothing(tiny_run):
    folder = interrupted(tiny_run())
    with open(folder / "events.jsonl", "ab") as file:
        file.write(b'{"schema_version": 1, "event": "eval')
    run_local(replace(tiny_run(), resume=True))
    assert read_events(folder / "events.jsonl")[-1]["event"] == "run_finished"


def test_a_full_disk_stops_the_run_and_loses_no_round(tiny_run, monkeypatch):
    """The disk is full in the middle of round 2's state: round 1 stays, and the run goes on when there is room."""
    from server import run_state

    real = run_state.save_file

    def full(tensors, path, metadata):
        if "round-0002.safetensors" in path.name:
            raise OSError(28, "No space left on device", str(path))
        return real(tensors, path, metadata)

    monkeypatch.setattr(run_state, "save_file", full)
    with pytest.raises(RunError, match="No space left on device"):
        run_local(tiny_run())
    monkeypatch.setattr(run_state, "save_file", real)
    folder = run_local(replace(tiny_run(), resume=True))
    assert same(weights(folder), weights(run_local(tiny_run(run_name="straight"))))


def test_the_state_keeps_two_rounds_and_gives_back_what_it_got(tmp_path):
    rng = np.random.default_rng(0)
    states = [
        RunState(n, *({"x": rng.normal(size=(3, 2)).astype(np.float32)} for _ in range(2)), {"m.x": rng.normal(size=3)})
        for n in range(4)
    ]
    assert read_state(tmp_path) is None
    for state in states:
        write_state(tmp_path, state)
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == [
        "round-0002.safetensors",
        "round-0003.safetensors",
    ]
    found = read_state(tmp_path)
    assert found.round_number == 3 and found.moments["m.x"].dtype == np.float64
    for part in ("weights", "average", "moments"):
        assert same(getattr(found, part), getattr(states[3], part))
