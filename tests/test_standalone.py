"""One site alone: the same as a federation of one, and comparable with a federation of many."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from jointdiff import checkpoint
from jointdiff.data import hospital_data
from jointdiff.errors import ConfigError, RunError
from jointdiff.evaluation import predict
from jointdiff.events import read_events
from jointdiff.model import JointModel
from jointdiff.standalone import evaluate_checkpoint, train_alone
from jointdiff.statistics import ClassificationStatistics
from simulations.local import run_local

CPU = torch.device("cpu")
METHODS = ("joint", "two-stage", "fixmatch", "supervised")


def weights(folder, kind="last"):
    return checkpoint.load(folder / "checkpoints" / f"{kind}.safetensors")


def runs_of(run):
    return Path(run.home) / "runs"


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("method", METHODS)
def test_one_hospital_federated_is_local_training_bit_for_bit(tiny_run, method):
    def run(name):
        return tiny_run(num_hospitals=1, num_rounds=3, method=method, run_name=name)

    alone, federated = train_alone(run("alone")), run_local(run("federated"))
    first, second = weights(alone), weights(federated)
    assert first.state.keys() == second.state.keys() and len(first.state) > 20
    for name in first.state:
        assert torch.equal(first.state[name], second.state[name]), name
    assert first.round_number == second.round_number == 3
    both = metrics(alone), metrics(federated)
    assert both[0]["final"]["pooled"] == both[1]["final"]["pooled"]
    assert [r["training"]["loss"] for r in both[0]["rounds"]] == [r["training"]["loss"] for r in both[1]["rounds"]]


def test_training_moves_the_weights_and_the_rounds_build_on_each_other(tiny_run):
    one, two = (
        weights(train_alone(tiny_run(num_hospitals=1, num_rounds=2, run_name=name, local_steps=steps))).state
        for name, steps in (("one", 1), ("two", 2))
    )
    assert not torch.equal(one["unet.conv_in.weight"], two["unet.conv_in.weight"])


def test_one_of_three_trains_alone_and_is_evaluated_on_the_whole_split(tiny_run):
    run = tiny_run(num_hospitals=3)
    folder = train_alone(run, hospital=1)
    final = metrics(folder)["final"]
    assert set(final["hospitals"]) == {"hospital-2"}
    assert final["hospitals"]["hospital-2"]["num_images"] == 6 and final["pooled"]["num_images"] == 18
    # The pooled numbers are those of the saved model on the official test split in one piece.
    saved = weights(folder)
    model = JointModel(saved.config.model)
    model.load_state_dict(saved.state)
    parts = [hospital_data(run, k).test for k in range(3)]
    stats = [
        ClassificationStatistics.from_predictions(predict(model, p.images, device=CPU), p.labels, task="multi-class")
        for p in parts
    ]
    assert final["pooled"] == stats[0].merge(stats[1:]).finish() == evaluate_checkpoint(model, saved.config, CPU)
    (described,) = [e for e in read_events(folder / "events.jsonl") if e.get("kind") == "describe"]
    assert described["hospital"] == "hospital-2" and described["num_labels"] == 4


def test_hospitals_alone_learn_from_their_own_scans(tiny_run):
    first, second = (
        weights(train_alone(tiny_run(num_hospitals=3, num_rounds=1, run_name=f"h{k}"), hospital=k)).state
        for k in (0, 1)
    )
    assert not torch.equal(first["unet.conv_in.weight"], second["unet.conv_in.weight"])


def test_what_a_run_alone_leaves(tiny_run):
    seen = []
    folder = train_alone(tiny_run(num_hospitals=1), callback=seen.append)
    assert seen == read_events(folder / "events.jsonl")
    a_round = ["round_started", "round_aggregated", "evaluated", "checkpoint_saved", "checkpoint_saved"]
    assert [e["event"] for e in seen] == ["run_started", "hospital_replied", *2 * a_round, "run_finished"]
    for name in ("config.yaml", "metrics.json", "report.html", "checkpoints/best.safetensors"):
        assert (folder / name).stat().st_size > 0
    assert metrics(folder)["best"] == metrics(folder)["final"] and metrics(folder)["final"]["round"] == 2
    assert (folder.parent / "latest").resolve() == folder


def test_a_failure_is_the_last_event_and_reaches_the_caller(tiny_run, monkeypatch):
    def fail(*_, **__):
        raise RunError("the power is out")

    monkeypatch.setattr("jointdiff.local_work.train", fail)
    run = tiny_run(num_hospitals=1)
    with pytest.raises(RunError, match="power"):
        train_alone(run)
    (folder,) = (p for p in runs_of(run).iterdir() if not p.is_symlink())
    last = read_events(folder / "events.jsonl")[-1]
    assert last["event"] == "run_failed" and last["reason"] == "the power is out"
    assert not list(folder.glob("checkpoints/*"))


@pytest.mark.parametrize("hospital", [-1, 3])
def test_a_hospital_that_is_not_there_is_refused_before_anything_is_made(tiny_run, hospital):
    run = tiny_run(num_hospitals=3)
    with pytest.raises(ConfigError, match="--hospital must be 1 to 3"):
        train_alone(run, hospital=hospital)
    assert not runs_of(run).exists()
