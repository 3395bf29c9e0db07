"""The server's own labelled set: what it changes, what is solved from it, and that it survives a crash."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from jointdiff.config import Config, parse_run_config
from jointdiff.data import hospital_data
from jointdiff.data.hospital import dealt_to_server
from jointdiff.data.server_set import server_data
from jointdiff.errors import ConfigError, DataError
from jointdiff.events import read_events
from jointdiff.head import head_statistics, solve_head
from jointdiff.head_sums import add_sums
from jointdiff.model import model_with
from jointdiff.standalone import train_alone
from server.run_state import read_state
from simulations.local import run_local


def of(events, name, **fields):
    return [e for e in events if e["event"] == name and all(e.get(k) == v for k, v in fields.items())]


def last(folder) -> dict[str, np.ndarray]:
    return load_file(folder / "checkpoints" / "last.safetensors")


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def config_of(folder) -> Config:
    return Config.from_dict(read_events(folder / "events.jsonl")[0]["config"])


def test_no_hospital_has_a_label_and_the_server_trains_on_its_own(tiny_run):
    folder = run_local(tiny_run(label_split="server", num_labels=12, num_rounds=1))
    events = read_events(folder / "events.jsonl")
    assert not of(events, "hospital_failed")
    assert [e["num_labels"] for e in of(events, "hospital_replied", kind="train")] == [0] * 3
    assert [e["num_images"] for e in of(events, "hospital_replied", kind="train", round=1)] == [12, 12, 12]
    (held,) = of(events, "server_set")
    assert held["table"]["labelled"] == [6, 6]
    trained = of(events, "server_trained")
    assert [(e["round"], e["num_labels"]) for e in trained] == [(1, 12)]
    assert all({"loss_class", "loss_diffusion"} <= e["metrics"].keys() for e in trained)
    assert not any("loss_pseudo" in e["metrics"] for e in trained)
    without = run_local(tiny_run(label_split="server", num_labels=12, num_rounds=1, server_steps=0, run_name="without"))
    assert not of(read_events(without / "events.jsonl"), "server_trained") and not same(last(folder), last(without))
    as_many = run_local(tiny_run(label_split="server", num_labels=12, num_rounds=1, server_steps=2, run_name="as-many"))
    assert same(last(folder), last(as_many))  # local-steps is 2


def test_the_head_is_that_of_all_images_in_one_place_with_the_servers_labels(tiny_run, tiny_files):
    preset = tiny_files / "frozen.yaml"
    preset.write_text("class-weight: 0.0\npseudo-weight: 0.0\nwarmup-fraction: 1.0\nema-decay: 0.0\n")
    run = tiny_run(label_split="server", num_labels=12, num_rounds=1, method="two-stage", preset=str(preset))
    folder = run_local(run)
    weights, config, device = last(folder), config_of(folder), torch.device("cpu")
    model = model_with(config.model, weights, device)
    parts = [dealt_to_server(run), *(hospital_data(run, k) for k in range(3))]
    solved = solve_head(add_sums([head_statistics(model, part, config, device) for part in parts]), config)
    for name, tensor in solved.items():
        np.testing.assert_allclose(weights[name], tensor.numpy(), rtol=1e-4, atol=1e-5)
    only = solve_head(add_sums([head_statistics(model, part, config, device) for part in parts[1:]]), config)
    assert np.abs(only["head.linear.weight"].numpy()).max() < 1e-6 < np.abs(weights["head.linear.weight"]).max()


@pytest.mark.parametrize("method", ["two-stage", "supervised"])
def test_labels_that_do_not_count_yet_move_nothing(tiny_run, method):
    folder = run_local(tiny_run(label_split="server", method=method, num_rounds=1))
    assert len(of(read_events(folder / "events.jsonl"), "server_trained")) == (method == "supervised")


def test_a_secure_sum_and_the_servers_own_add_up(tiny_run):
    settings = {"label_split": "server", "num_rounds": 1, "min_hospitals": 0, "method": "two-stage"}
    plain = last(run_local(tiny_run(run_name="plain", **settings)))
    secure = last(run_local(tiny_run(run_name="secure", secure_aggregation=True, **settings)))
    assert all(np.allclose(plain[name], secure[name], atol=2e-3) for name in plain)


@pytest.mark.usefixtures("small_holdouts")
def test_held_out_labels_of_the_server_choose_the_best_round(tiny_run):
    folder = run_local(tiny_run(label_split="server", num_labels=24, num_rounds=1))
    events = read_events(folder / "events.jsonl")
    (held,), (evaluated,) = of(events, "server_set"), of(events, "evaluated")
    assert held["table"]["num_heldout"] == 4 and held["table"]["num_labelled"] == 20
    assert 0 <= evaluated["heldout_auc"] <= 1 and sorted(evaluated["hospitals"]) == [f"hospital-{k}" for k in (1, 2, 3)]
    assert evaluated["pooled"]["num_images"] == 18


def test_a_run_that_stops_goes_on_bit_for_bit(tiny_run):
    settings = {"label_split": "server", "num_labels": 12}
    straight = run_local(tiny_run(run_name="straight", **settings))

    def stop(event):
        if event["event"] == "server_trained" and event["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_local(tiny_run(**settings), callback=stop)
    folder = run_local(tiny_run(resume=True, **settings))
    assert same(last(folder), last(straight))
    states = [read_state(f) for f in (folder, straight)]
    assert states[0].labelled_set and same(states[0].labelled_set, states[1].labelled_set)
    assert states[0].labelled_set["optimizer.step"].shape == ()


def test_nobody_trains_alone_without_labels(tiny_run):
    with pytest.raises(ConfigError, match="label-split=server gives all labels to a server"):
        train_alone(tiny_run(label_split="server"))


def sites(path, **changes):
    keys = {"dataset": "sites", "classes": "healthy,ill", "num-labels": 0, "image-size": 16, "label-split": "server"}
    return parse_run_config({**keys, "server-data": str(path), **changes})


def save(path, labels, *, size=16, **arrays):
    images = np.random.default_rng(0).integers(0, 255, (len(labels), size, size)).astype(np.uint8)
    np.savez(path, train_images=images, train_labels=np.array(labels), **arrays)
    return path


def test_over_real_hospitals_the_server_brings_a_file_of_its_own(tmp_path):
    names = np.array(["healthy", "ill"])
    path = save(tmp_path / "own.npz", [0, 1, 1, -1, 0], size=24, class_names=names)
    data = server_data(sites(path))
    assert data.train.labels.tolist() == [0, 1, 1, 0] and data.train.images.shape == (4, 16, 16, 1)
    assert data.heldout is None and not len(data.test)
    many = server_data(sites(save(tmp_path / "many.npz", [0, 1] * 50)))
    assert len(many.train) == 80 and many.heldout is not None and many.heldout.labels.tolist().count(1) == 10
    assert server_data(sites(path, channels=3)).train.images.shape == (4, 16, 16, 3)


@pytest.mark.parametrize(
    ("labels", "arrays", "message"),
    [
        ([0, 1, 2], {}, "0, 1, 2, but the run is multi-class with healthy, ill"),
        ([0, 1], {"class_names": np.array(["ill", "healthy"])}, "in the run's order"),
        ([[0, 1], [1, 1]], {}, "multi-label"),
        ([-1, -1], {"class_names": np.array(["healthy", "ill"])}, "holds no labelled image"),
    ],
)
def test_a_file_that_does_not_fit_the_run_is_refused(tmp_path, labels, arrays, message):
    with pytest.raises(DataError, match=message):
        server_data(sites(save(tmp_path / "own.npz", labels, **arrays)))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"does not exist: .*missing\.npz"):
        server_data(sites(tmp_path / "missing.npz"))
