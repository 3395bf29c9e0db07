"""The classifier head of this site's own, in runs with `personal=head`: trained here, used here, sent nowhere.

It begins in the first round that learns from labels, as the head that was solved for all, and is trained on from round
to round (Arivazhagan et al., "Federated Learning with Personalization Layers", 2019). Two of them lie beside the state
of training, by round, so that a repeated round starts alike: `own`, which is trained; and `average`, its moving average
over the rounds, as the server takes it of the other weights: the one that decides at evaluation and in explanations.

A site without labels has none: it would be made of guesses. It takes the head that was solved for all, in every round.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from client import state
from jointdiff import protocol
from jointdiff.aggregation_rules import has_own_head
from jointdiff.config import Config
from jointdiff.ema import moving_average
from jointdiff.protocol import RoundInstructions
from jointdiff.sharing import HEAD, part_of
from jointdiff.training import term_weights

Tensors = dict[str, np.ndarray]
PART = "head"  # of the state
_OWN, _AVERAGE = "own", "average"


def put_on(
    ask: RoundInstructions, config: Config, weights: Mapping[str, np.ndarray], site_folder: Path
) -> Tensors:  # fmt: skip
    """Return a model's weights with this site's head in the place of the one that came, where it has one.

    Args:
        weights: As the server sent them, completed; for the question about the head's sums they stay as they are.
        site_folder: Of the site; its head is read from there.
    """
    if ask.kind == protocol.TRAIN:
        return {**weights, **_kept(ask, config, _OWN, site_folder, before=ask.round)}
    if ask.kind in (protocol.EVALUATE, protocol.EXPLAIN):
        return {**weights, **_kept(ask, config, _AVERAGE, site_folder, before=ask.round + 1)}
    return dict(weights)


def keep(
    ask: RoundInstructions,
    config: Config,
    *,
    num_labels: int,
    sent: Mapping[str, np.ndarray],
    trained: Mapping[str, np.ndarray],
    site_folder: Path,
) -> None:
    """Write down this site's head after a round of training, if it has one.

    Args:
        num_labels: Of the training images; 0 = no head of its own.
        sent: The server's weights: its head is what the first one of this site began as.
        trained: The weights after training.
    """
    if not has_own_head(config.run) or not num_labels or not term_weights(config, config.own_round(ask.round)).label:
        return
    average = _kept(ask, config, _AVERAGE, site_folder, before=ask.round) or _head_of(sent)
    own = _head_of(trained)
    average = moving_average(average, own, config.own_round(ask.round), config.training.ema_decay)
    tensors = {f"{_OWN}/{name}": torch.tensor(array) for name, array in own.items()}
    tensors |= {f"{_AVERAGE}/{name}": torch.tensor(array) for name, array in average.items()}
    state.save(site_folder, ask.run_name, ask.round, tensors, part=PART)


def _kept(ask: RoundInstructions, config: Config, which: str, site_folder: Path, *, before: int) -> Tensors:
    if not has_own_head(config.run):
        return {}
    found = state.load(site_folder, ask.run_name, before=before, after=config.rounds_before, part=PART) or {}
    return {
        name.removeprefix(f"{which}/"): tensor.numpy() for name, tensor in found.items() if name.startswith(f"{which}/")
    }


def _head_of(weights: Mapping[str, np.ndarray]) -> Tensors:
    return {name: array for name, array in weights.items() if part_of(name) == HEAD}
