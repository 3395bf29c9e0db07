"""One hospital's share of one round: some local steps on the joint loss, from the weights the server sent.

The page to read first: draw a batch, add up the three terms of the loss, step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch

from jointdiff import diffusion, losses
from jointdiff.aggregation_rules import has_own_head
from jointdiff.augment import views_of
from jointdiff.config import Config, TrainingConfig
from jointdiff.data.base import UNKNOWN, ImageSet
from jointdiff.data.hospital import HospitalData
from jointdiff.errors import ConfigError
from jointdiff.labeller import PseudoLabeller, carried_over
from jointdiff.model import JointModel, to_network
from jointdiff.optimizer_state import load_moments, save_moments
from jointdiff.reproducibility import generator_for
from jointdiff.schedule import SCHEDULES

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


def autocast_for(device: torch.device, setting: str) -> AbstractContextManager[None]:
    """Return the context of mixed precision: bf16 where the hardware computes it faster than fp32.

    Args:
        setting: auto | bf16 | off. A CPU without bf16 instructions emulates them, far slower than fp32:
            auto leaves it alone.
    """
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if device.type == "cpu":
        can = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        fast = bool(can.get("avx512_bf16") or can.get("amx_bf16"))
    enabled = setting == "bf16" or (setting == "auto" and fast)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def learning_rate_at(step: int, num_steps: int, training: TrainingConfig) -> float:
    """Return the learning rate of a 0-based step of the whole run: linear warm-up, then half a cosine to 0."""
    rise = min(1.0, (step + 1) / max(1.0, training.lr_warmup_fraction * num_steps))
    return training.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / num_steps))


@dataclass(frozen=True)
class TermWeights:
    """The weights of the loss's three terms."""

    diffusion: float
    label: float
    pseudo: float


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
    solved until the label term starts, and only learns from there. A gradient head gets its standardisation once, when
    the label term starts. Where hospitals have heads of their own, the one for all is solved after every round.
    """
    head, start = config.training.head, num_warmup_rounds(config)
    always = head == "ridge" or has_own_head(config.run)
    return always or round_number == start or (head == "ridge-start" and round_number < start)


class _Sampler:
    """Draws batches of a hospital's images, on the device, and knows which of them are labelled."""

    def __init__(self, train: ImageSet, device: torch.device, generator: torch.Generator) -> None:
        self.images = torch.as_tensor(train.images, device=device)
        self.labels = torch.as_tensor(train.labels, device=device)
        self.all = torch.arange(len(train))
        self.labelled = torch.as_tensor(np.flatnonzero(train.labelled))
        self.unlabelled = torch.as_tensor(np.flatnonzero(~train.labelled))
        self.generator = generator

    def draw(self, pool: torch.Tensor, count: int) -> torch.Tensor:
        """Return `count` indices out of a pool, with replacement."""
        at = torch.randint(len(pool), (count,), generator=self.generator)
        return pool[at].to(self.images.device)

    def take(self, index: torch.Tensor) -> torch.Tensor:
        x = to_network(self.images[index], self.images.device)
        return x.contiguous(memory_format=torch.channels_last)


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
        pseudo_accuracy, learning_rate, images_per_s) and the state for the next round.
    """
    run, training = config.run, config.training
    began = time.perf_counter()
    weights = term_weights(config, round_number)
    generator = generator_for(run.seed, hospital_index, round_number, "training", device)
    sampler = _Sampler(data.train, device, generator_for(run.seed, hospital_index, round_number, "batches"))
    truth = torch.as_tensor(data.hidden_labels, device=device)
    alpha_bar = SCHEDULES[training.schedule](training.num_timesteps).to(device)
    weak_view, strong_view = views_of(latent=config.model.latent)
    labeller = None
    if weights.pseudo and len(sampler.unlabelled):
        labeller = PseudoLabeller(model, data.train, config, state=state, device=device)

    # Channels last: faster convolutions in fp32 on the CPU that was tried, the usual choice on a GPU.
    model.to(memory_format=torch.channels_last)
    learned = list(model.parameters())
    optimizer = torch.optim.AdamW(learned, lr=1.0, betas=(0.9, 0.99), weight_decay=training.weight_decay, fused=True)
    load_moments(optimizer, state, learned)
    model.train()

    anchor = [p.detach().clone() for p in learned] if run.strategy == "fedprox" else []
    sums: dict[str, torch.Tensor] = {}
    rate = 0.0
    for step in range(run.local_steps):
        rate = learning_rate_at((round_number - 1) * run.local_steps + step, run.num_rounds * run.local_steps, training)
        for group in optimizer.param_groups:
            group["lr"] = rate
        terms: dict[str, torch.Tensor] = {}
        with autocast_for(device, training.autocast):
            if weights.diffusion:
                x = weak_view(sampler.take(sampler.draw(sampler.all, run.batch_size)), generator)
                t = torch.randint(training.num_timesteps, (len(x),), generator=generator, device=device)
                terms["loss_diffusion"] = denoising_term(model, x, t, alpha_bar, training, generator).mean()
            views, num_labelled = [], 0
            if weights.label and len(sampler.labelled):
                index = sampler.draw(sampler.labelled, min(training.labelled_batch, run.batch_size))
                view = strong_view if training.labelled_view == "strong" else weak_view
                views.append(view(sampler.take(index), generator))
                labels, num_labelled = sampler.labels[index], len(index)
            if labeller:
                index = sampler.draw(sampler.unlabelled, round(training.unlabelled_ratio * run.batch_size))
                x = sampler.take(index)
                taught = labeller.label(x, index, generator)
                views.append(strong_view(x, generator))
            # One pass for both kinds of views: GroupNorm looks at each image alone, so nothing changes but the time.
            logits = model.classify(torch.cat(views)) if views else torch.zeros(0)
            if num_labelled:
                terms["loss_class"] = losses.classification_loss(logits[:num_labelled], labels).mean()
            if len(logits) > num_labelled:
                target, weight = taught.target, taught.weight
                terms["loss_pseudo"] = losses.pseudo_label_loss(logits[num_labelled:], target, weight).mean()
                terms["pseudo_coverage"] = weight.mean()
                terms["pseudo_confidence"] = taught.confidence
                terms["_pseudo_right"] = ((taught.hard() == truth[index]) * weight).mean()
        zero = torch.zeros((), device=device)
        loss = (
            weights.diffusion * terms.get("loss_diffusion", zero)
            + weights.label * terms.get("loss_class", zero)
            + weights.pseudo * terms.get("loss_pseudo", zero)
        )
        terms["loss"] = loss
        if loss.requires_grad:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if anchor:
                add_proximal_gradient(learned, anchor, run.proximal_mu)
            if training.grad_clip:
                torch.nn.utils.clip_grad_norm_(learned, training.grad_clip)
            optimizer.step()
            if labeller:
                labeller.follow()
        for name, value in terms.items():
            sums[name] = sums.get(name, zero) + value.detach()

    model.to(memory_format=torch.contiguous_format)
    metrics = {name: float(total) / run.local_steps for name, total in sums.items()}
    right = metrics.pop("_pseudo_right", None)
    if right is not None and metrics.get("pseudo_coverage", 0) > 0 and (data.hidden_labels != UNKNOWN).all():
        metrics["pseudo_accuracy"] = right / metrics["pseudo_coverage"]
    metrics["learning_rate"] = rate
    metrics["images_per_s"] = run.local_steps * run.batch_size / (time.perf_counter() - began)
    remembered = labeller.state() if labeller else carried_over(state)
    return metrics, {**remembered, **save_moments(optimizer, learned)}


def add_proximal_gradient(
    parameters: Sequence[torch.Tensor], anchor: Sequence[torch.Tensor], proximal_mu: float
) -> None:
    """Add mu (w - w0) to the gradients: FedProx's pull to the weights that the server sent (Li et al., MLSys 2020)."""
    for parameter, start in zip(parameters, anchor, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - start, alpha=proximal_mu)


def denoising_term(
    model: JointModel,
    x: torch.Tensor,
    t: torch.Tensor,
    alpha_bar: torch.Tensor,
    training: TrainingConfig,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return the denoising loss of each record [B]: the prediction of a noised image against its target.

    Args:
        x: [B,C,H,W] in [-1,1].
        t: int64 [B] in 0..T-1.
        alpha_bar: [T].
    """
    eps = torch.randn(x.shape, generator=generator, device=x.device)
    noised = diffusion.add_noise(x, eps, t, alpha_bar)
    goal = diffusion.target(x, eps, t, alpha_bar, prediction=training.prediction)
    weight = diffusion.min_snr_weight(t, alpha_bar, gamma=training.snr_gamma, prediction=training.prediction)
    return losses.denoising_loss(model.denoise(noised, t), goal, weight)
