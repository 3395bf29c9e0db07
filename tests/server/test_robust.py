"""The merging rules, held to their definitions on small cases and to each other on random ones."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest

from server import slices
from server.optimizers import BETA_1, BETA_2, TAU, adaptive_step, initial_moments
from server.robust import krum, median, trimmed_mean
from server.slices import InMemory
from server.spool import Spool


def parts_of(values):
    return [InMemory({"x": np.asarray(v, np.float32)}) for v in values]


def test_the_trimmed_mean_leaves_out_both_ends_coordinate_by_coordinate():
    parts = parts_of([[1, 9], [2, 1], [3, 2], [4, 3], [1e6, -1e6]])
    assert trimmed_mean(parts, parts[0].tensors, num_faulty=1)["x"].tolist() == [3, 2]
    plain = trimmed_mean(parts[:4], parts[0].tensors, num_faulty=0)["x"]
    np.testing.assert_allclose(plain, [2.5, 3.75])


def test_with_too_few_parts_one_value_is_left():
    parts = parts_of([[1.0], [5.0]])
    assert trimmed_mean(parts, parts[0].tensors, num_faulty=3)["x"].tolist() == [3.0]
    parts = parts_of([[1.0], [5.0], [90.0]])
    assert trimmed_mean(parts, parts[0].tensors, num_faulty=3)["x"].tolist() == [5.0]


def test_the_median_is_the_median():
    parts = parts_of([[1, 9], [2, 1], [3, 2]])
    assert median(parts, parts[0].tensors)["x"].tolist() == [2, 2]


def test_krum_is_its_definition():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(7, 5)).astype(np.float32)
    values[3] += 20
    f = 2
    scores = []
    for i in range(7):
        distances = sorted(float(((values[i].astype(float) - values[j]) ** 2).sum()) for j in range(7) if j != i)
        scores.append(sum(distances[: 7 - f - 2]))
    parts = parts_of(values)
    assert krum(parts, parts[0].tensors, num_faulty=f, num_chosen=7) == list(np.argsort(scores))
    assert krum(parts, parts[0].tensors, num_faulty=f) == [int(np.argmin(scores))]


def test_krum_chooses_of_two_and_of_one():
    parts = parts_of([[1.0], [5.0]])
    assert krum(parts, parts[0].tensors, num_faulty=1, num_chosen=5) == [0, 1]
    assert krum(parts[:1], parts[0].tensors, num_faulty=1) == [0]


RULES = {
    "trimmed mean": lambda parts, like: trimmed_mean(parts, like, num_faulty=1),
    "median": median,
    "krum": lambda parts, like: {"k": krum(parts, like, num_faulty=1)},
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_slices_and_shapes_change_nothing(rule, monkeypatch, tmp_path):
    """Read from disk in slices of a few values, or from memory at once: the same to the last bit."""
    rng = np.random.default_rng(1)
    tensors = [
        {"a": rng.normal(size=(5, 3)).astype(np.float32), "b": rng.normal(size=4).astype(np.float32)} for _ in range(5)
    ]
    whole = rule([InMemory(t) for t in tensors], tensors[0])
    monkeypatch.setattr(slices, "VALUES_AT_ONCE", 20)
    with Spool(tmp_path / "spool") as spool:
        for k, t in enumerate(tensors):
            spool.write(f"h{k}", t)
        sliced = rule([spool.open(f"h{k}") for k in range(5)], tensors[0])
    for name, value in whole.items():
        if name == "k":  # sums over slices differ in the last bits, the choice must not
            assert value == sliced[name]
            continue
        assert value.shape == tensors[0][name].shape and value.dtype == np.float32
        assert np.array_equal(value, sliced[name])


def test_the_order_of_the_hospitals_changes_nothing():
    rng = np.random.default_rng(2)
    values = rng.normal(size=(5, 6)).astype(np.float32)
    like = {"x": values[0]}
    for order in itertools.permutations(range(5)):
        parts = parts_of(values[list(order)])
        assert np.array_equal(median(parts, like)["x"], median(parts_of(values), like)["x"])
        assert order[krum(parts, like, num_faulty=1)[0]] == krum(parts_of(values), like, num_faulty=1)[0]


def test_a_spooled_tensor_is_not_read_beyond_its_end(tmp_path):
    with Spool(tmp_path / "spool") as spool:
        spool.write("a", {"x": np.arange(3, dtype=np.float32)})
        assert spool.open("a").read("x", 1, 3).tolist() == [1, 2]
        for name, stop in (("x", 4), ("y", 1)):
            with pytest.raises(ValueError, match="not in the spooled reply"):
                spool.open("a").read(name, 0, stop)


@pytest.mark.parametrize("kind", ["fedadam", "fedyogi"])
def test_the_adaptive_step_is_the_papers(kind):
    w, mean = {"x": np.array([1.0, 2.0], np.float32)}, {"x": np.array([1.5, 2.0], np.float32)}
    new, moments = adaptive_step(kind, w, copy.deepcopy(mean), initial_moments(kind, w), learning_rate=0.1)
    d = np.array([0.5, 0.0])
    m = (1 - BETA_1) * d
    v0 = TAU**2
    v = BETA_2 * v0 + (1 - BETA_2) * d**2 if kind == "fedadam" else v0 - (1 - BETA_2) * d**2 * np.sign(v0 - d**2)
    np.testing.assert_allclose(new["x"], w["x"] + 0.1 * m / (np.sqrt(v) + TAU), rtol=1e-6)
    assert new["x"].dtype == np.float32 and new["x"][1] == 2.0
    assert moments["m.x"].dtype == np.float32
    np.testing.assert_allclose(moments["v.x"], v, rtol=1e-6)
    first = moments["m.x"].copy()
    again, second = adaptive_step(kind, new, copy.deepcopy(mean), moments, learning_rate=0.1)
    assert again["x"][0] > new["x"][0] and not np.array_equal(second["m.x"], first)
    with pytest.raises(ValueError, match="no such"):
        adaptive_step("fedsgd", w, mean, {}, learning_rate=0.1)
