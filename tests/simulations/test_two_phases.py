"""`latent: true` through the whole framework: the weights of two runs, resume, codecs, masks, privacy, report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from client import manifest
from jointdiff import checkpoint, latent_run
from jointdiff.config import RunConfig, parse_run_config, to_mapping
from jointdiff.data import hospital_data
from jointdiff.errors import ConfigError, RunError
from jointdiff.events import read_events
from jointdiff.latents import FrozenAutoencoder
from jointdiff.standalone import train_alone
from jointdiff.trained import open_trained
from server.runs import summary
from simulations.local import run_local
from tests.conftest import ramps

_ENCODER = "head: gradient\nlearning-rate: 0.01\nema-decay: 0.0\ndiffusion-weight: 0.0\nfeature-weight: 0.0\n"
_KEPT: dict[str, Path] = {}


@pytest.fixture
def make(tiny_run, tmp_path):
    """Two hospitals, two rounds for the autoencoder and one for the joint model; keywords change it."""
    (tmp_path / "kl-tiny.yaml").write_text("widths: [8]\nnum-blocks: 0\n")
    (tmp_path / "encoder.yaml").write_text(_ENCODER)
    np.savez(tmp_path / "data.npz", class_names=np.array(["healthy", "ill"]), **ramps(32, 8, 12))

    def run(**changes) -> RunConfig:
        own = {"dataset": f"npz:{tmp_path / 'data.npz'}", "num_hospitals": 2, "local_steps": 12, "batch_size": 8}
        if changes.get("latent", True):
            own |= {
                "latent": True, "autoencoder_rounds": 2, "autoencoder_model": str(tmp_path / "kl-tiny.yaml"),
                "autoencoder_preset": str(tmp_path / "encoder.yaml"), "num_rounds": 1,
            }  # fmt: skip
        return tiny_run(**{**own, **changes})

    return run


@pytest.fixture
def straight(make, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run, of which tests read; it is run once."""
    if "straight" not in _KEPT:
        home = tmp_path_factory.mktemp("straight")
        _KEPT["straight"] = run_local(make(home=str(home), run_name="straight"))
    return _KEPT["straight"]


def last(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "checkpoints" / "last.safetensors")


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def of(folder: Path, name: str) -> list[dict]:
    return [e for e in read_events(folder / "events.jsonl") if e["event"] == name]


def test_one_run_ends_as_the_two_runs_that_it_stands_for(make, straight, tmp_path) -> None:
    alone = {"latent": False, "method": "autoencoder", "model": str(tmp_path / "kl-tiny.yaml")}
    encoder = run_local(make(**alone, preset=str(tmp_path / "encoder.yaml"), num_rounds=2, run_name="encoder"))
    file = encoder / "checkpoints" / "last.safetensors"
    second = run_local(make(latent=False, autoencoder=str(file), num_rounds=1, run_name="second"))
    assert same(last(straight), last(second))
    one, two = (checkpoint.load(folder / "checkpoints" / "last.safetensors").config for folder in (straight, second))
    assert one.model == two.model and one.training == two.training and one.autoencoder is None


def test_rounds_are_counted_through_both_phases_in_every_record(make, straight) -> None:
    phases = [(e["phase"], e["first_round"], e["last_round"]) for e in of(straight, "phase_started")]
    assert phases == [("autoencoder", 1, 2), ("latents", 3, 3)]
    told = [(e["round"], e["num_rounds"], e["phase"]) for e in of(straight, "round_started")]
    assert told == [(1, 3, "autoencoder"), (2, 3, "autoencoder"), (3, 3, "latents")]
    rounds = json.loads((straight / "metrics.json").read_text())["rounds"]
    assert [(entry["round"], "psnr" in entry["pooled"], "auc" in entry["pooled"]) for entry in rounds] == [
        (1, True, False), (2, True, False), (3, False, True),
    ]  # fmt: skip
    assert [e["kind"] for e in of(straight, "hospital_replied")].count("describe") == 2
    assert (summary(straight).round, summary(straight).num_rounds) == (3, 3)

    record = manifest.read(straight / "sites" / "hospital-1", "straight")
    kinds = {number: [entry["kind"] for entry in entries] for number, entries in record.rounds.items()}
    assert record.problems == [] and set(kinds) == {0, 1, 2, 3}
    assert kinds[2] == ["train", "head", "evaluate", "autoencoder", "head"]  # the scale; then the first head
    assert not any(entry.get("stopped") for _, entry in record.entries)


def test_the_runs_own_autoencoder_is_frozen_and_in_its_checkpoints(make, straight) -> None:
    frozen = FrozenAutoencoder.load(straight / latent_run.FILE)
    assert frozen.facts["run"] == "straight" and min(frozen.scale.std) > 0
    loaded = checkpoint.load(straight / "checkpoints" / "best.safetensors")
    assert loaded.round_number == 3 and loaded.config.model.autoencoder == frozen.fingerprint
    opened = open_trained(straight / "checkpoints" / "last.safetensors", device="cpu")
    assert opened.predict(hospital_data(make(), 0).test.images).shape == (6, 2)


def test_the_report_shows_both_phases(straight) -> None:
    page = (straight / "report.html").read_text()
    assert page.index("First phase: the autoencoder") < page.index("Second phase: the model on its latents")
    assert "when it was frozen" in page and "Balanced accuracy" in page


MOMENTS = {
    "in the first phase": {"event": "round_started", "round": 2},
    "after its last state": {"event": "checkpoint_saved", "round": 2, "kind": "best"},
    "exactly between": {"event": "phase_started", "number": 2},
    "before the second's first state": {"event": "hospital_replied", "kind": "autoencoder", "hospital": "hospital-2"},
    "after the second's first state": {"event": "round_started", "round": 3},
    "in the second phase": {"event": "round_aggregated", "round": 3},
}
_ALWAYS = ("exactly between", "after the second's first state")
_VICTIM = """
import json, os, signal, sys
from jointdiff.config import parse_run_config
from simulations.local import run_local
import torch
torch.set_num_threads(1)
values, moment = json.loads(sys.argv[1]), json.loads(sys.argv[2])
def at(event):
    if all(event.get(k) == v for k, v in moment.items()):
        os.kill(os.getpid(), signal.SIGKILL)
run_local(parse_run_config(values), at)
"""


@pytest.mark.parametrize(
    "moment", [name if name in _ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in MOMENTS]
)
def test_a_killed_run_that_is_resumed_ends_with_the_same_weights(make, moment, straight) -> None:
    run = make(run_name="cut")
    told = [json.dumps(to_mapping(run)), json.dumps(MOMENTS[moment])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    victim = subprocess.run([sys.executable, "-c", _VICTIM, *told], env=environment, capture_output=True, timeout=300)
    assert victim.returncode == -signal.SIGKILL, victim.stderr[-2000:]
    folder = run_local(parse_run_config({"run-name": "cut", "home": run.home, "resume": True}))
    assert same(last(folder), last(straight))
    rounds = [entry["round"] for entry in json.loads((folder / "metrics.json").read_text())["rounds"]]
    assert rounds == [1, 2, 3]


def test_after_a_collapse_the_second_phase_does_not_start_and_no_autoencoder_is_left(make) -> None:
    run = make(autoencoder_rounds=1, local_steps=1)
    with pytest.raises(RunError, match=r"collapsed.*Take more autoencoder-rounds"):
        run_local(run)
    folder = Path(run.home, "runs", "tiny")
    assert [e["number"] for e in of(folder, "phase_started")] == [1]
    assert not (folder / latent_run.FILE).exists()
    with pytest.raises(RunError, match="collapsed"):  # resuming changes nothing of it
        run_local(parse_run_config({"run-name": "tiny", "home": run.home, "resume": True}))


def test_one_hospital_alone_goes_through_both_phases_as_in_a_federation_of_one(make) -> None:
    federated = run_local(make(num_hospitals=1, num_labels=0, autoencoder_rounds=1, local_steps=24))
    alone = train_alone(make(num_hospitals=1, num_labels=0, autoencoder_rounds=1, local_steps=24, run_name="alone"))
    assert same(last(federated), last(alone))
    assert [e["number"] for e in of(alone, "phase_started")] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"secure_aggregation": True, "min_hospitals": 0, "num_hospitals": 3},
        {"upload": "top-k:0.3", "download": "bf16"},
        {"label_split": "server", "num_labels": 12},
        {"personal": "head"},
        {"share": "decoder-every:2", "num_rounds": 2},
        {"weighting": "labels", "method": "fixmatch"},
    ],
    ids=["secure sum", "codecs", "labels at the server", "personal", "shared in part", "weighted by labels"],
)
def test_what_the_framework_offers_holds_in_both_phases(make, changes) -> None:
    run = make(autoencoder_rounds=2, **changes)
    folder = run_local(run)
    trained = [e["round"] for e in of(folder, "hospital_replied") if e["kind"] == "train"]
    assert sorted(trained) == sorted([*range(1, run.num_rounds + 3)] * run.num_hospitals)
    assert of(folder, "evaluated")[-1]["pooled"]["num_images"] == 12
    assert not [e for e in read_events(folder / "events.jsonl") if e["event"] in ("update_rejected", "hospital_failed")]


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"latent": True, "autoencoder": "a.safetensors"}, "latent=true and autoencoder=a.safetensors contradict"),
        ({"latent": True, "method": "autoencoder"}, "latent=true and method=autoencoder contradict"),
        ({"latent": True, "initial-weights": "a.safetensors"}, "know the latents of another autoencoder"),
        ({"latent": True, "autoencoder-rounds": 0}, "autoencoder-rounds must be at least 1, not 0"),
        ({"latent": True, "autoencoder-budget": 1.0}, "above 0 and below 1, not 1.0"),
        ({"autoencoder-rounds": 3}, "autoencoder-rounds=3 is for latent=true alone"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(keys, match) -> None:
    with pytest.raises(ConfigError, match=match):
        parse_run_config(keys)
