"""What training with noise costs in privacy: (epsilon, delta) of a history of noisy steps, by Opacus's accountants.

A step samples each unit (an image or a patient) with probability q, clips what it contributes to norm C, sums, and adds
Gaussian noise of standard deviation sigma C. A history is a sequence of (sigma, q, number of such steps); the order of
steps changes nothing. Neighbours differ by one unit added or removed.

Two upper bounds, so that the smaller of the two is one as well:

- `rdp`: the Rényi divergence of the sampled Gaussian (Mironov, Talwar & Zhang 2019), which covers adding and removing,
  summed over the steps and converted by Balle et al. 2020 (theorem 21; also Canonne et al. 2020, proposition 12). It
  holds at every order, so a coarse grid of orders makes it looser and never wrong. Usually 5 to 20% above the exact
  value; several times where q is tiny.
- `prv`: numerical composition of the privacy loss (Gopi et al. 2021), with its own error bound added: about 0.5% above
  the exact value. It stands on floating point and, in Opacus, on the direction "remove" alone, which was the worse one
  wherever it was compared with an accountant of both (tests/test_accounting.py), but is not proved to be. It fails for
  some settings (issue 591 of Opacus): then `rdp` is taken, and a note says so.
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from opacus.accountants import PRVAccountant
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

from jointdiff.errors import ConfigError, RefusedError

Step = tuple[float, float, int]  # noise multiplier, sample rate, number of steps
History = Sequence[Step]

ACCOUNTANTS = ("rdp", "prv")
# Orders below 2 serve epsilons of about 10 and more; those up to 1024 serve very much noise, epsilon far below 0.1.
LOW_ORDERS = tuple(1 + tenth / 10 for tenth in range(1, 10))
ORDERS = (
    *(1 + tenth / 10 for tenth in range(10, 100)),
    *range(11, 64),
    *(64, 80, 96, 128, 160, 192, 256, 384, 512, 768, 1024),
)
MAX_NOISE_MULTIPLIER = 1000
_NOISE_GRID = 1000  # noise multipliers are found in steps of one over this
_PRV_RELATIVE_ERROR = 0.004  # of epsilon, added to it
_PRV_ERRORS = (1e-4, 0.1)  # smallest and largest error; Gopi's bound, as Opacus has it, is for errors well under 1
_MAX_PRV_CELLS = 2**21  # of the discretised privacy loss: about two seconds


@dataclass(frozen=True)
class Bound:
    """An upper bound of epsilon, and where it comes from."""

    epsilon: float  # infinite where there is no bound
    accountant: str  # "rdp" | "prv": whose bound this is
    note: str = ""  # why it is not the one that was asked for


def epsilon_of(history: History, delta: float, *, accountant: str = "rdp") -> float:
    """Return the smallest epsilon that can be vouched for: 0 for no step, infinite for a step without noise.

    Args:
        history: (noise multiplier, sample rate, steps) each; a sample rate of 1 is a step over all records.
        delta: In (0, 1).
        accountant: "rdp", or "prv" for the smaller of both bounds.

    Raises:
        ConfigError: A value is out of its range.

    >>> round(epsilon_of([(1.0, 0.01, 1000)], 1e-5), 3)
    2.101
    >>> epsilon_of([(0.0, 0.01, 1)], 1e-5), epsilon_of([], 1e-5)
    (inf, 0.0)
    """
    return bound_of(history, delta, accountant=accountant).epsilon


def bound_of(history: History, delta: float, *, accountant: str = "rdp") -> Bound:
    """Return `epsilon_of` with whose bound it is.

    Raises:
        ConfigError: A value is out of its range.
    """
    if accountant not in ACCOUNTANTS:
        raise ConfigError(f"accountant {accountant!r} is not known: it is one of {', '.join(ACCOUNTANTS)}.")
    if not 0 < delta < 1:
        raise ConfigError(f"delta = {delta} must lie between 0 and 1: it is a probability, say 1e-5.")
    steps = _merged(history)
    safe = Bound(_rdp_epsilon(steps, delta), "rdp")
    if accountant == "rdp" or not 0 < safe.epsilon < math.inf:
        return safe
    return _prv_bound(steps, delta, safe)


def noise_multiplier_for(
    target_epsilon: float, delta: float, sample_rate: float, steps: int, *, spent: History = (), accountant: str = "rdp"
) -> float:
    """Return the smallest noise multiplier (in steps of 0.001) with which `spent` and the planned steps stay in budget.

    Args:
        target_epsilon: What may be spent in all, `spent` included.
        delta: In (0, 1).
        sample_rate: Probability of a unit to be in a step, in (0, 1].
        steps: Planned steps, at least 1.
        spent: What was done on these data before.
        accountant: As for `epsilon_of`; take the one that will keep the books.

    Raises:
        ConfigError: A value is out of its range.
        RefusedError: `spent` leaves nothing, or not even a noise multiplier of 1000 is enough.
    """
    if not 0 < target_epsilon < math.inf:
        raise ConfigError(f"target-epsilon = {target_epsilon} must be a finite number above 0.")
    if steps < 1:
        raise ConfigError(f"{steps} steps are planned: at least 1 is needed to find a noise multiplier.")

    def fits(grid: int) -> bool:
        planned = (*spent, (grid / _NOISE_GRID, sample_rate, steps))
        return epsilon_of(planned, delta, accountant=accountant) <= target_epsilon

    before = epsilon_of(spent, delta, accountant=accountant)
    if before >= target_epsilon:
        raise RefusedError(
            f"Epsilon {before:.4g} at delta {delta:g} is spent already, and target-epsilon is {target_epsilon:g}: "
            "nothing is left for this run. Raise target-epsilon, if the ceiling of the site allows it, or use other "
            "data."
        )
    most = MAX_NOISE_MULTIPLIER * _NOISE_GRID
    if not fits(most):
        raise RefusedError(
            f"No noise multiplier up to {MAX_NOISE_MULTIPLIER} keeps {steps} steps at sample rate {sample_rate:g} "
            f"within epsilon {target_epsilon:g} at delta {delta:g} ({before:.4g} is spent). Plan fewer steps, smaller "
            "batches, or a larger target-epsilon."
        )
    too_little, enough = 0, _NOISE_GRID
    while not fits(enough):
        too_little, enough = enough, min(2 * enough, most)
    while enough - too_little > 1:
        middle = (enough + too_little) // 2
        too_little, enough = (too_little, middle) if fits(middle) else (middle, enough)
    return enough / _NOISE_GRID


def rounds_within(
    limit: float, delta: float, one_round: Step, *, spent: History = (), accountant: str = "rdp", most: int = 1_000_000
) -> int:
    """Return how many rounds like `one_round` fit below `limit` after `spent`; `most` stands for that many or more.

    Raises:
        ConfigError: A value is out of its range.
    """
    noise_multiplier, sample_rate, steps = one_round

    def fits(count: int) -> bool:
        planned = (*spent, (noise_multiplier, sample_rate, count * steps))
        return epsilon_of(planned, delta, accountant=accountant) <= limit

    too_many = 1
    while too_many <= most and fits(too_many):
        too_many *= 2
    fitting = too_many // 2
    too_many = min(too_many, most + 1)
    while too_many - fitting > 1:
        middle = (too_many + fitting) // 2
        fitting, too_many = (middle, too_many) if fits(middle) else (fitting, middle)
    return fitting


def _merged(history: History) -> tuple[Step, ...]:
    """Return the history with equal steps added up, sorted: however it was cut into rounds, sums round alike."""
    counts: Counter[tuple[float, float]] = Counter()
    for noise_multiplier, sample_rate, steps in history:
        if not 0 <= noise_multiplier < math.inf:
            raise ConfigError(f"noise-multiplier = {noise_multiplier} must be a finite number from 0 (0: no privacy).")
        if not 0 < sample_rate <= 1:
            raise ConfigError(
                f"A sample rate of {sample_rate} is no probability: it must lie above 0 and at most at 1."
            )
        if steps < 0 or int(steps) != steps:
            raise ConfigError(f"{steps} steps: their number must be whole and at least 0.")
        counts[float(noise_multiplier), float(sample_rate)] += int(steps)
    return tuple((noise, rate, steps) for (noise, rate), steps in sorted(counts.items()) if steps)


def _rdp_epsilon(steps: tuple[Step, ...], delta: float) -> float:
    if not steps:
        return 0.0
    if any(noise == 0 for noise, _, _ in steps):
        return math.inf
    epsilon = _rdp_epsilon_at(ORDERS, steps, delta)
    if epsilon > _least_epsilon(LOW_ORDERS[-1], delta):  # else no low order, slow to compute, could be better
        epsilon = min(epsilon, _rdp_epsilon_at(LOW_ORDERS, steps, delta))
    return max(0.0, epsilon)


def _rdp_epsilon_at(orders: tuple[float, ...], steps: tuple[Step, ...], delta: float) -> float:
    total = np.zeros(len(orders))
    for noise, rate, count in steps:
        total += count * _rdp_of_a_step(orders, noise, rate)
    return _converted(orders, total, delta)


def _least_epsilon(order: float, delta: float) -> float:
    """Return what an order says of a divergence of 0: it can vouch for no smaller epsilon."""
    return _converted((order,), np.zeros(1), delta)


def _converted(orders: tuple[float, ...], rdp: np.ndarray, delta: float) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an optimum at the end of the grid is a valid bound, if not the tightest
        return float(get_privacy_spent(orders=list(orders), rdp=rdp, delta=delta)[0])


@functools.lru_cache(maxsize=4096)
def _rdp_of_a_step(orders: tuple[float, ...], noise_multiplier: float, sample_rate: float) -> np.ndarray:
    """Return the Rényi divergence of one step at each order; infinite where it cannot be computed."""
    values = np.full(len(orders), np.inf)
    for index, order in enumerate(orders):
        with contextlib.suppress(ArithmeticError, ValueError):
            values[index] = compute_rdp(
                q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=float(order)
            )  # fmt: skip
    values[np.isnan(values)] = np.inf
    np.maximum(values, 0.0, out=values)  # rounding can leave -1e-15 where nearly nothing is lost
    values.setflags(write=False)
    return values


def _prv_bound(steps: tuple[Step, ...], delta: float, safe: Bound) -> Bound:
    """Return the smaller of `safe` and what PRV finds; `safe` with a note where it finds nothing."""
    delta_error = delta / 1000
    error = _prv_error(steps, delta_error, safe.epsilon)
    if error > _PRV_ERRORS[1]:
        return Bound(safe.epsilon, "rdp", "PRV needs too fine a grid; RDP was used")
    accountant = PRVAccountant()
    accountant.history = list(steps)
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            epsilon = float(accountant.get_epsilon(delta, eps_error=error, delta_error=delta_error))
    except (ArithmeticError, IndexError, RuntimeError, ValueError) as failure:
        return Bound(safe.epsilon, "rdp", f"PRV failed ({type(failure).__name__}); RDP was used")
    if not 0 < epsilon < math.inf:
        return Bound(safe.epsilon, "rdp", f"PRV found {epsilon}; RDP was used")
    return Bound(epsilon, "prv") if epsilon < safe.epsilon else safe


def _prv_error(steps: tuple[Step, ...], delta_error: float, epsilon: float) -> float:
    """Return the error that PRV is asked for: small beside epsilon, but no smaller than the largest grid allows.

    Opacus lays its grid over about twice the epsilon at a far smaller delta, in cells of error / sqrt(steps x log).
    """
    num_steps = sum(count for _, _, count in steps)
    width = 2 * (_rdp_epsilon(steps, delta_error / 4) + 3)
    finest = width * math.sqrt(num_steps * math.log(12 / delta_error) / 2) / _MAX_PRV_CELLS
    smallest, largest = _PRV_ERRORS
    return max(finest, min(max(_PRV_RELATIVE_ERROR * epsilon, smallest), largest))
