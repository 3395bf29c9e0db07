"""One hospital's share of one round under differential privacy: the joint loss, clipped and noised record by record.

The same page as training.py, with three differences. A step draws one Poisson batch of records, each with its label or
without; a record's loss is one number, so that its whole gradient is clipped once. All randomness comes from the
operating system. Nothing that is computed from the records leaves but the weights: no loss, no count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import NamedTuple

import torch

from jointdiff import losses, pseudo_labels
from jointdiff.accounting import History, epsilon_of, noise_multiplier_for
from jointdiff.augment import PIXEL_VIEWS, Views
from jointdiff.config import Config, RunConfig, TrainingConfig
from jointdiff.data.hospital import HospitalData
from jointdiff.device_memory import Halving, split
from jointdiff.errors import ConfigError
from jointdiff.evaluation import predict
from jointdiff.joint_step import Noised, TermWeights, noise_images
from jointdiff.model import JointModel, to_network
from jointdiff.optimizer_state import load_moments, save_moments
from jointdiff.phase_keys import PhaseConfig
from jointdiff.privacy import PoissonBatches, PrivateSteps, chunks, refuse_what_cannot_be_private, system_generator
from jointdiff.schedule import SCHEDULES
from jointdiff.spaces import view_source
from jointdiff.training import State, learning_rate_at, rate_factor, term_weights


@dataclass(frozen=True)
class PrivacyPlan:
    """What one hospital's part in a run costs, known before it starts."""

    noise_multiplier: float  # sigma
    sample_rate: float  # q: expected batch over units
    steps: int  # per round
    num_rounds: int
    delta: float
    before: History = ()  # of the phase before, in a run of two
    later: History = ()  # of the phase that follows

    @property
    def epsilon(self) -> float:
        """Epsilon of the whole run, by itself: of all its phases composed."""
        return epsilon_of([*self.before, *self.ahead(1)], self.delta)

    def ahead(self, round_number: int) -> History:
        """Return what the run has still to do.

        Args:
            round_number: Of this phase, 1-based: the first that is still to be trained.
        """
        steps = self.steps * (self.num_rounds - round_number + 1)
        return ((self.noise_multiplier, self.sample_rate, steps), *self.later)


_noise_multiplier_for = lru_cache(maxsize=64)(noise_multiplier_for)  # a search of seconds, the same in every round


def plan_for(config: Config, num_units: int) -> PrivacyPlan:
    """Return what a hospital with so many records (or patients) will do in every round of a private run.

    Raises:
        ConfigError: Something in the configuration cannot be private, delta is too large, or no noise is enough.
    """
    refuse_what_cannot_be_private(config)
    run = config.run
    if run.delta >= 1 / max(1, num_units):
        raise ConfigError(
            f"delta = {run.delta:g} is not below one over the {num_units} records of this site: it would allow to "
            "publish one of them. Take a smaller delta."
        )
    rate = min(1.0, run.batch_size / num_units)
    if config.phase is not None:
        return _plan_of_phase(run, config.phase, rate)
    sigma = run.noise_multiplier or _noise_multiplier_for(
        run.target_epsilon, run.delta, rate, run.num_rounds * run.local_steps
    )
    return PrivacyPlan(sigma, rate, run.local_steps, run.num_rounds, run.delta)


def _plan_of_phase(run: RunConfig, phase: PhaseConfig, rate: float) -> PrivacyPlan:
    """Return the plan of one phase of two, whose composition stays within the target.

    The first phase alone may spend its share of target-epsilon; the second gets the least noise with which both
    together stay within the whole. Epsilons do not add up, histories do: that is more than the rest of the share.
    """
    counts = [run.local_steps * rounds for rounds in (phase.autoencoder_rounds, phase.joint_rounds)]
    first = second = run.noise_multiplier
    if not first:
        first = _noise_multiplier_for(run.autoencoder_budget * run.target_epsilon, run.delta, rate, counts[0])
        second = _noise_multiplier_for(
            run.target_epsilon, run.delta, rate, counts[1], spent=((first, rate, counts[0]),)
        )
    history: History = ((first, rate, counts[0]), (second, rate, counts[1]))
    here = phase.number - 1
    return PrivacyPlan(
        history[here][0], rate, run.local_steps, run.num_rounds, run.delta, before=history[:here],
        later=history[here + 1 :],
    )  # fmt: skip


@dataclass(frozen=True)
class Randomness:
    """Where the draws of a private round come from; tests inject their own, sites take the operating system's."""

    batches: torch.Generator  # on the CPU
    views: torch.Generator  # timesteps, diffusion noise, augmentation; on the device
    noise: torch.Generator  # of the gradient, on the device

    @classmethod
    def from_system(cls, device: torch.device) -> Randomness:
        """Return generators that the operating system has seeded."""
        return cls(system_generator(), system_generator(device), system_generator(device))


def train_private_round(
    model: JointModel,
    data: HospitalData,
    config: Config,
    plan: PrivacyPlan,
    *,
    round_number: int,
    device: torch.device,
    state: State | None,
    randomness: Randomness | None = None,
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Train in place for `plan.steps` steps.

    Args:
        model: Holds the weights the server sent; with teacher = global they label the unlabelled records.
        data: The hospital's images.
        plan: Already written into the ledger.
        round_number: 1-based.
        state: What this function returned in the round before (moments of the noised gradients), or None.
        randomness: None = the operating system's.

    Returns:
        What may leave (noise_multiplier, sample_rate, steps, learning_rate) and the state for the next round.
    """
    training = config.training
    randomness = randomness or Randomness.from_system(device)
    weights = term_weights(config, round_number)
    body = list(model.unet.parameters())
    frozen = body if training.body_lr_scale == 0 else []
    if frozen:
        weights = replace(weights, diffusion=0.0)  # nothing that it could teach
    source = view_source(data, latent=config.model.latent)
    images = torch.as_tensor(source.images, device=device)
    labels = torch.as_tensor(data.train.labels, device=device)
    teacher = None
    if weights.pseudo and training.teacher == "global":
        teacher = torch.as_tensor(predict(model, data.train.images, device=device), device=device)
    loss = JointLoss(model, config, weights, randomness.views, source.views)
    batches = PoissonBatches(len(images), plan.sample_rate, randomness.batches, patients=data.train.patients)

    model.train()
    resting = {id(p) for p in [*frozen, *loss.unused_parameters(images.shape[1:])]}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) not in resting)
    factor = rate_factor(config, round_number)
    groups = [
        {"params": [p for p in parameters if p.requires_grad], "scale": factor * scale}
        for parameters, scale in ((body, training.body_lr_scale), (list(model.head.parameters()), 1.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.99), weight_decay=training.weight_decay)
    load_moments(optimizer, state, list(model.parameters()))
    halving = Halving(device, f"physical-batch {training.physical_batch}")

    def add(steps: PrivateSteps, index: torch.Tensor) -> None:
        x, probs = to_network(images[index], device), None if teacher is None else teacher[index]
        drawn = loss.draw(x, labels[index], probs)
        halving.run(partial(_add, steps, loss, drawn), undo=steps.forget)

    return take_private_steps(
        model, optimizer, batches, add, training, plan, round_number=round_number, noise=randomness.noise,
        device=device,
    )  # fmt: skip


def take_private_steps(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: PoissonBatches,
    add: Callable[[PrivateSteps, torch.Tensor], None],
    training: TrainingConfig,
    plan: PrivacyPlan,
    *,
    round_number: int,
    noise: torch.Generator,
    device: torch.device,
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Take a round's clipped and noised steps on a network.

    Args:
        model: In training mode; parameters that rest need no gradient.
        optimizer: Its groups may have a `scale` of the learning rate.
        batches: Poisson batches of records.
        add: Adds the clipped gradients of the records with these indices [n] to a step.
        noise: Of the gradient, on the device.

    Returns:
        As `train_private_round`.
    """
    rate = 0.0
    with PrivateSteps(
        model,
        optimizer,
        noise_multiplier=plan.noise_multiplier,
        max_grad_norm=training.max_grad_norm,
        expected_batch=plan.sample_rate * batches.num_units,
        generator=noise,
    ) as steps:
        for step in range(plan.steps):
            number = (round_number - 1) * plan.steps + step
            rate = learning_rate_at(number, plan.num_rounds * plan.steps, training)
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("scale", 1.0)
            for index in chunks(batches.draw().to(device), training.physical_batch):
                add(steps, index)
            steps.finish()
    new_state = save_moments(optimizer, list(model.parameters()))
    model.requires_grad_(True)
    metrics = {
        "noise_multiplier": plan.noise_multiplier,
        "sample_rate": plan.sample_rate,
        "steps": float(plan.steps),
        "learning_rate": rate,
    }
    return metrics, new_state


def _add(steps: PrivateSteps, loss: JointLoss, batch: PrivateBatch, parts: int) -> None:
    """Add the clipped gradients of some records, in so many passes; none has no record."""
    for at in split(len(batch.labels), min(parts, len(batch.labels))):
        steps.add(loss(batch.part(at)))


class PrivateBatch(NamedTuple):
    """Records with all that was drawn for them: n records, in one order everywhere."""

    labels: torch.Tensor  # int64 [n], or [n,K] for multi-label; -1 = unknown
    noised: tuple[Noised, ...]  # one per draw of noise
    views: torch.Tensor | None  # [n,C,H,W] that are classified; None where neither labels nor pseudo-labels count
    pseudo: torch.Tensor | None  # int64 [n], or [n,K]
    mask: torch.Tensor | None  # [n], or [n,K]

    def part(self, at: slice) -> PrivateBatch:
        """Return some of the records."""
        views, pseudo, mask = (None if tensor is None else tensor[at] for tensor in self[2:])
        return PrivateBatch(self.labels[at], tuple(noised.part(at) for noised in self.noised), views, pseudo, mask)


class JointLoss:
    """The joint loss of a batch, one number per record: [n]. Every forward pass holds all records, in one order.

        l_i = w_d mean_K ||target - prediction||^2 + w_c CE(y_i, f(view))            where the label is known
        l_i = w_d mean_K ||target - prediction||^2 + w_u m_i CE(pseudo_i, f(strong)) where it is not

    Args:
        model: In training mode.
        config: `noise_multiplicity` is K, the passes of the denoiser per record.
        weights: Of the terms in this round.
        generator: On the device.
        views: Of what `draw` gets; what comes out is what the network sees.
    """

    def __init__(
        self,
        model: JointModel,
        config: Config,
        weights: TermWeights,
        generator: torch.Generator,
        views: Views = PIXEL_VIEWS,
    ) -> None:
        training, self._views = config.training, views
        self._model, self._config, self._weights, self._generator = model, config, weights, generator
        self._multi_label = config.model.task == "multi-label"
        self._alpha_bar = SCHEDULES[training.schedule](training.num_timesteps).to(generator.device)

    def draw(self, x: torch.Tensor, labels: torch.Tensor, probs: torch.Tensor | None) -> PrivateBatch:
        """Draw views, timesteps and noise, and take the teacher's word.

        Args:
            x: [n,C,H,W] in [-1,1].
            labels: int64 [n], or [n,K] for multi-label; -1 = unknown.
            probs: The teacher's probabilities [n,K]; None: the model itself labels weak views.
        """
        training, weights, generator = self._config.training, self._weights, self._generator
        weak_view, strong_view = self._views
        noised = tuple(
            noise_images(weak_view(x, generator), self._alpha_bar, training, generator)
            for _ in range(training.noise_multiplicity if weights.diffusion else 0)
        )
        if not weights.label and not weights.pseudo:
            return PrivateBatch(labels, noised, None, None, None)
        strong = strong_view(x, generator)
        labelled = strong if training.labelled_view == "strong" else weak_view(x, generator)
        if probs is None:
            with torch.no_grad():
                probs = self._model.probabilities(self._model.classify(weak_view(x, generator)))
        pseudo, mask = pseudo_labels.trusted(probs, threshold=training.threshold, multi_label=self._multi_label)
        views = torch.where(self._known(labels)[:, None, None, None], labelled, strong)
        return PrivateBatch(labels, noised, views, pseudo, mask)

    def __call__(self, batch: PrivateBatch) -> torch.Tensor:
        """Return the loss of each record: [n]."""
        weights, num_draws = self._weights, self._config.training.noise_multiplicity
        total = torch.zeros(len(batch.labels), device=batch.labels.device)
        for noised in batch.noised:
            term = losses.denoising_loss(self._model.denoise(noised.x, noised.t), noised.goal, noised.weight)
            total = total + weights.diffusion / num_draws * term
        if batch.views is not None and batch.pseudo is not None and batch.mask is not None:
            known, logits = self._known(batch.labels), self._model.classify(batch.views)
            total = total + weights.label * losses.classification_loss(logits, batch.labels) * known
            total = total + weights.pseudo * losses.pseudo_label_loss(logits, batch.pseudo, batch.mask) * ~known
        return total

    def _known(self, labels: torch.Tensor) -> torch.Tensor:
        """Return whose label is known: bool [n]."""
        return (labels >= 0).all(dim=1) if self._multi_label else labels >= 0

    def unused_parameters(self, image_shape: torch.Size) -> list[torch.nn.Parameter]:
        """Return the model's parameters that this round's loss does not reach: found on a blank image, not on data.

        Args:
            image_shape: [H,W,C].
        """
        height, width, channels = image_shape
        outputs = self._config.model.num_outputs
        blank = torch.zeros(1, channels, height, width, device=self._generator.device)
        labels = torch.zeros((1, outputs) if self._multi_label else 1, dtype=torch.int64, device=blank.device)
        parameters = list(self._model.parameters())
        loss = self(self.draw(blank, labels, None)).sum()
        if not loss.requires_grad:
            return parameters
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [p for p, grad in zip(parameters, grads, strict=True) if grad is None]
