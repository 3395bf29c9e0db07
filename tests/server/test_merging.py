"""Strategies and weightings by name, and the check of a change's norm against the others'."""

from __future__ import annotations

import numpy as np
import pytest

from jointdiff.config import RunConfig, parse_run_config, to_mapping
from jointdiff.errors import ConfigError
from jointdiff.protocol import RoundReport
from jointdiff.run_keys import ROBUST_STRATEGIES, STRATEGIES
from server.merging import merge, outliers, questionable
from server.optimizers import initial_moments
from server.replies import Reply
from server.spool import Spool
from server.weighting import hospital_weights


@pytest.fixture
def spool(tmp_path):
    with Spool(tmp_path / "spool") as spool:
        yield spool


def replies_of(spool, values, *, images=None, labels=None):
    replies = []
    for k, value in enumerate(values):
        name = f"hospital-{k + 1}"
        spool.write(name, {"x": np.asarray(value, np.float32)})
        report = RoundReport(name, num_images=(images or [1] * 9)[k], num_labels=(labels or [0] * 9)[k])
        replies.append(Reply(name, report))
    return replies


def merged(spool, replies, strategy="fedavg", **settings):
    start = {"x": np.zeros(1, np.float32)}
    run = RunConfig(strategy=strategy, num_hospitals=len(replies), **settings)
    moments = initial_moments(strategy, start)
    return merge(replies, spool, run, weights=start, moments=moments)[0]["x"].tolist()


def test_every_strategy_merges_equal_updates_into_a_step_their_way(spool):
    replies = replies_of(spool, [[2.0]] * 5)
    for strategy in STRATEGIES:
        value = merged(spool, replies, strategy)[0]
        assert 0 < value <= 2.0, strategy
        if strategy not in ("fedadam", "fedyogi"):
            assert value == 2.0, strategy


@pytest.mark.parametrize("strategy", ROBUST_STRATEGIES)
def test_robust_strategies_bear_one_that_is_wrong_whatever_it_claims_to_weigh(spool, strategy):
    replies = replies_of(spool, [[1.0], [1.1], [0.9], [1.05], [-50.0]], images=[1, 1, 1, 1, 10**8])
    assert 0.85 <= merged(spool, replies, strategy)[0] <= 1.15
    assert merged(spool, replies, "fedavg")[0] < -49


def test_weights_by_images_by_labels_or_equal(spool):
    replies = replies_of(spool, [[0.0], [3.0]], images=[1, 2], labels=[2, 0])
    assert merged(spool, replies) == [2.0]
    assert merged(spool, replies, weighting="labels") == [0.0]
    assert merged(spool, replies, weighting="equal") == [1.5]
    assert hospital_weights(replies_of(spool, [[0.0], [3.0]]), "labels") == [1.0, 1.0]


def test_a_change_out_of_all_proportion_is_named_with_its_factor(spool):
    start = {"x": np.zeros(1, np.float32)}
    replies = replies_of(spool, [[1.0], [2.0], [1.5], [3e6]])
    found = outliers(replies, spool, start)
    assert list(found) == ["hospital-4"] and "2e+06 times" in found["hospital-4"]
    assert not outliers(replies_of(spool, [[1.0], [2.0], [1.5], [9.0]]), spool, start)
    assert not outliers(replies_of(spool, [[1.0], [3e6]]), spool, start), "of two nobody knows which one is wrong"
    assert not outliers(replies_of(spool, [[0.0], [0.0], [1.0]]), spool, start), "nothing to compare with"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "fedavgg"}, "did you mean 'fedavg'"),
        ({"strategy": "krum"}, "at least 5"),
        ({"strategy": "median", "num-faulty": 2}, "at least 5"),
        ({"min-hospitals": 4}, "num-hospitals 3"),
        ({"weighting": "size"}, "Unknown weighting"),
        ({"round-timeout-s": 0}, "at least 1"),
        ({"server-learning-rate": 0.0}, "above 0"),
        ({"proximal-mu": -1.0}, "at least 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse_run_config({**to_mapping(RunConfig()), **changes})


def test_a_hospital_whose_labels_contradict_the_others_is_questioned():
    def replies(*losses):
        return [Reply(f"h{k}", RoundReport(f"h{k}", metrics={"loss_class": v})) for k, v in enumerate(losses)]

    def names(*losses):
        return list(questionable(replies(*losses), num_classes=2))

    assert names(0.2, 0.3, 2.4, 0.25) == ["h2"]
    assert "2.40" in questionable(replies(0.2, 0.3, 2.4, 0.25), num_classes=2)["h2"]
    assert not names(0.2, 0.3, 1.3, 0.25), "harder cases are no lie"
    assert not names(0.9, 0.9, 2.4), "where nobody has learned yet, nobody can contradict"
    assert not names(0.1, 2.4), "of two nobody knows which one is wrong"
    assert not questionable([Reply("h", RoundReport("h"))] * 3, num_classes=2), "a site may keep its loss to itself"
