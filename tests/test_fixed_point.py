from __future__ import annotations

import numpy as np
import pytest

from jointdiff.fixed_point import FixedPoint, for_sums, for_updates


@pytest.mark.parametrize("make", [for_updates, for_sums])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 7, 8, 64, 1000])
def test_sums_of_the_largest_values_fit_and_the_step_is_the_smallest_that_does(make, count):
    code = make(count)
    per_value = int(code.limit / code.step)
    assert count * per_value < 2 ** (code.bits - 1) <= 2 * (count + 1) * per_value
    for sign in (1, -1):
        (one,) = code.encode({"x": np.full(3, sign * code.limit)}).values()
        total = np.zeros(3, code.dtype)
        for _ in range(count):
            total += one
        assert np.array_equal(code.decode({"x": total}, count)["x"], np.full(3, sign * count * code.limit))


@pytest.mark.parametrize("make", [for_updates, for_sums])
def test_a_sum_is_off_by_no_more_than_stated(make):
    code, rng = make(5), np.random.default_rng(0)
    values = [rng.uniform(-code.limit, code.limit, 1000) * 10.0 ** rng.integers(-9, 1, 1000) for _ in range(5)]
    total = np.zeros(1000, code.dtype)
    for value in values:
        total += code.encode({"x": value})["x"]
    error = np.abs(code.decode({"x": total}, 5)["x"] - np.sum(values, axis=0))
    rounding = 1e-15 * code.limit * 5  # of the float64 sum that it is held against
    assert 0 < error.max() <= code.error(5) + rounding


def test_the_steps_of_the_documentation():
    assert for_updates(3).step == 2**-26 and for_sums(3).step == 2**-29
    assert for_updates(5).step == 2**-25 and for_sums(5).step == 2**-28


@pytest.mark.parametrize("bad", [8.0001, -8.0001, 1e30])
def test_a_value_out_of_range_is_refused_and_not_clipped(bad):
    with pytest.raises(ValueError, match=r"^layer holds .* up to 8 only"):
        for_updates(3).encode({"fine": np.zeros(2), "layer": np.array([0.0, bad])})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match=r"^layer holds NaN or infinite"):
        for_updates(3).encode({"layer": np.array([0.0, bad])})


def test_a_sum_that_no_such_values_can_make_is_noticed():
    code = for_updates(3)
    edge = code.encode({"x": np.array([8.0])})["x"] * np.uint32(2)
    assert code.decode({"x": edge}, 2)["x"] == 16
    with pytest.raises(ValueError, match="do not cancel"):
        code.decode({"x": edge + np.uint32(1)}, 2)
    with pytest.raises(ValueError, match="do not cancel"):
        code.decode({"x": np.array([2**31], np.uint32)}, 3)


def test_scalars_and_empty_arrays_keep_their_shape():
    code = FixedPoint(64, 2.0**32, 3)
    values = {"count": np.array(7.0), "none": np.zeros((0, 4))}
    back = code.decode(code.encode(values), 1)
    assert {name: array.shape for name, array in back.items()} == {"count": (), "none": (0, 4)}
    assert back["count"] == 7
