"""`method: autoencoder` through the whole framework: rounds, resume, codecs, masks, egress, report, the last check."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from client.egress_record import describe_tensor
from jointdiff.config import parse_run_config
from jointdiff.data import hospital_data
from jointdiff.errors import CheckpointError, ConfigError, RunError
from jointdiff.events import read_events
from jointdiff.latent_scale import LatentScale, latent_sums
from jointdiff.latents import FrozenAutoencoder
from jointdiff.model import to_network
from jointdiff.reconstruction import SHAPES
from jointdiff.standalone import train_alone
from jointdiff.trained import open_trained
from server.export import export
from server.rounds import run_federation
from simulations.local import LocalGrid, run_local
from tests.conftest import ramps

_TINY = "widths: [8, 8]\nnum-blocks: 1\n"


@pytest.fixture
def encoder_run(tiny_run, tmp_path):
    """A federation of three that trains a tiny autoencoder; keywords change it."""
    (tmp_path / "kl-tiny.yaml").write_text(_TINY)
    np.savez(tmp_path / "data.npz", class_names=np.array(["healthy", "ill"]), **ramps(48, 12, 18))
    preset = tmp_path / "quick.yaml"
    preset.write_text(
        "head: gradient\nlearning-rate: 0.01\nema-decay: 0.0\ndiffusion-weight: 0.0\nfeature-weight: 0.0\n"
    )

    def make(**changes):
        own = {
            "method": "autoencoder",
            "model": str(tmp_path / "kl-tiny.yaml"),
            "dataset": f"npz:{tmp_path / 'data.npz'}",
            "preset": str(preset),
        }
        return tiny_run(**{**own, "local_steps": 25, "batch_size": 8, **changes})

    return make


def last(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "checkpoints" / "last.safetensors")


def of(folder: Path, name: str) -> list[dict]:
    return [e for e in read_events(folder / "events.jsonl") if e["event"] == name]


def test_a_federation_leaves_a_frozen_autoencoder_and_a_report_of_reconstructions(encoder_run, tmp_path) -> None:
    run = encoder_run()
    folder = run_local(run)
    frozen = FrozenAutoencoder.load(folder / "checkpoints" / "best.safetensors")

    data = [hospital_data(run, k) for k in range(3)]
    images = np.concatenate([d.train.images for d in data])
    with torch.no_grad():
        mean, _ = frozen.autoencoder.encode(to_network(images))
    pooled = LatentScale.from_sums(latent_sums(mean))
    assert frozen.scale.mean == pytest.approx(pooled.mean, abs=1e-5)
    assert frozen.scale.std == pytest.approx(pooled.std, rel=1e-4)

    final = json.loads((folder / "metrics.json").read_text())["final"]
    tests = np.concatenate([d.test.images for d in data])
    assert final["pooled"]["num_images"] == len(tests)
    assert final["pooled"]["psnr"] == pytest.approx(float(frozen.psnr(tests).mean()), abs=1e-3)
    assert set(final["hospitals"]) == {"hospital-1", "hospital-2", "hospital-3"}
    trained = of(folder, "round_aggregated")
    assert trained[1]["metrics"]["loss_l1"] < trained[0]["metrics"]["loss_l1"]
    assert {e["kind"] for e in of(folder, "hospital_replied")} == {"describe", "train", "evaluate", "head"}
    assert {e["round"] for e in of(folder, "hospital_replied") if e["kind"] == "head"} == {2}
    page = (folder / "report.html").read_text()
    assert "PSNR" in page and "Balanced accuracy" not in page and "AUC" not in page

    exported = export(folder, "best", tmp_path / "a.safetensors")
    assert FrozenAutoencoder.load(exported).fingerprint == frozen.fingerprint
    assert b"/tmp" not in exported.read_bytes()
    with pytest.raises(CheckpointError, match=r"holds an autoencoder.*neither classifies nor draws"):
        open_trained(folder / "checkpoints" / "best.safetensors", device="cpu")


def test_no_label_is_looked_at(encoder_run) -> None:
    few, more = (last(run_local(encoder_run(run_name=f"l{n}", num_labels=n, num_rounds=1))) for n in (2, 6))
    assert all(np.array_equal(few[name], more[name]) for name in few)


def test_one_hospital_federated_is_the_run_without_a_federation_bit_for_bit(encoder_run) -> None:
    federated = last(run_local(encoder_run(num_hospitals=1, num_labels=0)))
    alone = last(train_alone(encoder_run(num_hospitals=1, num_labels=0, run_name="alone")))
    assert federated.keys() == alone.keys()
    assert all(np.array_equal(federated[name], alone[name]) for name in alone)
    assert alone["latent_std"].min() > 0


def test_a_resumed_run_ends_as_one_that_was_never_stopped(encoder_run) -> None:
    whole = last(run_local(encoder_run(num_rounds=3, run_name="whole")))

    def stop(event) -> None:
        if event["event"] == "round_started" and event["round"] == 3:
            raise KeyboardInterrupt

    run = encoder_run(num_rounds=3, run_name="stopped")
    with pytest.raises(KeyboardInterrupt):
        run_local(run, callback=stop)
    resumed = last(run_local(parse_run_config({"run-name": "stopped", "home": run.home, "resume": True})))
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(
    "changes",
    [{"secure_aggregation": True, "min_hospitals": 0}, {"upload": "int8", "download": "bf16"}, {"strategy": "median"}],
    ids=["secure sum", "codecs", "median"],
)
def test_what_the_framework_offers_holds_for_the_autoencoder(encoder_run, changes) -> None:
    plain = run_local(encoder_run(run_name="plain", num_rounds=1, local_steps=40))
    other = run_local(encoder_run(run_name="other", num_rounds=1, local_steps=40, **changes))
    frozen = FrozenAutoencoder.load(other / "checkpoints" / "last.safetensors")
    assert min(frozen.scale.std) > 0
    if "strategy" not in changes:
        one, two = (of(folder, "evaluated")[-1]["pooled"]["psnr"] for folder in (plain, other))
        assert abs(one - two) < 0.2


def test_what_leaves_is_declared_and_written_down(encoder_run) -> None:
    folder = run_local(encoder_run(num_rounds=1, local_steps=40))
    manifest = json.loads((folder / "sites" / "hospital-1" / "egress" / "tiny" / "round-0001.json").read_text())
    sent = {reply["kind"]: reply for reply in manifest["replies"]}
    assert {t["name"] for t in sent["head"]["tensors"]} == {"count", "sum", "squares"}
    names = {t["name"] for t in sent["evaluate"]["tensors"]}
    assert {f"test.{name}" for name in SHAPES} <= names
    assert {name.partition(".")[0] for name in names} <= {"test", "heldout"}
    told = [describe_tensor(kind, t["name"]) for kind in ("evaluate", "head") for t in sent[kind]["tensors"]]
    assert not any("layer" in text for text in told)
    assert not any(reply.get("stopped") for reply in manifest["replies"])


@pytest.mark.slow
def test_a_private_run_pays_and_sends_no_sums(encoder_run) -> None:
    run = encoder_run(noise_multiplier=1.0, num_rounds=1, local_steps=3, preset="", delta=1e-3, num_labels=0)
    with pytest.raises(RunError, match="collapsed, or was hardly trained"):
        run_local(run)
    folder = Path(run.home, "runs", "tiny")
    replied = of(folder, "hospital_replied")
    assert "head" not in {e["kind"] for e in replied}
    (trained,) = [e for e in replied if e["kind"] == "train" and e["hospital"] == "hospital-1"]
    assert trained["metrics"]["epsilon"] > 0
    assert not any("loss" in name for name in trained["metrics"])
    ledger = json.loads((folder / "sites" / "hospital-1" / "ledger.json").read_text())
    assert ledger["epsilon"] == pytest.approx(trained["metrics"]["epsilon"])
    assert last(folder)["latent_std"].min() > 0  # measured on phantoms


def test_a_collapsed_autoencoder_fails_the_run_and_says_what_to_do(encoder_run) -> None:
    run = encoder_run(num_rounds=1, local_steps=1)
    with pytest.raises(RunError, match=r"collapsed.*3 dB are needed.*Take more num-rounds"):
        run_local(run)
    assert of(Path(run.home, "runs", "tiny"), "run_failed")[0]["reason"].startswith("The autoencoder has collapsed")


@pytest.mark.parametrize(
    ("key", "value"),
    [("personal", "head"), ("share", "decoder-every:2"), ("weighting", "labels"), ("label-split", "server")],
)
def test_keys_that_mean_nothing_are_refused(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}={value}.* method=autoencoder"):
        parse_run_config({"method": "autoencoder", key: value, "num-labels": 12})


def test_a_size_that_does_not_fit_starts_no_run(tiny_run) -> None:
    run = tiny_run(method="autoencoder", model="kl-224", image_size=28, dataset="phantom")
    with pytest.raises(ConfigError, match="image-size 28 is no multiple of the autoencoder's downsampling of 8"):
        run_federation(LocalGrid(), run)
    assert not Path(run.home, "runs", "tiny").exists()
