"""Privacy accounting against independent oracles: dp-accounting (Google), quadrature, and the exact Gaussian."""

from __future__ import annotations

import logging
import math
import random
import warnings

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from opacus.accountants import PRVAccountant
from scipy import integrate, optimize, stats

from jointdiff.accounting import (
    LOW_ORDERS,
    ORDERS,
    Bound,
    _merged,
    _rdp_epsilon_at,
    _rdp_of_a_step,
    bound_of,
    epsilon_of,
    noise_multiplier_for,
    rounds_within,
)  # fmt: skip
from jointdiff.errors import ConfigError, RefusedError

logging.getLogger("absl").setLevel(logging.ERROR)  # dp-accounting tells of every order that it leaves out
INTEGER_ORDERS = tuple(order for order in ORDERS if order == int(order))


def as_event(history) -> dp_event.DpEvent:
    steps = [
        dp_event.SelfComposedDpEvent(dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise)), count)
        for noise, rate, count in history
    ]
    return dp_event.ComposedDpEvent(steps)


def random_history(draw: random.Random) -> list[tuple[float, float, int]]:
    """A site's life: one to five runs of up to 300 steps, with epsilons from about 0.2 to 15."""
    return [
        (round(draw.uniform(1.0, 8.0), 3), round(draw.uniform(0.01, 0.4), 4), draw.randint(1, 300))
        for _ in range(draw.randint(1, 5))
    ]


def oracle_rdp(history, delta: float, orders) -> float:
    accountant = RdpAccountant(list(orders))
    accountant.compose(as_event(history))
    return accountant.get_epsilon(delta)


def gaussian_epsilon(noise: float, delta: float) -> float:
    """The exact epsilon of one Gaussian step over all records (Balle & Wang 2018, theorem 8)."""

    def excess(epsilon: float) -> float:
        a, b = 0.5 / noise, epsilon * noise
        return stats.norm.cdf(a - b) - math.exp(epsilon) * stats.norm.cdf(-a - b) - delta

    return optimize.brentq(excess, 0.0, 200.0)


@pytest.mark.parametrize("noise, rate", [(0.7, 0.05), (2.0, 0.5), (0.5, 0.2), (1.0, 0.01), (20.0, 0.3), (10.0, 0.9)])
@pytest.mark.parametrize("order", [1.5, 2.4, 7.0, 10.3])
def test_the_divergence_of_a_step_is_the_integral(noise: float, rate: float, order: float) -> None:
    def integrand(z: float) -> float:
        log_ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * z - 1) / (2 * noise**2))
        return math.exp(order * log_ratio + stats.norm.logpdf(z, scale=noise))

    area = sum(
        integrate.quad(integrand, a, b, epsabs=0, epsrel=1e-12, limit=200)[0]
        for a, b in [(-40 * noise, -5 * noise), (-5 * noise, 0), (0, order), (order, order + 40 * noise)]
    )
    (found,) = _rdp_of_a_step((order,), noise, rate)
    assert found == pytest.approx(math.log(area) / (order - 1), rel=1e-7)


def test_rdp_is_that_of_dp_accounting_on_the_orders_it_computes_exactly() -> None:
    """At whole orders both take the same binomial sum, so the same conversion gives the same number.

    At fractional orders dp-accounting adds up the magnitudes of an alternating series, an upper bound, and leaves an
    order out after 1000 terms; Opacus keeps the signs and is exact (the test above). So our epsilon is never larger.
    """
    draw = random.Random(1)
    worst = 0.0
    for _ in range(5):
        history, delta = random_history(draw), 10 ** -draw.uniform(4, 6)
        whole = oracle_rdp(history, delta, INTEGER_ORDERS)
        ours = _rdp_epsilon_at(INTEGER_ORDERS, _merged(history), delta)
        worst = max(worst, abs(ours / whole - 1))
        assert epsilon_of(history, delta) <= oracle_rdp(history, delta, (*LOW_ORDERS, *ORDERS)) * (1 + 1e-9)
    assert worst < 1e-9


def test_the_conversion_is_the_tight_one() -> None:
    """Gaussian steps over all records, where every formula can be written down."""
    noise, steps, delta = 5.0, 10, 1e-5
    orders = np.array([*LOW_ORDERS, *ORDERS])
    rdp = steps * orders / (2 * noise**2)
    balle = rdp + np.log((orders - 1) / orders) - np.log(delta * orders) / (orders - 1)
    mironov = rdp - np.log(delta) / (orders - 1)  # the older one
    found = epsilon_of([(noise, 1.0, steps)], delta)
    assert found == pytest.approx(balle.min(), rel=1e-12) and found < mironov.min() - 0.1
    exact = gaussian_epsilon(noise / math.sqrt(steps), delta)
    assert exact <= epsilon_of([(noise, 1.0, steps)], delta, accountant="prv") <= 1.01 * exact
    assert exact < found < 1.1 * exact


def test_prv_is_above_an_accountant_of_both_directions_and_within_a_hundredth() -> None:
    draw = random.Random(2)
    for _ in range(3):
        history, delta = random_history(draw)[:2], 10 ** -draw.uniform(4, 6)
        oracle = PLDAccountant()
        oracle.compose(as_event(history))
        bound = bound_of(history, delta, accountant="prv")
        assert bound.accountant == "prv" and oracle.get_epsilon(delta) < bound.epsilon
        assert bound.epsilon < 1.01 * oracle.get_epsilon(delta) and bound.epsilon < epsilon_of(history, delta)


@pytest.mark.parametrize("history", [[(0.05, 0.2, 10)], [(0.01, 0.5, 1)]])
def test_where_prv_fails_rdp_is_taken_with_a_note(history) -> None:
    accountant = PRVAccountant()
    accountant.history = history
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            failed = not math.isfinite(accountant.get_epsilon(1e-5, eps_error=0.1))
        except (ValueError, RuntimeError):
            failed = True
    assert failed  # else this test says nothing
    bound = bound_of(history, 1e-5, accountant="prv")
    assert bound == Bound(epsilon_of(history, 1e-5), "rdp", bound.note) and "RDP was used" in bound.note


def test_a_grid_that_would_be_too_fine_is_not_tried() -> None:
    bound = bound_of([(0.001, 0.5, 1)], 1e-5, accountant="prv")
    assert (bound.accountant, bound.note) == ("rdp", "PRV needs too fine a grid; RDP was used")


def test_the_smaller_of_both_bounds_is_reported(monkeypatch) -> None:
    history = [(3.0, 1.0, 5)]
    rdp, prv = epsilon_of(history, 1e-5), epsilon_of(history, 1e-5, accountant="prv")
    assert prv < rdp
    monkeypatch.setattr("jointdiff.accounting._PRV_ERRORS", (0.5 * rdp, rdp))  # PRV so coarse that RDP is tighter
    assert bound_of(history, 1e-5, accountant="prv") == Bound(rdp, "rdp")


def test_no_noise_no_bound_and_no_step_no_loss() -> None:
    assert epsilon_of([(1.0, 0.1, 10), (0.0, 0.1, 1)], 1e-5, accountant="prv") == math.inf
    assert epsilon_of([], 1e-5) == epsilon_of([(0.0, 0.1, 0)], 1e-5) == 0.0
    assert epsilon_of([(1.0, 1.0, 1)], 1e-5) > epsilon_of([(1.0, 0.5, 1)], 1e-5)


def test_however_it_is_cut_and_ordered_the_sum_is_the_same() -> None:
    whole = [(1.3, 0.11, 70), (2.7, 0.3, 33), (4.1, 0.07, 50)]
    cut = [(4.1, 0.07, 50), (1.3, 0.11, 7), (2.7, 0.3, 33), *[(1.3, 0.11, 9)] * 7]
    assert epsilon_of(cut, 1e-5) == epsilon_of(whole, 1e-5)


def test_low_orders_are_left_out_only_where_they_cannot_help() -> None:
    for history, low in (((0.9, 0.1, 600), True), ((1.5, 0.3, 30), False), ((50.0, 0.3, 60), False)):
        assert epsilon_of([history], 1e-4) == _rdp_epsilon_at((*LOW_ORDERS, *ORDERS), (history,), 1e-4)
        assert (epsilon_of([history], 1e-4) < _rdp_epsilon_at(ORDERS, (history,), 1e-4)) == low
    assert epsilon_of([(0.9, 0.1, 600)], 1e-4) < 30


@pytest.mark.parametrize("target, rate, steps, spent", [
    (8.0, 0.1, 200, ()), (1.0, 0.1, 200, ()), (3.0, 0.25, 40, ((2.0, 0.1, 100), (1.5, 0.02, 50))), (20.0, 1.0, 5, ()),
])  # fmt: skip
def test_the_noise_multiplier_is_the_smallest_that_fits(target, rate, steps, spent) -> None:
    noise = noise_multiplier_for(target, 1e-4, rate, steps, spent=spent)
    assert epsilon_of((*spent, (noise, rate, steps)), 1e-4) <= target
    assert epsilon_of((*spent, (noise - 0.001, rate, steps)), 1e-4) > target
    assert round(1000 * noise) == pytest.approx(1000 * noise, abs=1e-9)


def test_prv_needs_less_noise() -> None:
    rdp = noise_multiplier_for(2.0, 1e-4, 1.0, 20)
    prv = noise_multiplier_for(2.0, 1e-4, 1.0, 20, accountant="prv")
    assert 0.8 * rdp < prv < 0.98 * rdp


def test_what_cannot_be_planned_is_refused_with_the_numbers() -> None:
    with pytest.raises(RefusedError, match=r"is spent already, and target-epsilon is 1"):
        noise_multiplier_for(1.0, 1e-5, 0.1, 10, spent=[(1.0, 0.1, 100)])
    with pytest.raises(RefusedError, match=r"No noise multiplier up to 1000 keeps 100000000 steps"):
        noise_multiplier_for(0.01, 1e-5, 1.0, 100_000_000)


@pytest.mark.parametrize("history, delta, word", [
    ([(-1.0, 0.1, 1)], 1e-5, "noise-multiplier"), ([(math.nan, 0.1, 1)], 1e-5, "noise-multiplier"),
    ([(1.0, 0.0, 1)], 1e-5, "sample rate"), ([(1.0, 1.1, 1)], 1e-5, "sample rate"), ([(1.0, 0.1, -1)], 1e-5, "steps"),
    ([(1.0, 0.1, 1.5)], 1e-5, "steps"), ([(1.0, 0.1, 1)], 0.0, "delta"), ([(1.0, 0.1, 1)], 1.0, "delta"),
])  # fmt: skip
def test_values_out_of_range_are_named(history, delta: float, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        epsilon_of(history, delta)


def test_an_unknown_accountant_and_an_impossible_target_are_named() -> None:
    with pytest.raises(ConfigError, match="gdp"):
        epsilon_of([], 1e-5, accountant="gdp")
    for target in (0.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="target-epsilon"):
            noise_multiplier_for(target, 1e-5, 0.1, 10)
    with pytest.raises(ConfigError, match="0 steps"):
        noise_multiplier_for(1.0, 1e-5, 0.1, 0)


def test_rounds_within_counts_to_the_last_that_fits() -> None:
    spent, step = [(1.5, 0.1, 20)], (2.0, 0.1, 10)
    count = rounds_within(3.0, 1e-5, step, spent=spent)
    assert epsilon_of([*spent, (2.0, 0.1, 10 * count)], 1e-5) <= 3.0
    assert epsilon_of([*spent, (2.0, 0.1, 10 * (count + 1))], 1e-5) > 3.0 and count > 5
    assert rounds_within(0.5, 1e-5, step, spent=spent) == 0
    assert [rounds_within(3.0, 1e-5, step, spent=spent, most=most) for most in (count - 1, count, count + 1)] == [
        count - 1, count, count,
    ]  # fmt: skip
