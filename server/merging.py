"""How the replies of a round become the next weights: one function per strategy, in one table.

The rules themselves are pure and stand in aggregation.py (means), robust.py and optimizers.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from jointdiff.config import RunConfig
from jointdiff.sharing import part_of
from server.aggregation import fedavg, fedavg_by_tensor
from server.optimizers import ADAPTIVE, adaptive_step
from server.replies import Reply
from server.robust import krum, median, trimmed_mean
from server.slices import Sliced, Tensors, slices
from server.spool import Spool
from server.weighting import weights_by_part

NORM_FACTOR = 10.0  # a change more than so many times the others' median is no honest training
CONTRADICTION = 2.0  # times the loss of a coin: no hospital learns that much against its own labels if they are right
_MIN_TO_JUDGE = 3  # of two that differ nobody knows which one is wrong


def merge(
    replies: Sequence[Reply], spool: Spool, run: RunConfig, *, weights: Mapping[str, np.ndarray], moments: Tensors
) -> tuple[Tensors, Tensors]:
    """Return the next weights and the server optimiser's moments ({} for strategies without).

    Args:
        replies: Those that passed every check, in the hospitals' order; at least one.
        spool: Holds their tensors.
        run: Names strategy, weightings and the settings of both.
        weights: What the hospitals started from.
        moments: Of the round before, as `initial_moments` gives the first; overwritten.
    """
    parts = [spool.open(reply.hospital) for reply in replies]
    if run.strategy == "trimmed-mean":
        return trimmed_mean(parts, weights, num_faulty=run.num_faulty), {}
    if run.strategy == "median":
        return median(parts, weights), {}
    if run.strategy in ("krum", "multi-krum"):
        wanted = 1 if run.strategy == "krum" else max(1, len(parts) - run.num_faulty)
        chosen = krum(parts, weights, num_faulty=run.num_faulty, num_chosen=wanted)
        return fedavg([parts[i] for i in sorted(chosen)], [1.0] * len(chosen), weights), {}
    counted = weights_by_part(replies, run.weightings)
    mean = fedavg_by_tensor(parts, lambda name: counted[part_of(name)], weights)
    return apply_mean(mean, run, weights=weights, moments=moments)


def apply_mean(
    mean: Tensors, run: RunConfig, *, weights: Mapping[str, np.ndarray], moments: Tensors
) -> tuple[Tensors, Tensors]:
    """Return the next weights and the server optimiser's moments from the mean of what the hospitals trained.

    Mean and moments are overwritten: memory holds no second model.
    """
    if run.strategy in ADAPTIVE:
        return adaptive_step(run.strategy, weights, mean, moments, learning_rate=run.server_learning_rate)
    return mean, {}  # fedavg; fedprox differs at the hospitals only


def outliers(replies: Sequence[Reply], spool: Spool, weights: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Return the hospitals whose change is out of all proportion to the others', each with the reason.

    The norm of a hospital's change is held against the median norm of the others'. With fewer than three replies
    nothing is judged.
    """
    if len(replies) < _MIN_TO_JUDGE:
        return {}
    norms = {reply.hospital: change_norm(spool.open(reply.hospital), weights) for reply in replies}
    found = {}
    for hospital, norm in norms.items():
        usual = float(np.median([other for name, other in norms.items() if name != hospital]))
        if norm > NORM_FACTOR * usual > 0:
            found[hospital] = (
                f"the norm of its change is {norm:.3g}, {norm / usual:.3g} times the others' median of {usual:.3g}; "
                f"more than {NORM_FACTOR:g} times is not believed"
            )
    return found


def questionable(replies: Sequence[Reply], *, num_classes: int) -> dict[str, str]:
    """Return the hospitals whose labels seem to contradict the others', each with the reason.

    Told by the mean loss on its own labelled images that a hospital reports: above twice that of a coin, ln K, while
    the others' median is below ln K. A hint for people, not a defence: who lies about labels can lie about a loss.
    Nothing is rejected for it.

    Args:
        num_classes: K; 2 for a multi-label task.
    """
    losses = {r.hospital: r.report.metrics["loss_class"] for r in replies if "loss_class" in r.report.metrics}
    if len(losses) < _MIN_TO_JUDGE:
        return {}
    coin = math.log(num_classes)
    found = {}
    for hospital, loss in losses.items():
        usual = float(np.median([other for name, other in losses.items() if name != hospital]))
        if loss > CONTRADICTION * coin and usual < coin:
            found[hospital] = (
                f"its loss on its own labels is {loss:.2f}, a coin's {coin:.2f}, the others' median {usual:.2f}: are "
                "its labels right?"
            )
    return found


def change_norm(part: Sliced, weights: Mapping[str, np.ndarray]) -> float:
    """Return the Euclidean norm of what a hospital changed, in float64."""
    total = 0.0
    for name, start, stop in slices(weights):
        change = part.read(name, start, stop).astype(np.float64)
        change -= weights[name].reshape(-1)[start:stop]
        total += float(change @ change)
    return math.sqrt(total)
