"""The allow-list of each kind: what is honest passes unchanged, and one step beside it is stopped."""

from __future__ import annotations

import base64
import dataclasses

import numpy as np
import pytest

from client import egress
from client.egress import StoppedError, check
from client.site_policy import SIMULATED, SitePolicy
from jointdiff import identity, protocol
from jointdiff.config import Config
from jointdiff.data import class_table, hospital_data
from jointdiff.head_sums import head_sums
from jointdiff.preparation import initial_weights, prepare
from jointdiff.protocol import RoundInstructions, RoundReport
from jointdiff.small_counts import withhold
from jointdiff.statistics import COARSE_BINS, NUM_BINS, ClassificationStatistics


def b64(num_bytes: int) -> str:
    return base64.b64encode(bytes(num_bytes)).decode()


STRICT = SitePolicy(min_cell_count=10)


@pytest.fixture(scope="module")
def scores():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    p = 1 / (1 + np.exp(-(rng.normal(size=300) + 3 * labels - 1.5)))
    return np.stack([1 - p, p], 1), labels


@pytest.fixture
def config(tiny_run) -> Config:
    return prepare(tiny_run())[0]


@pytest.fixture
def let_through(config):
    """A function that holds a reply against the allow-list of a kind."""

    def go(kind, arrays=None, policy=SIMULATED, **report):
        ask = RoundInstructions(
            kind=kind, run_name="tiny", hospital="hospital-1", hospital_index=0, round=1, config=config.to_dict(),
            site_folder="", code_version=identity.code_version(), code_hash=identity.code_hash(),
        )  # fmt: skip
        return check(ask, RoundReport("hospital-1", device="cpu", **report), arrays or {}, policy)

    return go


def table(config, **changes):
    honest = class_table(hospital_data(config.run, 0)) | {"min_cell_count": 0, "server_samples": True}
    return {name: value for name, value in (honest | changes).items() if value != "drop"}


def test_weights_pass_as_they_are_and_in_the_model_s_own_order(let_through, config):
    weights = initial_weights(config)
    turned = dict(reversed(weights.items()))  # an order of names is a channel too
    report, kept = let_through(protocol.TRAIN, turned, num_images=16, metrics={"loss_class": 1, "loss": 0.5})
    assert list(kept) == list(weights) and all(kept[name] is weights[name] for name in weights)
    assert report.metrics == {"loss": 0.5, "loss_class": 1.0} and type(report.metrics["loss_class"]) is float


def test_the_class_table_passes_with_what_is_withheld(let_through, config):
    assert let_through(protocol.DESCRIBE, table=table(config))[0].table == table(config)
    withheld = table(config, labelled=None, num_labelled=None, num_unlabelled=None)
    assert let_through(protocol.DESCRIBE, table=withheld)[0].table == withheld


@pytest.mark.parametrize(
    "changes, what",
    [
        ({"class_names": ["doe", "1956"]}, "names of classes"),
        ({"scan": [0, 1]}, "an undeclared field of the class table"),
        ({"num_test": "drop"}, "an undeclared field of the class table"),
        ({"test": [1, 2, 3]}, "counts that are not one per class"),
        ({"test": [1, 10**300]}, "a count that is none"),
        ({"test": [1, -1]}, "a count that is none"),
        ({"num_test": 0.123}, "a count that is none"),
        ({"num_test": "doe"}, "a count that is none"),
        ({"server_samples": "doe"}, "neither yes nor no"),
    ],
)
def test_a_class_table_of_another_form_is_stopped(let_through, config, changes, what):
    with pytest.raises(StoppedError, match=what):
        let_through(protocol.DESCRIBE, table=table(config, **changes))


@pytest.mark.parametrize("kind", [protocol.DESCRIBE, protocol.EXPLAIN])
def test_kinds_without_tensors_have_none(let_through, config, kind):
    report = {"table": table(config)} if kind == protocol.DESCRIBE else {"metrics": {"validity": 0.5}}
    let_through(kind, **report)
    with pytest.raises(StoppedError, match="an undeclared tensor"):
        let_through(kind, {"scan": np.zeros(3)}, **report)


def test_sums_of_the_head_pass_and_features_of_images_do_not(let_through, config):
    size = len(initial_weights(config)["head.mean"])
    features = np.ones((4, size))
    sums = head_sums(features, features, np.array([0, 1, 0, 1]), 2)
    let_through(protocol.HEAD, sums)
    with pytest.raises(StoppedError, match="another shape"):
        let_through(protocol.HEAD, sums | {"sum": features})
    with pytest.raises(StoppedError, match="an undeclared scalar"):
        let_through(protocol.HEAD, sums, metrics={"loss": 0.5})


def statistics(scores, num_bins, part="test"):
    found = ClassificationStatistics.from_predictions(*scores, task="multi-class", num_bins=num_bins)
    return {f"{part}.{name}": array for name, array in found.to_arrays().items()}


def test_statistics_have_the_bins_that_the_policy_asks_for(let_through, scores):
    let_through(protocol.EVALUATE, statistics(scores, NUM_BINS), num_images=300)
    for num_bins, policy in ((COARSE_BINS, SIMULATED), (NUM_BINS, STRICT), (128, STRICT)):
        with pytest.raises(StoppedError, match="other bins"):
            let_through(protocol.EVALUATE, statistics(scores, num_bins), policy, num_images=300)


def test_small_counts_are_stopped_even_where_the_work_forgot_them(let_through, scores):
    with pytest.raises(StoppedError, match="below the site's min-cell-count"):
        let_through(protocol.EVALUATE, statistics(scores, COARSE_BINS), STRICT, num_images=300)
    whole = ClassificationStatistics.from_predictions(*scores, task="multi-class", num_bins=COARSE_BINS)
    kept, _ = withhold(whole, STRICT.min_cell_count)
    assert kept is not None
    arrays = {f"heldout.{name}": array for name, array in kept.to_arrays().items()}
    let_through(protocol.EVALUATE, arrays, STRICT, withheld=["test"])
    with pytest.raises(StoppedError, match="other bins"):
        let_through(protocol.EVALUATE, arrays, SIMULATED)


def test_statistics_that_contradict_themselves_are_stopped(let_through, scores):
    arrays = statistics(scores, NUM_BINS)
    with pytest.raises(StoppedError, match="contradict"):
        let_through(protocol.EVALUATE, arrays | {"test.log_loss": np.array([-1])}, num_images=300)
    with pytest.raises(StoppedError, match="contradict"):
        let_through(protocol.EVALUATE, {"test.header": arrays["test.header"]}, num_images=300)
    with pytest.raises(StoppedError, match="more images than the report counts"):
        let_through(protocol.EVALUATE, arrays, num_images=299)


def test_grades_pass_by_name(let_through):
    grades = {"validity": 0.5, "num_scans": 12.0, "samples.kid.1.real.error": 0.1, "samples.num": 96.0}
    assert let_through(protocol.EXPLAIN, metrics=grades)[0].metrics == grades
    for name in ("samples.kid.2.real", "samples.kid.1.doe", "scan-0001"):
        with pytest.raises(StoppedError, match="an undeclared scalar"):
            let_through(protocol.EXPLAIN, metrics={name: 0.5})


def test_with_differential_privacy_no_scalar_of_training_records_leaves(config):
    private = dataclasses.replace(config, run=dataclasses.replace(config.run, target_epsilon=8.0))
    noisy = dataclasses.replace(config, run=dataclasses.replace(config.run, noise_multiplier=1.0))
    training, grades = egress._SCALARS[protocol.TRAIN], egress._SCALARS[protocol.EXPLAIN]
    assert "loss" in training(config) and "epsilon" not in training(config)
    assert "referee_validity" in grades(config) and "samples.kid.0.real" in grades(config)
    for changed in (private, noisy):
        assert not {name for name in training(changed) if "loss" in name or "pseudo" in name or "images" in name}
        assert {"epsilon", "delta", "noise_multiplier", "sample_rate", "steps"} <= training(changed)
        assert not {name for name in grades(changed) if "referee" in name or "samples" in name}
        assert "validity" in grades(changed)


@pytest.mark.parametrize(
    "kind, honest, wrong",
    [
        (protocol.KEYS, {"keys": ["A" * 43 + "=", "B" * 43 + "="]}, {"keys": ["A" * 43 + "="] * 3}),
        (protocol.SHARES, {"sealed": {"hospital-2": b64(92)}}, {"sealed": {"hospital-2": b64(93)}}),
        (protocol.SHARES, {"sealed": {"hospital-2": b64(92)}}, {"sealed": {"doe": b64(92)}}),
        (
            protocol.UNMASK,
            {"seeds": {"hospital-2": b64(32)}, "keys": {}},
            {"seeds": {"hospital-2": "not base64" * 4}, "keys": {}},
        ),
        (protocol.UNMASK, {"seeds": {}, "keys": {}}, {"seeds": {}, "keys": {}, "scan": b64(32)}),
    ],
)
def test_secrets_of_a_secure_sum_have_a_fixed_form(let_through, kind, honest, wrong):
    assert let_through(kind, payload=honest)[0].payload == honest
    with pytest.raises(StoppedError, match=r"payload|key or share"):
        let_through(kind, payload=wrong)
    with pytest.raises(StoppedError, match="an undeclared payload"):
        let_through(protocol.EXPLAIN, payload=honest)


def test_in_a_secure_sum_weights_leave_masked_or_not_at_all(config):
    secure = dataclasses.replace(config, run=dataclasses.replace(config.run, secure_aggregation=True))
    forms = egress._PAYLOADS[protocol.TRAIN](secure, SIMULATED).required
    assert {form.dtype for form in forms.values()} == {"uint32"}
    assert {f.dtype for f in egress._PAYLOADS[protocol.HEAD](secure, SIMULATED).required.values()} == {"uint64"}


def test_every_kind_of_the_protocol_has_an_allow_list():
    assert set(egress.KINDS) == set(protocol.KINDS) == set(egress._SCALARS)


def test_a_failure_carries_nothing_but_its_reason(let_through):
    report, kept = let_through(protocol.TRAIN, status="failed", code="data", reason="There are no images.")
    assert not kept and report == dataclasses.replace(
        RoundReport("hospital-1"), status="failed", code="data", reason="There are no images."
    )
    with pytest.raises(StoppedError, match="a value in a report that is not ok"):
        let_through(protocol.TRAIN, status="failed", num_images=3)
