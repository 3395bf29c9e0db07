"""One site without a federation: the same rounds on the same code, with nobody to average with.

What a hospital tries before it joins, and the two baselines of every table: centralised (all images in one place) and
local-only (one hospital of several, with its own labels).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jointdiff import latent_run, local_work, storage
from jointdiff.config import Config, RunConfig, trains_autoencoder
from jointdiff.data import HospitalData, ImageSet, class_table, hospital_data
from jointdiff.ema import moving_average
from jointdiff.errors import ConfigError
from jointdiff.evaluation import predict
from jointdiff.grading import same_decisions
from jointdiff.latent_run import space_in
from jointdiff.local_work import merged, statistics_of
from jointdiff.model import JointModel
from jointdiff.networks import Network, build, design_of
from jointdiff.phases import phases_of, with_autoencoder
from jointdiff.preparation import initial_weights, prepare
from jointdiff.record import RunRecord
from jointdiff.settings import AT_SERVER
from jointdiff.spaces import PIXELS, Space, seen_data, seen_images
from jointdiff.training import select_device

Tensors = dict[str, np.ndarray]


def train_alone(run: RunConfig, *, hospital: int = 0, callback: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """Train on one hospital's share of a data set and return the run's folder.

    Args:
        run: With num-hospitals = 1 this is the centralised baseline.
        hospital: 0-based: which of the num-hospitals trains alone. It is evaluated on its own share of the test
            split (`hospitals`) and on the whole split (`pooled`), so that it compares with the federation.
        callback: Called with every event.

    Raises:
        JointDiffError: The run cannot start.
    """
    if not 0 <= hospital < run.num_hospitals:
        raise ConfigError(f"--hospital must be 1 to {run.num_hospitals} (num-hospitals), not {hospital + 1}.")
    if run.label_split == AT_SERVER:
        raise ConfigError(
            "label-split=server gives all labels to a server, and there is none where one hospital trains alone: take "
            "label-split=even, with num-hospitals=1 for all images in one place."
        )
    data = hospital_data(run, hospital)
    elsewhere = [hospital_data(run, k).test for k in range(run.num_hospitals) if k != hospital]
    return train_on(
        run, data, name=f"hospital-{hospital + 1}", index=hospital, elsewhere=elsewhere, callback=callback
    )  # fmt: skip


def train_on(
    run: RunConfig,
    data: HospitalData,
    *,
    name: str,
    index: int = 0,
    elsewhere: Sequence[ImageSet] = (),
    callback: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Train on these images alone, round by round as in a federation, and return the run's folder.

    Args:
        name: What the hospital is called in the run's record.
        index: 0-based; with the seed it fixes every draw.
        elsewhere: Test images of other hospitals; with the own ones they give the `pooled` metrics.
        callback: Called with every event.

    Raises:
        JointDiffError: The run cannot start.
    """
    device = select_device(run.device)
    config, info, folder = prepare(run)
    with storage.run_locked(folder):  # whoever lists or clears away runs sees that this one goes on
        record = RunRecord(folder, config, callback)
        try:
            record.start(info, [name])
            record.event(
                "hospital_replied", round=0, hospital=name, kind="describe", num_images=len(data.train),
                num_labels=data.train.num_labelled, duration_s=0.0, device=str(device), metrics={}, bytes_in=0,
                bytes_out=0, table=class_table(data),
            )  # fmt: skip
            for number in range(len(phases_of(config))):
                phase = phases_of(config)[number]
                record.enter(phase)
                space = space_in(folder, phase, device)
                seen, others = (
                    seen_data(data, space, phase.training),
                    [seen_images(images, space) for images in elsewhere],
                )
                pooled, average = _rounds(phase, seen, name, index, others, device, record)
                local_work.check_outcome(phase, pooled)
                if config.run.latent and trains_autoencoder(phase):
                    config = with_autoencoder(config, latent_run.freeze(folder, phase, average).fingerprint)
                    record.write_config(config)
            record.finish()
        except BaseException as error:
            record.fail(error)
            raise
    return folder


def _rounds(
    config: Config, data: HospitalData, name: str, index: int, elsewhere: Sequence[ImageSet], device: torch.device,
    record: RunRecord,
) -> tuple[dict[str, Any], Tensors]:  # fmt: skip
    """Train through all rounds of a phase and return the pooled metrics of the last one, and the averaged weights."""
    run = config.run
    told = {"phase": config.phase.name} if config.phase else {}
    weights: Tensors = initial_weights(config)
    average, state = weights, None
    model = build(design_of(config)).to(device)

    def prepare_head(number: int) -> None:
        nonlocal weights, average
        if local_work.sums_are_merged_after(number, config):
            _load(model, average)
            for found in local_work.solved(local_work.gatherer(model, data, config, device), number, config, average):
                model.load_state_dict(found, strict=False)
                solved = {k: v.numpy() for k, v in found.items()}
                weights, average = {**weights, **solved}, {**average, **solved}

    prepare_head(0)
    for number in range(1, run.num_rounds + 1):
        record.event("round_started", round=number, num_rounds=config.all_rounds, hospitals=[name], **told)
        _load(model, weights)
        metrics, state = local_work.train(
            model, data, config, round_number=number, hospital_index=index, device=device, state=state
        )
        weights = {k: v.detach().cpu().numpy().copy() for k, v in model.state_dict().items()}
        average = moving_average(average, weights, number, config.training.ema_decay)
        record.event("round_aggregated", round=number, num_replies=1, duration_s=0.0, metrics=metrics)
        prepare_head(number)
        _load(model, average)
        own = statistics_of(model, data.test, config, device)
        heldout = statistics_of(model, data.heldout, config, device).finish().get("auc") if data.heldout else None
        pooled = merged([own, *(statistics_of(model, images, config, device) for images in elsewhere)]).finish()
        record.event("evaluated", round=number, pooled=pooled, hospitals={name: own.finish()}, heldout_auc=heldout)
        record.save_round(average, round_number=number, heldout_auc=heldout)
    return pooled, average


def _load(model: Network, tensors: Tensors) -> None:
    model.load_state_dict({k: torch.from_numpy(np.asarray(v)) for k, v in tensors.items()})


def evaluate_checkpoint(
    model: JointModel, config: Config, device: torch.device, *, space: Space = PIXELS
) -> dict[str, Any]:
    """Return the metrics of a model on the evaluation split of its configuration's data set, all hospitals' shares.

    On latents `decoded_agreement` is among them: the share of scans of which the model decides the same after decoding
    and encoding again.
    """
    tests = [hospital_data(config.run, k).test for k in range(config.run.num_hospitals)]
    parts = [seen_images(test, space) for test in tests]
    metrics = merged([statistics_of(model, part, config, device) for part in parts]).finish()
    if space is not PIXELS:
        same = [_decides_alike(model, part.images, device, space) for part in parts]
        metrics["decoded_agreement"] = float(np.concatenate(same).mean())
    return metrics


def _decides_alike(model: JointModel, inputs: np.ndarray, device: torch.device, space: Space) -> np.ndarray:
    before = predict(model, inputs, device=device)
    after = predict(model, space.inputs(space.pictures(inputs)), device=device)
    return same_decisions(before, after, model.config.task)
