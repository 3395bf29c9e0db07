"""One hospital's share of one round: some local steps on the joint loss, from the weights the server sent.

The page to read first: draw a batch, add up the three terms of the loss (joint_step.py), step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from jointdiff.aggregation_rules import has_own_head
from jointdiff.batches import Batches
from jointdiff.config import Config, TrainingConfig
from jointdiff.data.base import UNKNOWN, ImageSet
from jointdiff.data.hospital import HospitalData
from jointdiff.device_memory import Halving
from jointdiff.errors import ConfigError
from jointdiff.joint_step import TermWeights, add_gradients, draw_step
from jointdiff.labeller import PseudoLabeller, carried_over
from jointdiff.model import JointModel
from jointdiff.optimizer_state import load_moments, save_moments
from jointdiff.reproducibility import generator_for
from jointdiff.schedule import SCHEDULES
from jointdiff.spaces import view_source
from jointdiff.speed import speed_for

State = Mapping[str, torch.Tensor]


def select_device(name: str) -> torch.device:
    """Return the device that a configuration names; `auto` takes the first GPU, else the CPU.

    Raises:
        ConfigError: A GPU is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name.startswith("cuda") and int(name.partition(":")[2] or 0) >= num_gpus:
        found = f"{num_gpus} GPU(s), numbered from 0" if num_gpus else "no GPU"
        raise ConfigError(f"device '{name}' was asked for, but torch sees {found} here: use device=auto or cpu.")
    return torch.device(name)


def learning_rate_at(step: int, num_steps: int, training: TrainingConfig) -> float:
    """Return the learning rate of a 0-based step of the whole run: linear warm-up, then half a cosine to 0."""
    rise = min(1.0, (step + 1) / max(1.0, training.lr_warmup_fraction * num_steps))
    return training.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / num_steps))


def rate_factor(config: Config, round_number: int) -> float:
    """Return the factor on a round's learning rates: `label-lr-scale` after the denoising warm-up.

    By then the rate of the whole run has fallen to a few hundredths, and labels would hardly move the encoder.
    """
    return config.training.label_lr_scale if round_number > num_warmup_rounds(config) else 1.0


def term_weights(config: Config, round_number: int) -> TermWeights:
    """Return the weights of the loss's three terms in a round: in the warm-up the denoising loss alone.

    The pseudo-labels' weight rises linearly: in the k-th of n rounds of the ramp it is k / (n + 1) of the whole.
    """
    t, num_rounds = config.training, config.run.num_rounds
    num_warm = num_warmup_rounds(config)
    num_before = max(num_warm, round(t.pseudo_start_fraction * num_rounds))
    ramp = (round_number - num_before) / (round(t.pseudo_ramp_fraction * num_rounds) + 1)
    return TermWeights(
        t.diffusion_weight,
        t.class_weight if round_number > num_warm else 0.0,
        t.pseudo_weight * min(1.0, max(0.0, ramp)),
    )


def num_warmup_rounds(config: Config) -> int:
    """Return how many rounds at the start have the denoising loss alone."""
    return round(config.training.warmup_fraction * config.run.num_rounds)


def head_is_solved_after(round_number: int, config: Config) -> bool:
    """Return whether the server asks for head statistics after a round (0 = before the first).

    A ridge head is solved before the first round and after every one, and learns on in between; a ridge-start head is
    solved until the label term starts, and only learns from there; to be calibrated it is solved once more at the end.
    A gradient head gets its standardisation once, when the label term starts. Where hospitals have heads of their own,
    the one for all is solved after every round.
    """
    head, start = config.training.head, num_warmup_rounds(config)
    always = head == "ridge" or has_own_head(config.run)
    before = round_number == start or (head == "ridge-start" and round_number < start)
    return always or before or head_is_calibrated_after(round_number, config)


def head_is_calibrated_after(round_number: int, config: Config) -> bool:
    """Return whether the head that was learned is kept after a round, and calibrated by the one that is solved then."""
    run, model = config.run, config.model
    learned = num_warmup_rounds(config) < run.num_rounds == round_number and not has_own_head(run)
    return config.training.head_calibration and learned and model.task == "multi-class" and model.num_outputs == 2


def train_round(
    model: JointModel,
    data: HospitalData,
    config: Config,
    *,
    round_number: int,
    hospital_index: int,
    device: torch.device,
    state: State | None,
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Train in place for `local-steps` steps.

    Args:
        model: Holds the weights the server sent; with teacher = global they label the unlabelled images.
        data: The hospital's images. Its hidden labels serve one telemetry number, pseudo_accuracy, and nothing else.
        round_number: 1-based.
        hospital_index: 0-based; with the seed and the round it fixes every draw.
        state: What this function returned in the round before (optimiser moments, thresholds), or None.

    Returns:
        Means over the steps (loss, loss_diffusion, loss_class, loss_pseudo, pseudo_coverage, pseudo_confidence,
        pseudo_accuracy, learning_rate, images_per_s; batch_parts where the device's memory was too small for a whole
        batch) and the state for the next round.
    """
    run, training = config.run, config.training
    began = time.perf_counter()
    weights = term_weights(config, round_number)
    generator = generator_for(run.seed, hospital_index, round_number, "training", device)
    truth = torch.as_tensor(data.hidden_labels, device=device)
    alpha_bar = SCHEDULES[training.schedule](training.num_timesteps).to(device)
    source = view_source(data, latent=config.model.latent)
    labeller = None
    if weights.pseudo and not data.train.labelled.all():
        labeller = PseudoLabeller(model, data.train, config, state=state, device=device, weak_view=source.views.weak)
    model.train()
    wanted = _images_per_step(data.train, config, weights)
    speed = speed_for(model, config, device, num_views=wanted.get("labelled", 0) + wanted.get("unlabelled", 0))
    batches = Batches(
        replace(data.train, images=source.images),
        wanted,
        num_steps=run.local_steps,
        device=device,
        generator=generator_for(run.seed, hospital_index, round_number, "batches"),
        memory_format=speed.memory_format,
    )

    learned = list(model.parameters())
    optimizer = torch.optim.AdamW(learned, lr=1.0, betas=(0.9, 0.99), weight_decay=training.weight_decay, fused=True)
    load_moments(optimizer, state, learned)
    anchor = [p.detach().clone() for p in learned] if run.strategy == "fedprox" else []
    halving = Halving(device, f"batch-size {run.batch_size}")
    sums: dict[str, torch.Tensor] = {}
    zero, rate, factor = torch.zeros((), device=device), 0.0, rate_factor(config, round_number)
    before, num_steps = (round_number - 1) * run.local_steps, run.num_rounds * run.local_steps
    for step in range(run.local_steps):
        rate = factor * learning_rate_at(before + step, num_steps, training)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with speed.precision():
            batch = draw_step(step, batches, labeller, training, alpha_bar, truth, generator, source.views)
        terms = {"loss": zero}
        if not batch.is_empty:
            optimizer.zero_grad(set_to_none=True)
            terms = halving.run(partial(add_gradients, model, batch, weights, speed), undo=optimizer.zero_grad)
            if anchor:
                add_proximal_gradient(learned, anchor, run.proximal_mu)
            if training.grad_clip:
                torch.nn.utils.clip_grad_norm_(learned, training.grad_clip)
            optimizer.step()
            if labeller:
                labeller.follow()
        for name, value in {**terms, **batch.told}.items():
            sums[name] = sums.get(name, zero) + value  # in fp32, whatever a step was computed in

    model.to(memory_format=torch.contiguous_format)
    metrics = {name: float(total) / run.local_steps for name, total in sums.items()}
    right = metrics.pop("_pseudo_right", None)
    if right is not None and metrics.get("pseudo_coverage", 0) > 0 and (data.hidden_labels != UNKNOWN).all():
        metrics["pseudo_accuracy"] = right / metrics["pseudo_coverage"]
    metrics["learning_rate"] = rate
    if halving.parts > 1:
        metrics["batch_parts"] = float(halving.parts)
    metrics["images_per_s"] = run.local_steps * run.batch_size / (time.perf_counter() - began)
    remembered = labeller.state() if labeller else carried_over(state)
    return metrics, {**remembered, **save_moments(optimizer, learned)}


def _images_per_step(train: ImageSet, config: Config, weights: TermWeights) -> dict[str, int]:
    """Return how many images of which pool (batches.py) a step takes, in the order in which they are drawn."""
    run, training = config.run, config.training
    wanted = {}
    if weights.diffusion:
        wanted["all"] = run.batch_size
    if weights.label and train.labelled.any():
        wanted["labelled"] = min(training.labelled_batch, run.batch_size)
    if weights.pseudo and not train.labelled.all():
        wanted["unlabelled"] = round(training.unlabelled_ratio * run.batch_size)
    return wanted


def add_proximal_gradient(
    parameters: Sequence[torch.Tensor], anchor: Sequence[torch.Tensor], proximal_mu: float
) -> None:
    """Add mu (w - w0) to the gradients: FedProx's pull to the weights that the server sent (Li et al., MLSys 2020)."""
    for parameter, start in zip(parameters, anchor, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - start, alpha=proximal_mu)
