from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from client import round as client_round
from client import state
from jointdiff import identity, protocol
from jointdiff.data import hospital_data
from jointdiff.errors import RefusedError
from jointdiff.preparation import initial_weights, prepare
from jointdiff.protocol import RoundInstructions, RoundReport
from jointdiff.statistics import ClassificationStatistics


@pytest.fixture
def config(tiny_run):
    return prepare(tiny_run(explain=3))[0]


@pytest.fixture
def ask(config, tmp_path):
    def make(kind, round_number=1, **changes):
        asked = RoundInstructions(
            kind=kind,
            run_name="tiny",
            hospital="hospital-2",
            hospital_index=1,
            round=round_number,
            config=config.to_dict(),
            site_folder=str(tmp_path / "site"),
            code_version=identity.code_version(),
            code_hash=identity.code_hash(),
        )
        return dataclasses.replace(asked, **changes)

    return make


def test_describe_tells_the_class_table_and_the_device(ask):
    report, tensors = client_round.run(ask(protocol.DESCRIBE), {})
    assert (report.num_images, report.num_labels, report.device) == (16, 4, "cpu")
    assert report.table["labelled"] == [2, 2] and not tensors


def test_train_returns_changed_weights_of_the_same_names_and_keeps_its_state(ask, config, tmp_path):
    weights = initial_weights(config)
    report, trained = client_round.run(ask(protocol.TRAIN), weights)
    assert trained.keys() == weights.keys()
    assert any(not np.array_equal(trained[name], weights[name]) for name in weights)
    assert all(array.dtype == np.float32 and array.shape == weights[name].shape for name, array in trained.items())
    assert report.metrics["loss"] > 0 and report.duration_s > 0
    assert state.load(tmp_path / "site", "tiny", before=2) is not None


def test_a_repeated_round_gives_the_same_weights_bit_for_bit(ask, config):
    weights = initial_weights(config)
    _, first = client_round.run(ask(protocol.TRAIN), weights)
    _, second = client_round.run(ask(protocol.TRAIN, 2), first)
    _, again = client_round.run(ask(protocol.TRAIN, 2), first)
    assert all(np.array_equal(second[name], again[name]) for name in weights)


def test_the_state_of_the_round_before_matters(ask, config, tmp_path):
    weights = initial_weights(config)
    _, with_state = (client_round.run(ask(protocol.TRAIN, number), weights) for number in (1, 2))
    _, without = client_round.run(ask(protocol.TRAIN, 2, site_folder=str(tmp_path / "elsewhere")), weights)
    assert any(not np.array_equal(with_state[1][name], without[name]) for name in weights)


def test_evaluate_sends_statistics_of_the_test_images_and_no_image(ask, config):
    report, arrays = client_round.run(ask(protocol.EVALUATE), initial_weights(config))
    test = {name.removeprefix("test."): array for name, array in arrays.items() if name.startswith("test.")}
    finished = ClassificationStatistics.from_arrays(test).finish()
    assert finished["num_images"] == report.num_images == len(hospital_data(config.run, 1).test)


def test_explain_writes_the_gallery_at_the_site_and_sends_numbers_alone(ask, config, tmp_path, quick_referee):
    report, tensors = client_round.run(ask(protocol.EXPLAIN, 2), initial_weights(config))
    assert (tmp_path / "site" / "explanations" / "tiny" / "index.html").is_file()
    assert report.num_images == 3 and not tensors
    assert all(isinstance(value, int | float) for value in report.metrics.values())
    assert RoundReport.from_json(report.to_json()) == report


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"code_hash": "f" * 64}, "ffffffffffff"),
        ({"code_version": "9.9"}, "9.9"),
        ({"kind": "dance"}, "does not know"),
        ({"run_name": "../../etc"}, "no plain name"),
    ],
)
def test_what_a_site_does_not_do(ask, changes, text):
    with pytest.raises(RefusedError, match=text):
        client_round.run(dataclasses.replace(ask(protocol.DESCRIBE), **changes), {})
