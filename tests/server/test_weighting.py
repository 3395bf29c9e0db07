"""What each hospital counts, formula by formula; parts with rules of their own, in slices and in whole runs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from client.app import app as client_app
from jointdiff import parcels
from jointdiff.config import Config, RunConfig, parse_run_config, resolve, to_mapping
from jointdiff.errors import ConfigError
from jointdiff.preparation import initial_weights, prepare
from jointdiff.protocol import RoundReport
from jointdiff.sharing import PARTS, part_of
from server import slices
from server.aggregation import fedavg, fedavg_by_tensor
from server.merging import merge
from server.optimizers import initial_moments
from server.replies import Reply
from server.rounds import run_federation
from server.run_state import read_state
from server.slices import InMemory
from server.spool import Spool
from server.weighting import hospital_weights, weights_by_part
from simulations.local import LocalGrid

LEARNING_HEAD = (
    "head: gradient\npseudo-policy: fixed\nthreshold: 0.6\nteacher: local\nwarmup-fraction: 0.34\nlearning-rate: 0.01\n"
)


def reply(name, images, labels, coverage=None):
    metrics = {} if coverage is None else {"pseudo_coverage": coverage}
    return Reply(name, RoundReport(name, num_images=images, num_labels=labels, metrics=metrics))


def test_confidence_counts_the_images_whose_label_is_known_or_believed():
    replies = [reply("a", 100, 20, 0.5), reply("b", 50, 0, 0.9), reply("c", 40, 0, 0.0), reply("d", 30, 30)]
    assert hospital_weights(replies, "confidence") == [60.0, 45.0, 0.0, 30.0]
    replies = [reply("a", 100, 20, 0.5), reply("b", 40, 4)]
    assert hospital_weights(replies, "confidence") == [60.0, 4.0], "without a coverage its labels alone count"


def test_without_any_coverage_confidence_counts_images():
    assert hospital_weights([reply("a", 100, 20), reply("b", 50, 0)], "confidence") == [100.0, 50.0]
    nobody = [reply("a", 100, 0, 0.0), reply("b", 50, 0, 0.0)]
    assert hospital_weights(nobody, "confidence") == [1.0, 1.0], "nobody believes anything: all alike"


@pytest.mark.parametrize("claimed", [-3.0, 1.7, 1e9])
def test_a_claimed_confidence_cannot_make_a_hospital_heavier_than_its_images(claimed):
    assert hospital_weights([reply("a", 100, 20, claimed)], "confidence") == [20.0 if claimed < 0 else 100.0]


def test_parts_have_weights_of_their_own_and_others_go_with_the_encoder():
    replies = [reply("a", 100, 0), reply("b", 50, 12)]
    run = RunConfig(head_weighting="labels")
    assert weights_by_part(replies, run.weightings) == {
        "encoder": [100.0, 50.0], "head": [0.0, 12.0], "decoder": [100.0, 50.0],
    }  # fmt: skip
    assert weights_by_part(replies, RunConfig(weighting="labels").weightings)["decoder"] == [0.0, 12.0]
    unlabelled = [reply("a", 100, 0), reply("b", 50, 0)]
    assert weights_by_part(unlabelled, run.weightings)["head"] == [0.0, 0.0], "no labels: the head has no mean"
    assert weights_by_part(unlabelled, RunConfig(weighting="labels").weightings)["head"] == [1.0, 1.0]


@pytest.mark.parametrize("at_once", [3, slices.VALUES_AT_ONCE])
def test_the_mean_by_parts_is_each_parts_own_mean_and_a_part_without_weight_stays(monkeypatch, at_once):
    monkeypatch.setattr(slices, "VALUES_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    names = ("unet.down.0", "head.linear.bias", "unet.up.0")
    tensors = [{name: rng.normal(size=(5, 2)).astype(np.float32) for name in names} for _ in range(3)]
    parts, start = [InMemory(t) for t in tensors], {name: np.full((5, 2), 7, np.float32) for name in names}
    counted = {"encoder": [3.0, 1.0, 2.0], "head": [0.0, 4.0, 0.0], "decoder": [0.0, 0.0, 0.0]}
    merged = fedavg_by_tensor(parts, lambda name: counted[part_of(name)], start)
    assert list(merged) == list(start)
    expected = sum(w * t["unet.down.0"].astype(np.float64) for w, t in zip((3, 1, 2), tensors, strict=True)) / 6
    np.testing.assert_allclose(merged["unet.down.0"], expected, rtol=1e-6)
    assert np.array_equal(merged["head.linear.bias"], tensors[1]["head.linear.bias"])
    assert np.array_equal(merged["unet.up.0"], start["unet.up.0"]) and merged["unet.up.0"] is not start["unet.up.0"]


def test_with_one_rule_the_mean_by_parts_is_fedavg_bit_for_bit():
    rng = np.random.default_rng(1)
    tensors = [{n: rng.normal(size=999).astype(np.float32) for n in ("unet.down.0", "head.x")} for _ in range(3)]
    parts = [InMemory(t) for t in tensors]
    one, by_part = fedavg(parts, [3, 5, 7], tensors[0]), fedavg_by_tensor(parts, lambda _: [3, 5, 7], tensors[0])
    assert all(np.array_equal(one[name], by_part[name]) for name in one)


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedadam", "fedyogi"])
def test_every_mean_strategy_takes_the_parts_rules(tmp_path, strategy):
    start = {name: np.zeros(1, np.float32) for name in ("unet.down.0", "head.linear.bias", "unet.up.0")}
    replies = [reply("a", 3, 0), reply("b", 1, 5)]
    run = RunConfig(strategy=strategy, head_weighting="labels", decoder_weighting="equal", server_learning_rate=1.0)
    with Spool(tmp_path / "spool") as spool:
        for name, value in (("a", -1.0), ("b", 2.0)):
            spool.write(name, {tensor: np.float32([value]) for tensor in start})
        merged, _ = merge(replies, spool, run, weights=start, moments=initial_moments(strategy, start))
    encoder, head, decoder = (float(merged[name][0]) for name in start)
    assert encoder < 0 < decoder < head, "means -1/4, 2 and 1/2; the adaptive steps keep the order"
    if strategy in ("fedavg", "fedprox"):
        assert (encoder, head, decoder) == (-0.25, 2.0, 0.5)


@pytest.fixture
def two_labels(tiny_run, tiny_files):
    """A function that runs three tiny hospitals with two labels; returns the last round's weights and answers."""
    (preset := tiny_files / "learning-head.yaml").write_text(LEARNING_HEAD)

    def go(**changes):
        answers: dict[str, tuple[dict, dict[str, np.ndarray]]] = {}

        def listening(message, context):
            answer = client_app(message, context)
            if message.metadata.message_type == "train":
                report = json.loads(str(answer.content.config_records["report"]["json"]))
                arrays = answer.content.array_records["arrays"].values()
                answers[report["hospital"]] = report, parcels.unpack_all(array.numpy() for array in arrays)
            return answer

        run = tiny_run(num_labels=2, num_rounds=3, preset=str(preset), **changes)
        folder = run_federation(LocalGrid(listening), run)
        return read_state(folder).weights, list(answers.values())

    return go


def mean_of(answers, name, weights):
    total = sum(w * tensors[name].astype(np.float64) for w, (_, tensors) in zip(weights, answers, strict=True))
    return (total / sum(weights)).astype(np.float32)


def test_in_a_run_a_site_without_labels_moves_the_encoder_and_not_the_head(two_labels):
    weights, answers = two_labels(**{"head-weighting": "labels"})
    labels = [report["num_labels"] for report, _ in answers]
    images = [report["num_images"] for report, _ in answers]
    assert 0 in labels and sum(labels) == 2
    for name, array in weights.items():
        counted = labels if part_of(name) == "head" else images
        assert np.array_equal(array, mean_of(answers, name, counted)), name
    learned = "head.linear.weight"
    assert not np.array_equal(weights[learned], mean_of(answers, learned, images)), "the others' heads did move"


def test_in_a_run_confidence_weighs_by_the_coverage_that_each_hospital_reports(two_labels):
    weights, answers = two_labels(weighting="confidence")
    counted = [
        r["num_labels"] + r["metrics"]["pseudo_coverage"] * (r["num_images"] - r["num_labels"]) for r, _ in answers
    ]
    assert len(set(counted)) > 1
    assert all(np.array_equal(array, mean_of(answers, name, counted)) for name, array in weights.items())


def settings_error(**changes):
    with pytest.raises(ConfigError) as caught:
        parse_run_config({**to_mapping(RunConfig()), **changes})
    return str(caught.value)


def test_weightings_that_cannot_be_are_refused():
    assert "did you mean 'confidence'" in settings_error(weighting="confidense")
    assert "Unknown head-weighting 'label'" in settings_error(**{"head-weighting": "label"})
    assert "robust rule" in settings_error(**{"head-weighting": "labels", "strategy": "median"})
    assert "adds whole models" in settings_error(**{"decoder-weighting": "equal", "secure-aggregation": True})
    assert "only afterwards" in settings_error(weighting="confidence", **{"secure-aggregation": True})


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"weighting": "confidence", "method": "supervised"}, "method=supervised makes none"),
        ({"head-weighting": "labels", "method": "joint"}, "solved anew"),
    ],
)
def test_weightings_that_would_change_nothing_with_a_preset_are_refused(keys, message):
    run = parse_run_config({**to_mapping(RunConfig()), **keys})
    with pytest.raises(ConfigError, match=message):
        resolve(run, channels=1, num_outputs=2, task="multi-class")


def test_the_parts_share_out_the_networks_tensors(tiny_run):
    config: Config = prepare(tiny_run())[0]
    found = {part: [name for name in initial_weights(config) if part_of(name) == part] for part in PARTS}
    assert set(found["head"]) == {"head.mean", "head.scale", "head.linear.weight", "head.linear.bias"}
    assert found["encoder"] and found["decoder"] and not any("up." in name for name in found["encoder"])
