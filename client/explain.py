"""A hospital explains decisions of the final model to itself: edits, grades, a gallery. Grades alone may leave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from jointdiff.config import Config
from jointdiff.counterfactual import Counterfactuals, default_targets, explain
from jointdiff.data import HospitalData, ImageSet
from jointdiff.evaluation import predict
from jointdiff.model import JointModel, to_network, to_uint8
from jointdiff.reproducibility import seed_for
from jointdiff.schedule import SCHEDULES
from jointdiff.views.gallery import GalleryItem, write_gallery

BATCH_SIZE = 64  # scans edited at a time


def explain_site(
    model: JointModel, data: HospitalData, config: Config, *, hospital_index: int, device: torch.device, folder: Path
) -> tuple[dict[str, float], int]:
    """Explain up to `explain` of the hospital's test scans and write its gallery.

    Args:
        folder: Where the gallery goes, inside the site's own folder.

    Returns:
        The grades, scalars that may leave the site, and the number of scans behind them.
    """
    scans = choose_scans(data.test, config.run.explain, seed=seed_for(config.run.seed, hospital_index, 0, "explain"))
    targets, found = explain_scans(model, scans, config, device=device)
    grades = grade(scans, found)
    write_gallery(
        folder,
        items=gallery_items(scans, targets, found),
        metrics=grades,
        class_names=data.info.class_names,
        title=f"Explanations of hospital-{hospital_index + 1}, run {config.run.run_name}",
        real=data.info.real,
    )
    return grades, len(scans)


def choose_scans(test: ImageSet, count: int, *, seed: int) -> ImageSet:
    """Return at most `count` scans, drawn without looking at labels or predictions, in the order they were in."""
    drawn = np.random.default_rng(seed).permutation(len(test))[:count]
    return test.select(np.sort(drawn))


def explain_scans(
    model: JointModel, scans: ImageSet, config: Config, *, device: torch.device
) -> tuple[np.ndarray, Counterfactuals]:
    """Search the edit of each scan towards its nearest other decision: targets [N], and the edits on the CPU."""
    alpha_bar = SCHEDULES[config.training.schedule](config.training.num_timesteps).to(device)
    probs = torch.from_numpy(predict(model, scans.images, device=device)).to(device)
    targets = default_targets(probs, task=config.model.task)
    parts = []
    for start in range(0, len(scans), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        images = to_network(scans.images[part], device)
        parts.append(explain(model, images, targets[part], alpha_bar, prediction=config.training.prediction))
    return targets.cpu().numpy(), _joined(parts)


def grade(scans: ImageSet, found: Counterfactuals) -> dict[str, float]:
    """Return the grades of the edits; keys as in views.labels."""
    edits = (found.images - to_network(scans.images)).abs().mean(dim=1)  # [N,H,W], range 0..2
    return {
        "num_explained": float(len(scans)),
        "flip_rate": float(found.found.float().mean()),
        "pixels_changed": float((edits > 0.1).float().mean()),
        "seconds_per_image": found.seconds_per_image,
    }


def gallery_items(scans: ImageSet, targets: np.ndarray, found: Counterfactuals) -> list[GalleryItem]:
    """Return what the gallery shows of each scan."""
    edited = to_uint8(found.images)
    sizes = (found.images - to_network(scans.images)).abs().mean(dim=(1, 2, 3))
    return [
        GalleryItem(
            scan=scans.images[i],
            counterfactual=edited[i],
            probs_before=found.probs_before[i].numpy(),
            probs_after=found.probs_after[i].numpy(),
            label=int(scans.labels[i]) if scans.labels.ndim == 1 else None,
            target=int(targets[i]),
            found=bool(found.found[i]),
            score=1 - float(sizes[i]),
        )
        for i in range(len(scans))
    ]


def _joined(parts: list[Counterfactuals]) -> Counterfactuals:
    counts = [len(part.images) for part in parts]
    seconds = sum(part.seconds_per_image * count for part, count in zip(parts, counts, strict=True))
    return Counterfactuals(
        images=torch.cat([part.images for part in parts]).cpu(),
        probs_before=torch.cat([part.probs_before for part in parts]).cpu(),
        probs_after=torch.cat([part.probs_after for part in parts]).cpu(),
        found=torch.cat([part.found for part in parts]).cpu(),
        seconds_per_image=seconds / max(1, sum(counts)),
    )
