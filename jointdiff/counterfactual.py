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

from jointdiff import single_pass
from jointdiff.edit_task import CounterfactualSettings, EditTask, References, margin_of
from jointdiff.model import JointModel
from jointdiff.region_search import region
from jointdiff.sampling import LogProb

TYPICAL_QUANTILE = 0.75  # of the margins of scans that the model gives a class: what an edit should reach
MIN_TYPICAL = 10  # scans of a class below which its typical margin is not known


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
        prediction: str, settings: CounterfactualSettings | None = None, references: References | None = None,
    ) -> Counterfactuals: ...  # fmt: skip


def wanted_log_prob(model: JointModel, targets: torch.Tensor, wanted: torch.Tensor) -> LogProb:
    """Return log p(target) of images: softmax, or for a label of a multi-label task the sigmoid of its wanted value.

    Args:
        targets: Class, or label index: [N].
        wanted: Of a multi-label task, 1.0 to show the finding and 0.0 to remove it: [N].
    """
    return lambda x: F.logsigmoid(margin_of(model.classify(x), targets, wanted, model.config.task))


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


def _method(search: Callable[[EditTask], torch.Tensor]) -> Method:
    """Turn a search for edits into a method: what goes before and after is the same for all."""

    def method(
        model: JointModel,
        images: torch.Tensor,
        targets: torch.Tensor,
        alpha_bar: torch.Tensor,
        *,
        prediction: str,
        settings: CounterfactualSettings | None = None,
        references: References | None = None,
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
            others = None
            if references is not None:
                known = references.margins.to(images.device)[targets, shown.long()]
                goal, others = torch.where(known.isnan(), goal, known), references.scans
            edited = search(EditTask(model, images, targets, alpha_bar, prediction, settings, shown, goal, others))
            after = model.probabilities(model.classify(edited))
            chosen = after.gather(1, targets[:, None])[:, 0]
            found = (chosen > 0.5) == (shown > 0.5) if multi_label else after.argmax(dim=1) == targets
        return Counterfactuals(edited, before, after, found, (time.perf_counter() - began) / max(1, len(images)))

    method.__doc__ = search.__doc__
    return method


METHODS: dict[str, Method] = {
    "authors": _method(single_pass.authors),
    "tweedie": _method(single_pass.tweedie),
    "inversion": _method(single_pass.inversion),
    "representations": _method(single_pass.representations),
    "region": _method(region),
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
    references: References | None = None,
) -> Counterfactuals:
    """Search an edit of each image that makes the model decide for the target, by the default method. Deterministic.

    Args:
        images: Scans on the model's device.
        targets: Wanted class of each, or the label to flip.
        alpha_bar, prediction: Of the model's training.
        settings: None: the defaults.
        references: An edit should look as sure as a typical scan of its target, and like its own scan.

    Returns:
        Edits; where none was found, the last attempt, marked.
    """
    return METHODS[DEFAULT_METHOD](
        model, images, targets, alpha_bar, prediction=prediction, settings=settings, references=references
    )
