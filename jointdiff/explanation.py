"""A hospital explains decisions of a model to itself: edits, grades, a gallery. The grades alone may leave it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from jointdiff.appointed_referee import appointed_referee
from jointdiff.config import Config
from jointdiff.counterfactual import (
    DEFAULT_METHOD,
    METHODS,
    default_targets,
    typical_margins,
)
from jointdiff.data import HospitalData, ImageSet
from jointdiff.edit_task import LATENT_SETTINGS, CounterfactualSettings, References
from jointdiff.evaluation import predict
from jointdiff.explanation_parts import Part, Parts, clear
from jointdiff.fidelity import FeatureNet
from jointdiff.grading import grade, same_decisions
from jointdiff.model import JointModel, to_network, to_uint8
from jointdiff.reproducibility import seed_for
from jointdiff.sample_grades import grade_samples
from jointdiff.schedule import SCHEDULES
from jointdiff.spaces import PIXELS, Space
from jointdiff.storage import written
from jointdiff.views.gallery import GalleryItem, write_gallery

BATCH_SIZE = 64  # scans edited at a time
Progress = Callable[[int, int], None]
CARRY_ON = "What is whole stays: free the disk and explain again, and only what is missing is made."
MAX_REFERENCES = 400  # scans that say how sure the model typically is


@dataclass(frozen=True)
class Explanations:
    """Scans and their edits, as a person sees them. Shapes: N scans, K outputs."""

    scans: ImageSet
    edited: np.ndarray  # uint8 [N,H,W,C]
    targets: np.ndarray  # int64 [N]: the class that the edit aims at; multi-label: the label that it turns over
    probs_before: np.ndarray  # [N,K]
    probs_after: np.ndarray  # [N,K], of the edits as they are shown, rounded to grey levels
    found: np.ndarray  # bool [N]: the search says that it found an edit
    seconds_per_image: float
    decoded: np.ndarray | None = None  # uint8 [N,H,W,C]: in a latent run, what the autoencoder makes of the scans

    @property
    def originals(self) -> np.ndarray:
        """What the edits are to be compared with, uint8 [N,H,W,C]: what is lost by encoding is no part of an edit."""
        return self.scans.images if self.decoded is None else self.decoded


@written("The explanations", then=CARRY_ON)
def explain_site(
    model: JointModel,
    data: HospitalData,
    config: Config,
    *,
    hospital_index: int,
    device: torch.device,
    folder: Path,
    site: Path | None = None,
    method: str = DEFAULT_METHOD,
    progress: Progress | None = None,
    space: Space = PIXELS,
) -> tuple[dict[str, float], int]:
    """Explain up to `explain` of the hospital's test scans and write its gallery. What was interrupted is carried on.

    Args:
        folder: Where the gallery goes, inside the site's own folder.
        site: A real site's own folder, where its referee is kept; None: `folder`.
        method: One of counterfactual.METHODS.
        progress: Called after every batch with the numbers of scans done and in all.
        space: Where the network works.

    Returns:
        The grades, scalars that may leave the site, and the number of scans behind them.

    Raises:
        RunError: The disk is full, or the like. What is whole stays, and is carried on by the next call.
    """
    scans = choose_scans(data.test, config.run.explain, seed=seed_for(config.run.seed, hospital_index, 0, "explain"))
    found = explain_scans(
        model,
        scans,
        config,
        device=device,
        references=site_references(model, data.test, device=device, space=space),
        method=method,
        folder=folder,
        progress=progress,
        space=space,
    )
    referee = appointed_referee(data, config, device, site=site or folder)
    grades = grade(
        found.originals,
        found.edited,
        found.probs_before,
        found.probs_after,
        found.targets,
        found=found.found,
        masks=scans.masks,
        twins=None if scans.twins is None else space.pictures(space.inputs(scans.twins)),
        labels=scans.labels,
        referee=referee.predict if referee else None,
        predict=lambda images: predict(model, images, device=device, space=space),
        features=FeatureNet(config.model.channels).features,
        seconds_per_image=found.seconds_per_image,
        task=config.model.task,
    )
    grades |= decoding_grades(model, found, device=device, space=space)
    accuracy = referee.accuracy(data.test) if referee else None
    if accuracy is not None:
        grades["referee_accuracy"] = accuracy
    write_gallery(
        folder,
        items=gallery_items(found),
        metrics=grades,
        class_names=data.info.class_names,
        title=f"Explanations of {config.run.hospital_names[hospital_index]}, run {config.run.run_name}",
        real=data.info.real,
        task="multi-label" if config.model.task == "multi-label" else "multi-class",
    )
    clear(folder)
    samples = grade_samples(model, data, config, referee, hospital_index=hospital_index, device=device, space=space)
    return grades | samples, len(scans)


def choose_scans(test: ImageSet, count: int, *, seed: int) -> ImageSet:
    """Return at most `count` scans, drawn without looking at labels or predictions, in the order they were in."""
    drawn = np.random.default_rng(seed).permutation(len(test))[:count]
    return test.select(np.sort(drawn))


def references(
    model: JointModel, scans: ImageSet, *, device: torch.device, space: Space = PIXELS
) -> References:  # fmt: skip
    """Return how sure the model typically is of each decision on these scans, and what it sees of them."""
    inputs = space.inputs(scans.images)
    probs = torch.from_numpy(predict(model, inputs, device=device))
    return References(typical_margins(probs), to_network(inputs, device))


def site_references(
    model: JointModel, test: ImageSet, *, device: torch.device, space: Space = PIXELS
) -> References:  # fmt: skip
    """Return the references of a site: its first MAX_REFERENCES test scans, one forward pass each. Labels: unseen."""
    first = test.select(np.arange(min(len(test), MAX_REFERENCES)))
    return references(model, first, device=device, space=space)


def decoding_grades(
    model: JointModel, found: Explanations, *, device: torch.device, space: Space = PIXELS
) -> dict[str, float]:  # fmt: skip
    """Return what the autoencoder loses, apart from what the edits change; nothing where the network sees pixels."""
    if found.decoded is None:
        return {}
    scans, again = found.scans.images.astype(np.float64), predict(model, found.decoded, device=device, space=space)
    same = same_decisions(found.probs_before, again, model.config.task)
    return {
        "decoded_agreement": float(same.mean()),
        "decoded_l1": float(np.abs(found.decoded - scans).mean() / 255),
        "scan_l1": float(np.abs(found.edited - scans).mean() / 255),
    }


def _digest(scans: torch.Tensor | None) -> str:
    return "" if scans is None else hashlib.sha256(to_uint8(scans).tobytes()).hexdigest()


def explain_scans(
    model: JointModel,
    scans: ImageSet,
    config: Config,
    *,
    device: torch.device,
    targets: np.ndarray | None = None,
    references: References | None = None,
    method: str = DEFAULT_METHOD,
    folder: Path | None = None,
    progress: Progress | None = None,
    space: Space = PIXELS,
) -> Explanations:
    """Search the edit of each scan towards a target.

    Args:
        targets: int64 [N], classes, or labels to turn over; None: the nearest other decision of each.
        references: As `references` returns them; None: a fixed confidence is wanted.
        method: One of counterfactual.METHODS.
        folder: Where the edits of a batch are kept until the gallery is whole; None: nowhere.
        progress: Called after every batch with the numbers of scans done and in all.
        space: Where the network works.
    """
    inputs = space.inputs(scans.images)
    settings = LATENT_SETTINGS if config.model.latent else CounterfactualSettings()
    alpha_bar = SCHEDULES[config.training.schedule](config.training.num_timesteps).to(device)
    before = predict(model, inputs, device=device)
    aims = default_targets(torch.from_numpy(before), task=config.model.task)
    if targets is not None:
        aims = torch.from_numpy(np.asarray(targets, dtype=np.int64))
    goals = "" if references is None else f"{references.margins.tolist()} {_digest(references.scans)}"
    search = f"{method} {settings} {config.training.prediction} {config.training.schedule} {goals}"
    kept = Parts(folder, model.state_dict(), search)
    parts = []
    for start in range(0, len(scans), BATCH_SIZE):
        images, wanted = inputs[start : start + BATCH_SIZE], aims[start : start + BATCH_SIZE]
        part = kept.get(images, wanted.numpy())
        if part is None:
            made = METHODS[method](
                model,
                to_network(images, device),
                wanted.to(device),
                alpha_bar,
                prediction=config.training.prediction,
                settings=settings,
                references=references,
            )
            part = Part(to_uint8(made.images), made.found.cpu().numpy(), made.seconds_per_image * len(images))
            kept.put(images, wanted.numpy(), part)
        parts.append(part)
        if progress is not None:
            progress(min(start + BATCH_SIZE, len(scans)), len(scans))
    shown = space.pictures(np.concatenate([part.edited for part in parts]))
    return Explanations(
        scans=scans,
        edited=shown,
        targets=aims.numpy(),
        probs_before=before,
        probs_after=predict(model, shown, device=device, space=space),
        found=np.concatenate([part.found for part in parts]),
        seconds_per_image=sum(part.seconds for part in parts) / len(scans),
        decoded=None if space is PIXELS else space.pictures(inputs),
    )


def gallery_items(found: Explanations) -> list[GalleryItem]:
    """Return what the gallery shows of each scan.

    The score that orders it is the change of the target's probability, times the share of the picture left alone.
    """
    difference = np.abs(found.edited.astype(np.int64) - found.originals).max(axis=3)
    left_alone = (difference <= 0.05 * 255).mean(axis=(1, 2))
    rows = np.arange(len(found.scans))
    change = np.abs(found.probs_after[rows, found.targets] - found.probs_before[rows, found.targets])
    return [
        GalleryItem(
            scan=found.scans.images[i],
            counterfactual=found.edited[i],
            probs_before=found.probs_before[i],
            probs_after=found.probs_after[i],
            label=int(found.scans.labels[i]) if found.scans.labels.ndim == 1 else None,
            target=int(found.targets[i]),
            found=bool(found.found[i]),
            score=float(change[i] * left_alone[i]),
            decoded=None if found.decoded is None else found.decoded[i],
        )
        for i in rows
    ]
