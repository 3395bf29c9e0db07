"""Controls of counterfactual explanations: edits that explain nothing, graded as the explanations are.

A grade says something where the controls get a worse one. Four of them, beside every table:

- own class: the method is asked for the decision that the scan has already; it should return the scan.
- random edit: noise of the same L2 norm, scan by scan; what an edit of that size does by itself.
- random weights (Adebayo et al. 2018): the method explains a network that knows nothing; if its edits get the grades of
  the true model's, the grades do not speak of the model.
- attack: projected gradient ascent on the true model's margin (Madry et al. 2018) with the same L2 norm; an edit that
  turns the decision and means nothing to a person.

Nothing draws from global randomness: every draw takes a generator.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from jointdiff.evaluation import extract_features
from jointdiff.model import JointModel, to_network, to_uint8

NUM_ATTACK_STEPS = 20
_BISECTIONS = 24


@dataclass(frozen=True)
class Edits:
    """Edits of N scans, as a person sees them."""

    images: np.ndarray  # uint8 [N,H,W,C]
    targets: np.ndarray  # int64 [N]: the class aimed at; multi-label: the label to turn over
    found: np.ndarray  # bool [N]: whoever made them says that there is an edit
    seconds_per_image: float | None = None  # None = not measured

    @staticmethod
    def together(parts: Sequence[Edits]) -> Edits:
        """Return the edits of several sets of scans as one; the time is the mean over scans, where all have one."""
        counts = [len(part.targets) for part in parts]
        seconds = [part.seconds_per_image for part in parts]
        known = [s for s in seconds if s is not None]
        mean = float(np.average(known, weights=counts)) if len(known) == len(parts) and any(counts) else None
        images, targets, found = (np.concatenate([getattr(p, name) for p in parts]) for name in _ARRAYS)
        return Edits(images, targets, found, mean)


_ARRAYS = ("images", "targets", "found")
Explain = Callable[[JointModel, np.ndarray, np.ndarray], Edits]  # model, scans uint8 [N,H,W,C], targets [N]


def all_controls(
    explain: Explain, model: JointModel, scans: np.ndarray, edits: Edits, probs: np.ndarray, *,
    generator: torch.Generator, device: torch.device,
) -> dict[str, Edits]:  # fmt: skip
    """Return the four controls of a method's edits by name, to be graded by the true model and its referee.

    A multi-label task has no `own class`: there a target says which answer to turn over.

    Args:
        explain: The method.
        model: The true model.
        scans: uint8 [N,H,W,C].
        edits: The method's, of these scans with the true model.
        probs: Of the true model on the scans [N,K].
        generator: On the CPU; the controls that draw take from it in the order above.
    """
    found = {}
    if model.config.task == "multi-class":
        found["own class"] = explain(model, scans, probs.argmax(axis=1))
    found["random edit"] = random_edit(scans, edits, generator=generator)
    found["random weights"] = explain(random_weights(model, scans, generator=generator), scans, edits.targets)
    found["attack"] = attack(model, scans, edits, device=device)
    return found


def random_edit(scans: np.ndarray, edits: Edits, *, generator: torch.Generator) -> Edits:
    """Return Gaussian noise of the edits' L2 norm, scan by scan, for those scans for which there is an edit.

    The noise's strength is searched, so that the norm holds after clipping to the range and rounding to grey levels: it
    is the edit's or, by the roundings of single pixels, slightly more; less only where the range leaves no room.
    """
    noise = torch.randn(scans.shape, generator=generator, dtype=torch.float64).numpy()
    wanted = _norms(edits.images, scans)

    def noisy(strength: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(scans + strength[:, None, None, None] * noise), 0, 255).astype(np.uint8)

    low, high = np.zeros(len(scans)), np.full(len(scans), 1024.0)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        enough = _norms(noisy(middle), scans) >= wanted
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    made = edits.found & (wanted > 0)
    images = np.where(made[:, None, None, None], noisy(high), scans)
    return Edits(images, edits.targets, edits.found)


def random_weights(model: JointModel, scans: np.ndarray, *, generator: torch.Generator) -> JointModel:
    """Return a model of the same configuration that knows nothing; the given one stays as it is.

    Every weight is drawn from a normal distribution with the mean and spread of the trained tensor it replaces: weights
    as a constructor draws them would not do, since its zeros (head, last convolutions) leave no gradient to follow. The
    head's standardisation is made anew from the features of `scans`, so that logits have their usual size.

    Args:
        scans: uint8 [N,H,W,C].
        generator: On the CPU.
    """
    fresh = copy.deepcopy(model).eval()
    with torch.no_grad():
        for parameter in fresh.parameters():
            drawn = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.copy_(drawn * parameter.std(correction=0) + parameter.mean())
        features = extract_features(fresh, scans, device=fresh.head.mean.device)
        fresh.head.mean.copy_(features.mean(dim=0))
        fresh.head.scale.copy_(features.std(dim=0, correction=0).clamp(min=1e-6))
    return fresh


def attack(
    model: JointModel, scans: np.ndarray, edits: Edits, *, device: torch.device, num_steps: int = NUM_ATTACK_STEPS,
    batch_size: int = 64,
) -> Edits:  # fmt: skip
    """Return adversarial perturbations within the edits' L2 norm, for those scans for which there is an edit.

    x <- project(x + 2.5 r / num_steps * g / |g|), g the gradient of the margin (target's logit minus the largest other
    one; multi-label: the label's logit, up or down), the projection onto the ball of radius r around the scan and the
    range of images. Of all iterates the one with the largest margin is kept, and rounded to grey levels.
    """
    parts = []
    for start in range(0, len(scans), batch_size):
        rows = slice(start, start + batch_size)
        images, edited = to_network(scans[rows], device), to_network(edits.images[rows], device)
        made = torch.from_numpy(edits.found[rows]).to(device)
        radius = (edited - images).flatten(1).norm(dim=1) * made
        targets = torch.from_numpy(edits.targets[rows]).to(device)
        parts.append(to_uint8(_ascend(model, images, targets, radius, num_steps)))
    images_after = np.concatenate(parts) if parts else scans
    return Edits(images_after, edits.targets, edits.found)


def _ascend(
    model: JointModel, images: torch.Tensor, targets: torch.Tensor, radius: torch.Tensor, num_steps: int
) -> torch.Tensor:
    radius = radius.view(-1, 1, 1, 1)
    with torch.no_grad():
        before = model.classify(images).gather(1, targets[:, None])[:, 0]
    sign = torch.where(before > 0, -1.0, 1.0)  # multi-label: which way the label's logit should go
    x, best, best_margin = images, images, torch.full_like(before, -torch.inf)
    for step in range(num_steps + 1):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            margin = _margin(model.classify(leaf), targets, sign, model.config.task)
            (gradient,) = torch.autograd.grad(margin.sum(), leaf)
        better = margin.detach() > best_margin
        best = torch.where(better.view(-1, 1, 1, 1), x, best)
        best_margin = torch.where(better, margin.detach(), best_margin)
        if step < num_steps:
            moved = x + 2.5 / num_steps * radius * gradient / _length(gradient)
            x = (images + (moved - images) * (radius / _length(moved - images)).clamp(max=1)).clamp(-1, 1)
    return best.detach()


def _margin(logits: torch.Tensor, targets: torch.Tensor, sign: torch.Tensor, task: str) -> torch.Tensor:
    own = logits.gather(1, targets[:, None])[:, 0]
    if task == "multi-label":
        return sign * own
    return own - logits.scatter(1, targets[:, None], -torch.inf).amax(dim=1)


def _length(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)


def _norms(images: np.ndarray, scans: np.ndarray) -> np.ndarray:
    return np.sqrt(((images.astype(np.float64) - scans) ** 2).sum((1, 2, 3)))
