"""A federation on latents: the autoencoder goes out once, every kind of run works on it, and one file is the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from client import latents
from jointdiff import latent_run, protocol
from jointdiff.data import hospital_data
from jointdiff.errors import CheckpointError
from jointdiff.events import read_events
from jointdiff.standalone import evaluate_checkpoint
from jointdiff.trained import open_trained
from simulations.local import run_local


def replies(folder: Path, kind: str, event: str = "hospital_replied") -> list[dict]:
    return [e for e in read_events(folder / "events.jsonl") if e["event"] == event and e.get("kind") == kind]


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "checkpoints" / "last.safetensors")


@pytest.fixture
def whole(tiny_run, tiny_autoencoder):
    return run_local(tiny_run(autoencoder=tiny_autoencoder(), num_rounds=3))


def test_the_autoencoder_goes_out_once_and_the_run_trains_on_latents(whole, tiny_run):
    first = replies(whole, protocol.AUTOENCODER)
    assert [e["hospital"] for e in first] == ["hospital-1", "hospital-2", "hospital-3"]
    kinds = [e["kind"] for e in read_events(whole / "events.jsonl") if e["event"] == "hospital_replied"]
    assert kinds[:6] == [protocol.AUTOENCODER] * 3 + [protocol.DESCRIBE] * 3
    per_round = replies(whole, protocol.TRAIN)[0]["bytes_in"]
    assert 0 < per_round < first[0]["bytes_in"] + per_round  # it is no part of later messages
    sent = {name for name in weights_of(whole) if not name.startswith("autoencoder/")}
    opened = open_trained(whole / "checkpoints" / "last.safetensors", device="cpu")
    assert sent == set(opened.model.state_dict()) and opened.model.config.input_channels == 4
    scans = np.concatenate([hospital_data(opened.config.run, k).test.images for k in range(3)])
    before = opened.predict(scans)
    assert before.shape == (18, 2)
    # what `jointdiff evaluate` says of the decoding is what anybody finds who decodes the scans and asks again
    decoded = opened.space.pictures(opened.space.inputs(scans))
    alike = (before.argmax(axis=1) == opened.predict(decoded).argmax(axis=1)).mean()
    told = evaluate_checkpoint(opened.model, opened.config, opened.device, space=opened.space)
    assert told["decoded_agreement"] == pytest.approx(alike) and told["num_images"] == 18


@pytest.mark.parametrize("moment", [{"event": "round_aggregated", "round": 2}, {"event": "round_started", "round": 1}])
def test_a_resumed_run_ends_with_the_same_weights(whole, tiny_run, tiny_autoencoder, moment, tmp_path):
    run = tiny_run(autoencoder=tiny_autoencoder(), num_rounds=3, run_name="cut")

    def stop(event):
        if all(event.get(k) == v for k, v in moment.items()):
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        run_local(run, stop)
    Path(run.autoencoder).unlink()  # the run has its own copy
    folder = run_local(tiny_run(autoencoder=run.autoencoder, num_rounds=3, run_name="cut", resume=True))
    resumed, straight = weights_of(folder), weights_of(whole)
    assert all(np.array_equal(resumed[name], straight[name]) for name in straight)


def test_a_hospital_that_lost_the_autoencoder_gets_it_again(tiny_run, tiny_autoencoder):
    run = tiny_run(autoencoder=tiny_autoencoder(), num_rounds=3)
    site = Path(run.home) / "runs" / "tiny" / "sites" / "hospital-2"

    def lose(event):
        if event["event"] == "evaluated" and event["round"] == 1:
            shutil.rmtree(site / "autoencoders")

    folder = run_local(run, lose)
    refused = replies(folder, protocol.TRAIN, "hospital_refused")
    assert [(e["hospital"], e["round"]) for e in refused] == [("hospital-2", 2)]
    assert [(e["hospital"], e["round"]) for e in replies(folder, protocol.AUTOENCODER)[3:]] == [("hospital-2", 3)]
    assert [e["hospital"] for e in replies(folder, protocol.TRAIN) if e["round"] == 3].count("hospital-2") == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"secure_aggregation": True, "min_hospitals": 0},
        {"label_split": "server", "num_labels": 20},
        {"noise_multiplier": 1.0, "method": "joint"},
        {"upload": "int8", "download": "bf16"},
        {"personal": "head"},
    ],
    ids=["secure", "labels at the server", "private", "encoded", "personal"],
)
def test_other_kinds_of_runs_work_on_latents(tiny_run, tiny_autoencoder, changes):
    folder = run_local(tiny_run(autoencoder=tiny_autoencoder(), num_rounds=2, **changes))
    assert len(replies(folder, protocol.TRAIN)) == 6
    final = json.loads((folder / "metrics.json").read_text())["final"]
    assert final["pooled"]["num_images"] == 18


def test_edits_are_compared_with_decoded_scans_and_the_loss_of_encoding_stands_apart(
    tiny_run, tiny_autoencoder, quick_referee
):
    folder = run_local(tiny_run(autoencoder=tiny_autoencoder(), num_rounds=1, explain=3))
    gallery = folder / "sites" / "hospital-2" / "explanations" / "tiny"
    grades = json.loads((folder / "metrics.json").read_text())["explanations"]["pooled"]
    assert grades["num_scans"] == 9 and 0 <= grades["decoded_agreement"] <= 1
    # An untrained autoencoder loses nearly everything; an edit of its picture is small beside that.
    assert grades["decoded_l1"] > 0.1 and grades["l1"] < grades["decoded_l1"]
    page = (gallery / "index.html").read_text()
    assert page.count("Decoded scan") >= 3 and (gallery / "0002-decoded.png").is_file()
    items = json.loads((gallery / "metrics.json").read_text())["items"]
    assert all(item["decoded"].endswith("-decoded.png") for item in items)
    assert (folder / "samples.png").is_file()


def test_what_a_run_keeps_at_the_server_holds_no_latent(whole):
    below = [path.relative_to(whole) for path in whole.rglob("*.cache")]
    assert below and all(path.parts[0] == "sites" and path.parts[2] == latents.CACHE for path in below)


def test_a_run_whose_copy_is_gone_does_not_go_on(tiny_run, tiny_autoencoder):
    run = tiny_run(autoencoder=tiny_autoencoder())

    def stop(event):
        if event["event"] == "round_aggregated":
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        run_local(run, stop)
    (Path(run.home) / "runs" / "tiny" / latent_run.FILE).unlink()
    with pytest.raises(CheckpointError, match="The run's autoencoder is gone"):
        run_local(tiny_run(autoencoder=run.autoencoder, resume=True))
