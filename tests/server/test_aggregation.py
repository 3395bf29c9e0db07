from __future__ import annotations

import numpy as np
import pytest

from server import slices
from server.aggregation import WeightedSum, fedavg, weighted_means
from server.slices import InMemory


def mean_of(updates):
    """FedAvg of (tensors, num_images), as the server reads them: in slices."""
    tensors = [tensors for tensors, _ in updates]
    return fedavg([InMemory(t) for t in tensors], [n for _, n in updates], tensors[0] if tensors else {})


def _updates(count: int, seed: int = 0) -> list[tuple[dict[str, np.ndarray], int]]:
    rng = np.random.default_rng(seed)
    return [
        ({"a": rng.normal(size=(3, 4)).astype(np.float32), "b": rng.normal(size=5).astype(np.float32)},
         int(rng.integers(1, 500)))
        for _ in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("at_once", [3, slices.VALUES_AT_ONCE])
def test_fedavg_is_the_weighted_mean(monkeypatch, at_once):
    monkeypatch.setattr(slices, "VALUES_AT_ONCE", at_once)
    updates = _updates(5)
    weights = np.array([n for _, n in updates], np.float64)
    merged = mean_of(updates)
    for name in ("a", "b"):
        stacked = np.stack([tensors[name] for tensors, _ in updates]).astype(np.float64)
        expected = np.tensordot(weights / weights.sum(), stacked, axes=1)
        assert merged[name].dtype == np.float32
        np.testing.assert_allclose(merged[name], expected, rtol=1e-6)


@pytest.mark.parametrize("num_images", [1, 3, 7, 1177, 2**29 - 1])
def test_one_hospital_comes_out_bit_for_bit(num_images):
    tensors = {"x": np.random.default_rng(1).normal(scale=1e-3, size=1000).astype(np.float32)}
    assert np.array_equal(mean_of([(tensors, num_images)])["x"], tensors["x"])


def test_hospitals_that_agree_come_out_as_they_are():
    tensors = {"x": np.random.default_rng(2).normal(size=1000).astype(np.float32)}
    merged = mean_of([(tensors, n) for n in (393, 392, 391)])["x"]
    assert np.array_equal(merged, tensors["x"])


def test_small_changes_survive_among_many_hospitals():
    # In float32 the sum of 64 hospitals would lose the last bits of each.
    updates = [({"x": np.float32([1 + k * 2**-23])}, 1000) for k in range(64)]
    exact = 1 + 31.5 * 2**-23
    assert abs(float(mean_of(updates)["x"][0]) - exact) <= 2**-24


def test_updates_are_read_one_at_a_time_and_not_kept():
    total = WeightedSum()
    tensors = {"x": np.ones(3, np.float32)}
    total.add(tensors, 2)
    tensors["x"][:] = np.nan
    assert np.array_equal(total.mean()["x"], np.ones(3, np.float32))


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_that_is_no_weight_is_an_error(weight):
    with pytest.raises(ValueError, match="positive"):
        WeightedSum().add({"x": np.ones(1)}, weight)


@pytest.mark.parametrize("bad", [{"y": np.ones(2)}, {"x": np.ones(3)}, {}, {"x": np.ones(2), "y": np.ones(2)}])
def test_an_update_that_does_not_fit_changes_nothing(bad):
    total = WeightedSum()
    total.add({"x": np.ones(2)}, 1)
    with pytest.raises(ValueError, match="differ"):
        total.add(bad, 1)
    assert (total.num_added, total.weight) == (1, 1)
    assert np.array_equal(total.mean()["x"], np.ones(2))


def test_nothing_has_no_mean():
    with pytest.raises(ValueError, match="nothing to average"):
        WeightedSum().mean()


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -1.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_weights_that_make_no_mean_are_an_error(weights):
    parts = [InMemory({"x": np.ones(2, np.float32)})] * len(weights)
    with pytest.raises(ValueError, match="weights of a mean"):
        fedavg(parts, weights, {"x": np.ones(2, np.float32)})


def test_a_hospital_without_weight_is_not_read():
    class Unreadable:
        def read(self, name, start, stop):
            raise AssertionError

    x = {"x": np.float32([1, 2])}
    assert np.array_equal(fedavg([InMemory(x), Unreadable()], [3, 0], x)["x"], x["x"])


def test_scalars_without_a_value_do_not_drag_the_mean():
    parts = [({"loss": 2.0, "share": float("nan")}, 1), ({"loss": 5.0, "share": 0.5}, 3), ({"other": 1.0}, 0)]
    assert weighted_means(parts) == {"loss": 4.25, "share": 0.5}
