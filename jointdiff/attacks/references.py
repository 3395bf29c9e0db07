"""Reference models: the same training at this site alone, on random halves of its images. They never leave the site.

They come in pairs, one half of the pool and the other, so that every record, member or not, is unknown to exactly one
of each pair: nothing but the model under attack can tell the two kinds of records apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from jointdiff.config import Config
from jointdiff.data import UNKNOWN, HospitalData, ImageSet
from jointdiff.ema import moving_average
from jointdiff.local_work import gatherer, solved
from jointdiff.model import JointModel
from jointdiff.preparation import initial_weights
from jointdiff.reproducibility import seed_for
from jointdiff.training import head_is_solved_after, train_round

Tensors = dict[str, np.ndarray]


def halves(num_records: int, num_references: int, *, seed: int) -> np.ndarray:
    """Return which records each reference model is trained on: bool [K,N]; rows 2j and 2j+1 are complements.

    Raises:
        ValueError: An odd number of reference models.

    >>> halves(4, 2, seed=0).sum(axis=0).tolist()
    [1, 1, 1, 1]
    """
    if num_references % 2:
        raise ValueError(f"{num_references} reference models are no pairs.")
    rng = np.random.default_rng(seed)
    chosen = np.zeros((num_references, num_records), dtype=bool)
    for pair in range(num_references // 2):
        half = rng.permutation(num_records)[: num_records // 2]
        chosen[2 * pair, half] = True
        chosen[2 * pair + 1] = ~chosen[2 * pair]
    return chosen


def train_references(
    pool: ImageSet,
    trained_on: np.ndarray,
    data: HospitalData,
    config: Config,
    *,
    hospital_index: int,
    device: torch.device,
    callback: Callable[[JointModel], None],
) -> None:
    """Train one model per row of `trained_on` as the run did, on this site's records alone; hand each to `callback`.

    Args:
        pool: Members and non-members, with the labels that the models may see.
        trained_on: bool [K,N], see `halves`.
        callback: Takes a trained model; the next one overwrites it.
    """
    for number, rows in enumerate(trained_on):
        part = pool.select(np.flatnonzero(rows))
        own = replace(data, train=part, hidden_labels=part.labels, heldout=None, nonmembers=None)
        seed = seed_for(config.run.seed, hospital_index, 0, f"audit: reference {number}")
        settings = replace(config, run=replace(config.run, seed=seed))
        start = initial_weights(config)  # whoever attacks the run knows its first weights: the server drew them
        callback(_train(start, own, settings, hospital_index=hospital_index, device=device))


def hide_labels(labels: np.ndarray, *, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return labels of which only a random share is known; the others are UNKNOWN."""
    visible = rng.random(len(labels)) < share
    return np.where(visible if labels.ndim == 1 else visible[:, None], labels, UNKNOWN)


def _train(
    weights: Tensors, data: HospitalData, config: Config, *, hospital_index: int, device: torch.device
) -> JointModel:
    model = JointModel(config.model).to(device)
    average, state = weights, None
    for number in range(config.run.num_rounds + 1):  # 0 is what happens before the first round
        if number:
            _load(model, weights)
            _, state = train_round(
                model, data, config, round_number=number, hospital_index=hospital_index, device=device, state=state
            )
            weights = {k: v.detach().cpu().numpy().copy() for k, v in model.state_dict().items()}
            average = moving_average(average, weights, number, config.training.ema_decay)
        if head_is_solved_after(number, config):
            _load(model, average)
            for head in solved(gatherer(model, data, config, device), number, config, average):
                model.load_state_dict(head, strict=False)
                found = {k: v.numpy() for k, v in head.items()}
                weights, average = {**weights, **found}, {**average, **found}
    _load(model, average)
    return model


def _load(model: JointModel, tensors: Tensors) -> None:
    model.load_state_dict({k: torch.from_numpy(np.asarray(v)) for k, v in tensors.items()})
