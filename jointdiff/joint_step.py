"""The joint loss of one step: everything random is drawn first, then come the passes, in one part or several.

What is drawn stays drawn: a step whose passes are done again in halves (device_memory.py) learns from the same batch.
Every image goes its own way through the network (GroupNorm), so that parts add up to the whole but for rounding.
Shapes: x [B,C,H,W] in [-1,1]; t [B] int64; K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from jointdiff import diffusion, losses
from jointdiff.augment import PIXEL_VIEWS, Views
from jointdiff.batches import Batches
from jointdiff.config import TrainingConfig
from jointdiff.device_memory import split
from jointdiff.labeller import PseudoLabeller
from jointdiff.model import JointModel
from jointdiff.speed import Speed


@dataclass(frozen=True)
class TermWeights:
    """The weights of the loss's three terms."""

    diffusion: float
    label: float
    pseudo: float


class Noised(NamedTuple):
    """Noised images and what the network should say of them."""

    x: torch.Tensor  # [B,C,H,W]
    t: torch.Tensor  # [B]
    goal: torch.Tensor  # [B,C,H,W]
    weight: torch.Tensor  # [B]

    def part(self, at: slice) -> Noised:
        """Return some of them."""
        return Noised(*(tensor[at] for tensor in self))


class Labelled(NamedTuple):
    """Views of labelled images."""

    views: torch.Tensor
    labels: torch.Tensor  # int64 [B], or [B,K]

    def part(self, at: slice) -> Labelled:
        """Return some of them."""
        return Labelled(*(tensor[at] for tensor in self))


class Taught(NamedTuple):
    """Strong views of unlabelled images with their pseudo-labels."""

    views: torch.Tensor
    target: torch.Tensor  # int64 [B], or soft [B,K]
    weight: torch.Tensor  # [B], or [B,K]

    def part(self, at: slice) -> Taught:
        """Return some of them."""
        return Taught(*(tensor[at] for tensor in self))


class JointBatch(NamedTuple):
    """What one step learns from; None where a term does not count."""

    noised: Noised | None
    labelled: Labelled | None
    taught: Taught | None
    told: dict[str, torch.Tensor]  # of the pseudo-labels: pseudo_coverage, pseudo_confidence, _pseudo_right; each []

    @property
    def is_empty(self) -> bool:
        """Whether nothing is learned from it."""
        return self.noised is None and self.labelled is None and self.taught is None


def noise_images(
    x: torch.Tensor, alpha_bar: torch.Tensor, training: TrainingConfig, generator: torch.Generator
) -> Noised:
    """Draw a timestep and noise for every image.

    Args:
        alpha_bar: [T].
    """
    t = torch.randint(training.num_timesteps, (len(x),), generator=generator, device=x.device)
    eps = torch.randn(x.shape, generator=generator, device=x.device)
    return Noised(
        diffusion.add_noise(x, eps, t, alpha_bar),
        t,
        diffusion.target(x, eps, t, alpha_bar, prediction=training.prediction),
        diffusion.min_snr_weight(t, alpha_bar, gamma=training.snr_gamma, prediction=training.prediction),
    )


def draw_step(
    step: int,
    batches: Batches,
    labeller: PseudoLabeller | None,
    training: TrainingConfig,
    alpha_bar: torch.Tensor,
    truth: torch.Tensor,
    generator: torch.Generator,
    views: Views = PIXEL_VIEWS,
) -> JointBatch:
    """Draw what a step learns from, and ask the teacher.

    The teacher's pass keeps nothing for a backward pass: it needs far less memory than half of what follows.

    Args:
        step: 0-based, of the round.
        batches: Has the pools of the terms that count.
        labeller: None where pseudo-labels do not count.
        truth: Hidden labels, int64 [N] or [N,K]: for one number of telemetry.
        generator: Of views, timesteps and noise, on the device.
        views: Of what the network sees.
    """
    noised = labelled = taught = None
    told: dict[str, torch.Tensor] = {}
    if batches.has("all"):
        noised = noise_images(views.weak(batches.take("all", step), generator), alpha_bar, training, generator)
    if batches.has("labelled"):
        view = views.strong if training.labelled_view == "strong" else views.weak
        labelled = Labelled(view(batches.take("labelled", step), generator), batches.labels("labelled", step))
    if labeller:
        x, index = batches.take("unlabelled", step), batches.index("unlabelled", step)
        said = labeller.label(x, index, generator)
        if len(x):
            taught = Taught(views.strong(x, generator), said.target, said.weight)
            told["pseudo_coverage"] = said.weight.mean()
            told["pseudo_confidence"] = said.confidence
            told["_pseudo_right"] = ((said.hard() == truth[index]) * said.weight).mean()
    return JointBatch(noised, labelled, taught, told)


def add_gradients(
    model: JointModel, batch: JointBatch, weights: TermWeights, speed: Speed, parts: int = 1
) -> dict[str, torch.Tensor]:
    """Add the gradients of the joint loss to those of the model.

    Args:
        parts: In how many passes, one after another: less memory, the same sum.

    Returns:
        The loss and its terms without their weights, means over the batch, each []: loss, loss_diffusion, loss_class,
        loss_pseudo.
    """
    sums: dict[str, torch.Tensor] = {}
    for number in range(parts):
        with speed.precision():
            terms = _terms(model, batch, speed, number, parts)
        loss = sum_of_terms(terms, weights)
        loss.backward()
        for name, value in {**terms, "loss": loss}.items():
            sums[name] = sums[name] + value.detach() if name in sums else value.detach()
    return sums


def sum_of_terms(terms: Mapping[str, torch.Tensor], weights: TermWeights) -> torch.Tensor:
    """Return the weighted sum of the terms that there are, at least one: []."""
    zero = torch.zeros((), device=next(iter(terms.values())).device)
    return (
        weights.diffusion * terms.get("loss_diffusion", zero)
        + weights.label * terms.get("loss_class", zero)
        + weights.pseudo * terms.get("loss_pseudo", zero)
    )


def _terms(model: JointModel, batch: JointBatch, speed: Speed, number: int, parts: int) -> dict[str, torch.Tensor]:
    """Return what one of the parts adds to the terms of the loss."""
    terms: dict[str, torch.Tensor] = {}
    if batch.noised:
        total = len(batch.noised.x)
        own = batch.noised.part(split(total, parts)[number])
        found = losses.denoising_loss(speed.denoise(model, own.x, own.t), own.goal, own.weight)
        terms["loss_diffusion"] = _share(found, total)
    labelled = batch.labelled and batch.labelled.part(split(len(batch.labelled.views), parts)[number])
    taught = batch.taught and batch.taught.part(split(len(batch.taught.views), parts)[number])
    views = [some.views for some in (labelled, taught) if some]
    if not views:
        return terms
    # One pass for both kinds of views: GroupNorm looks at each image alone, so nothing changes but the time.
    logits = speed.classify(model, torch.cat(views))
    if labelled and batch.labelled:
        found = losses.classification_loss(logits[: len(labelled.views)], labelled.labels)
        terms["loss_class"] = _share(found, len(batch.labelled.views))
        logits = logits[len(labelled.views) :]
    if taught and batch.taught:
        found = losses.pseudo_label_loss(logits, taught.target, taught.weight)
        terms["loss_pseudo"] = _share(found, len(batch.taught.views))
    return terms


def _share(values: torch.Tensor, total: int) -> torch.Tensor:
    """Return what some of a batch's values add to the mean over all: []."""
    return values.mean() if len(values) == total else values.sum() / total
