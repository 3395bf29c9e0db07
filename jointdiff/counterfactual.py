"""Counterfactual explanations: what would have to change in this scan for the other diagnosis?

One function per method, all with the signature of `explain` (METHODS); the default is `region`. Where a method finds
nothing, its last attempt is returned, marked: "no explanation found".

Shapes: images [N,C,H,W] in [-1,1]; targets [N] int64 (a class, or of a multi-label task the label to turn over);
probabilities [N,K]. A margin is log p / (1 - p) of what is wanted; it has no ceiling, so its gradient does not fade.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional as F

from jointdiff.diffusion import add_noise
from jointdiff.model import JointModel
from jointdiff.regions import change_map, strongest
from jointdiff.sampling import (
    Denoiser,
    LogProb,
    denoiser,
    guide_through_denoiser,
    guide_to_margin,
    guided_representations,
    invert_ddim,
    sample_ddim,
    sample_ddpm,
    spaced_timesteps,
)

TYPICAL_QUANTILE = 0.75  # of the margins of scans that the model gives a class: what an edit should reach
MIN_TYPICAL = 10  # scans of a class below which its typical margin is not known


@dataclass(frozen=True)
class CounterfactualSettings:
    """How an edit is searched."""

    confidence: float = 0.95  # wanted of the target, where its typical margin is not known
    depth: float = 0.3  # timestep to which a scan is inverted, as a share of all timesteps
    num_steps: int = 6  # DDIM steps each way
    max_step: float = 0.12  # largest root mean square change of one guided step
    l1: float = 0.0  # soft threshold of the edit in every step
    redraw_depth: float = 0.7  # timestep from which a region is drawn anew
    redraw_steps: int = 4
    temperature: float = 0.4  # of the noise it is drawn from: below 1 likelier, smoother tissue
    shares: tuple[float, ...] = (0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.25)  # regions tried, as shares of the pixels
    retry_shares: tuple[float, ...] = (0.5, 1.0)  # tried where none of them turns the decision
    tolerance: float = 0.3  # by how much a margin may miss what is wanted, in the search for a region
    slack: float = 1.0  # by how much a margin may miss it after the region was widened
    scales: tuple[float, ...] = (0.05, 0.2, 1.0)  # of the guidance on representations, weakest first
    seed: int = 0  # of the noise of methods that draw some


@dataclass(frozen=True)
class Counterfactuals:
    """Edits and how convincing they are."""

    images: torch.Tensor  # [N,C,H,W]
    probs_before: torch.Tensor  # [N,K]
    probs_after: torch.Tensor  # [N,K]
    found: torch.Tensor  # [N] bool: the target became the decision
    seconds_per_image: float


class Method(Protocol):
    """What every method is called like."""

    def __call__(  # noqa: D102
        self, model: JointModel, images: torch.Tensor, targets: torch.Tensor, alpha_bar: torch.Tensor, *,
        prediction: str, settings: CounterfactualSettings | None = None, references: torch.Tensor | None = None,
    ) -> Counterfactuals: ...  # fmt: skip


@dataclass(frozen=True)
class _Task:
    """One batch to be edited, and what all methods ask of it."""

    model: JointModel
    images: torch.Tensor
    targets: torch.Tensor
    alpha_bar: torch.Tensor
    prediction: str
    settings: CounterfactualSettings
    shown: torch.Tensor  # [N]: of a multi-label task 1.0 to show the finding, 0.0 to remove it; else 1.0
    goal: torch.Tensor  # [N]: the margin to reach

    @property
    def denoise(self) -> Denoiser:
        return denoiser(self.model, self.alpha_bar, prediction=self.prediction)

    def margin_of_logits(self, index: torch.Tensor | slice = slice(None)) -> LogProb:
        """Return the margin of what is wanted of some of the images, as a function of their logits [n,K]."""
        return lambda logits: _margin(logits, self.targets[index], self.shown[index], self.model.config.task)

    def margin(self, index: torch.Tensor | slice = slice(None)) -> LogProb:
        """The same, as a function of the images."""
        of_logits = self.margin_of_logits(index)
        return lambda x: of_logits(self.model.classify(x))

    def timesteps(self, depth: float, steps: int) -> list[int]:
        return spaced_timesteps(steps, int(depth * len(self.alpha_bar)))

    def noised(self, timestep: int, *, temperature: float = 1.0) -> torch.Tensor:
        """Return the images with fresh noise (its standard deviation is `temperature`), of a generator of its own."""
        generator = torch.Generator(device=self.images.device).manual_seed(self.settings.seed)
        noise = torch.randn(self.images.shape, generator=generator, device=self.images.device)
        t = torch.full((len(self.images),), timestep, device=self.images.device)
        return add_noise(self.images, temperature * noise, t, self.alpha_bar)


def _margin(logits: torch.Tensor, targets: torch.Tensor, shown: torch.Tensor, task: str) -> torch.Tensor:
    own = logits.gather(1, targets[:, None])[:, 0]
    if task == "multi-label":
        return torch.where(shown > 0.5, own, -own)
    return own - logits.scatter(1, targets[:, None], -math.inf).logsumexp(dim=1)


def wanted_log_prob(model: JointModel, targets: torch.Tensor, wanted: torch.Tensor) -> LogProb:
    """Return log p(target) of images: softmax, or for a label of a multi-label task the sigmoid of its wanted value.

    Args:
        targets: Class, or label index: [N].
        wanted: Of a multi-label task, 1.0 to show the finding and 0.0 to remove it: [N].
    """
    return lambda x: F.logsigmoid(_margin(model.classify(x), targets, wanted, model.config.task))


def default_targets(probs: torch.Tensor, *, task: str) -> torch.Tensor:
    """Return the nearest other class (the second most probable), or the least certain label: [N]."""
    if task == "multi-class":
        return probs.topk(2, dim=1).indices[:, 1]
    return (probs - 0.5).abs().argmin(dim=1)


@torch.no_grad()
def typical_margins(probs: torch.Tensor) -> torch.Tensor:
    """Return how sure the model is of scans it decides for, its own decisions taken as true: no label is looked at.

    Args:
        probs: Of many scans [N,K].

    Returns:
        [K,2]: the TYPICAL_QUANTILE of the margin against (column 0) and for (column 1) each class or label; NaN where
        fewer than MIN_TYPICAL scans are decided so. Multi-class: column 0 is NaN.
    """
    probs = probs.double().clamp(1e-9, 1 - 1e-9)
    margins = (probs / (1 - probs)).log()
    multi_class = bool(torch.allclose(probs.sum(dim=1), torch.ones(len(probs), dtype=probs.dtype), atol=1e-3))
    found = torch.full((probs.shape[1], 2), math.nan, dtype=torch.float32)
    for k in range(probs.shape[1]):
        shows = probs.argmax(dim=1) == k if multi_class else probs[:, k] > 0.5
        for column, values in ((1, margins[shows, k]), (0, -margins[~shows, k])):
            if len(values) >= MIN_TYPICAL and not (multi_class and column == 0):
                found[k, column] = values.quantile(TYPICAL_QUANTILE).float()
    return found


def _method(search: Callable[[_Task], torch.Tensor]) -> Method:
    """Turn a search for edits into a method: what goes before and after is the same for all."""

    def method(
        model: JointModel,
        images: torch.Tensor,
        targets: torch.Tensor,
        alpha_bar: torch.Tensor,
        *,
        prediction: str,
        settings: CounterfactualSettings | None = None,
        references: torch.Tensor | None = None,
    ) -> Counterfactuals:
        settings = settings or CounterfactualSettings()
        began = time.perf_counter()
        with torch.no_grad():
            before = model.probabilities(model.classify(images))
            multi_label = model.config.task == "multi-label"
            shown = (before.gather(1, targets[:, None])[:, 0] < 0.5).float() if multi_label else torch.ones(len(images))
            shown = shown.to(images.device)
            goal = torch.full((len(images),), math.log(settings.confidence / (1 - settings.confidence)))
            goal = goal.to(images.device)
            if references is not None:
                known = references.to(images.device)[targets, shown.long()]
                goal = torch.where(known.isnan(), goal, known)
            edited = search(_Task(model, images, targets, alpha_bar, prediction, settings, shown, goal))
            after = model.probabilities(model.classify(edited))
            chosen = after.gather(1, targets[:, None])[:, 0]
            found = (chosen > 0.5) == (shown > 0.5) if multi_label else after.argmax(dim=1) == targets
        return Counterfactuals(edited, before, after, found, (time.perf_counter() - began) / max(1, len(images)))

    method.__doc__ = search.__doc__
    return method


def _authors(task: _Task) -> torch.Tensor:
    """Edit as the authors' code does: noise to t = 200 of 1000, 200 guided ancestral steps at scale 300.

    No distance term, no inversion, no search; the gradient goes through the denoiser (`guide_through_denoiser`).
    """
    steps = len(task.alpha_bar) // 5
    timesteps = list(range(steps - 1, -1, -1))

    guided = guide_through_denoiser(
        task.model,
        task.alpha_bar,
        lambda logits: F.logsigmoid(task.margin_of_logits()(logits)),
        scale=300.0,
        prediction=task.prediction,
    )
    generator = torch.Generator(device=task.images.device).manual_seed(task.settings.seed + 1)
    return sample_ddpm(guided, task.noised(timesteps[0]), timesteps, task.alpha_bar, generator=generator)


def _guided(task: _Task, start: torch.Tensor, timesteps: list[int]) -> torch.Tensor:
    guided = guide_to_margin(
        task.denoise,
        task.margin(),
        task.goal,
        max_step=task.settings.max_step,
        originals=task.images,
        l1=task.settings.l1,
    )
    return sample_ddim(guided, start, timesteps, task.alpha_bar)


def _tweedie(task: _Task) -> torch.Tensor:
    """Edit in one pass from random noise, guided at the estimate of x_0 (`guide_to_margin`)."""
    timesteps = task.timesteps(task.settings.depth, task.settings.num_steps)
    return _guided(task, task.noised(timesteps[0]), timesteps)


def _inversion(task: _Task) -> torch.Tensor:
    """Edit in one pass from the scan's own DDIM inversion, which keeps the anatomy, guided as `tweedie`."""
    timesteps = task.timesteps(task.settings.depth, task.settings.num_steps)
    return _guided(task, invert_ddim(task.denoise, task.images, timesteps, task.alpha_bar), timesteps)


def _representations(task: _Task) -> torch.Tensor:
    """Edit from the DDIM inversion, guided on the shared representations; the weakest of several scales."""
    timesteps = task.timesteps(task.settings.depth, task.settings.num_steps)
    noised = invert_ddim(task.denoise, task.images, timesteps, task.alpha_bar)
    edited, open_ = task.images.clone(), torch.ones(len(task.images), dtype=torch.bool, device=task.images.device)
    for scale in task.settings.scales:
        index = open_.nonzero()[:, 0]
        if len(index) == 0:
            break
        guided = guided_representations(
            task.model, task.alpha_bar, task.margin_of_logits(index), scale=scale, prediction=task.prediction
        )
        edited[index] = sample_ddim(guided, noised[index], timesteps, task.alpha_bar)
        open_[index] = task.margin(index)(edited[index]) < task.goal[index]
    return edited


def _region(task: _Task) -> torch.Tensor:
    """Find where the edit has to be, then draw the smallest region anew that reaches the wanted margin.

    1. One pass from the DDIM inversion shows where the model wants a change. 2. Of regions that hold the strongest
    share of it, a binary search takes the smallest that, drawn anew from noise under guidance with the rest of the scan
    held fixed, reaches the goal. 3. The next larger region is drawn once more, so that it covers what it should; it is
    kept where it still convinces. Where none turns the decision, larger ones are drawn. A scan that the model gives the
    target already is returned as it is.
    """
    settings = task.settings
    change = change_map(task.images, _inversion(task))
    timesteps = task.timesteps(settings.redraw_depth, settings.redraw_steps)
    noised = task.noised(timesteps[0], temperature=settings.temperature)
    shares = torch.tensor(settings.shares, device=task.images.device)

    def redraw(index: torch.Tensor, part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images with the given share drawn anew, and by how much each passes its goal."""
        images, margin, goal = task.images[index], task.margin(index), task.goal[index]
        guided = guide_to_margin(
            task.denoise,
            margin,
            goal,
            max_step=settings.max_step,
            originals=images,
            region=strongest(change[index], part),
        )
        edited = sample_ddim(guided, noised[index], timesteps, task.alpha_bar)
        return edited, margin(edited) - goal

    everything = torch.arange(len(task.images), device=task.images.device)
    low, high = torch.zeros_like(everything), torch.full_like(everything, len(shares) - 1)
    while (open_ := low < high).any():
        index = open_.nonzero()[:, 0]
        middle = (low[index] + high[index]) // 2
        enough = redraw(index, shares[middle])[1] >= -settings.tolerance
        high[index[enough]], low[index[~enough]] = middle[enough], middle[~enough] + 1
    edited, beyond = redraw(everything, shares[(low + 1).clamp(max=len(shares) - 1)])
    again = (beyond < -settings.slack).nonzero()[:, 0]
    if len(again):
        edited[again] = redraw(again, shares[low[again]])[0]
    for share in settings.retry_shares:
        again = (task.margin()(edited) <= 0).nonzero()[:, 0]
        if len(again) == 0:
            break
        edited[again] = redraw(again, torch.full((len(again),), share, device=again.device))[0]
    decided = task.margin()(task.images) > 0
    edited[decided] = task.images[decided]
    return edited


METHODS: dict[str, Method] = {
    "authors": _method(_authors),
    "tweedie": _method(_tweedie),
    "inversion": _method(_inversion),
    "representations": _method(_representations),
    "region": _method(_region),
}
DEFAULT_METHOD = "region"


def explain(
    model: JointModel,
    images: torch.Tensor,
    targets: torch.Tensor,
    alpha_bar: torch.Tensor,
    *,
    prediction: str,
    settings: CounterfactualSettings | None = None,
    references: torch.Tensor | None = None,
) -> Counterfactuals:
    """Search an edit of each image that makes the model decide for the target, by the default method. Deterministic.

    Args:
        images: Scans on the model's device.
        targets: Wanted class of each, or the label to flip.
        alpha_bar, prediction: Of the model's training.
        settings: None: the defaults.
        references: As `typical_margins` gives them: an edit should look as sure as a typical scan of its target.

    Returns:
        Edits; where none was found, the last attempt, marked.
    """
    return METHODS[DEFAULT_METHOD](
        model, images, targets, alpha_bar, prediction=prediction, settings=settings, references=references
    )
