"""Grades of the generator, given at a hospital against its own scans: a referee's agreement, and KID per class.

In a simulation every label serves, also those that are hidden from training; a real site has its own. The grades are
flat scalars; the server averages them over the hospitals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from jointdiff import fidelity
from jointdiff.config import Config
from jointdiff.data import HospitalData
from jointdiff.model import JointModel
from jointdiff.referee import Referee
from jointdiff.reproducibility import generator_for, seed_for
from jointdiff.showcase import guided_samples
from jointdiff.spaces import PIXELS, Space

PREFIX = "samples."
SAMPLES_PER_CLASS = 48  # drawn by each hospital
MAX_REAL = 400  # real images of a class that KID compares with


def grade_samples(
    model: JointModel,
    data: HospitalData,
    config: Config,
    referee: Referee | None,
    *,
    hospital_index: int,
    device: torch.device,
    per_class: int = SAMPLES_PER_CLASS,
    space: Space = PIXELS,
) -> dict[str, float]:
    """Draw samples guided to each class and grade them.

    Args:
        data: The hospital's images, whatever the network sees of them.
        space: Where the network works.

    Returns:
        Flat scalars under `samples.`: num, referee_agreement (share that the referee gives the wanted class), and for
        each class k: kid.k.{samples,real,noise} against the hospital's own images of that class, with .error
        (standard error). `real` compares the class's images with each other, `noise` with uniform noise. Nothing
        where there is no referee.
    """
    if referee is None:
        return {}
    targets = np.repeat(np.arange(config.model.num_outputs), per_class)
    generator = generator_for(config.run.seed, hospital_index, config.run.num_rounds, "sample grades")
    images = guided_samples(model, config, targets, device=device, generator=generator, space=space)
    probs = referee.predict(images)
    if config.model.task == "multi-label":
        agreed = probs[np.arange(len(probs)), targets] > 0.5
    else:
        agreed = probs.argmax(axis=1) == targets
    grades = {"num": float(len(images)), "referee_agreement": float(agreed.mean())}
    net = fidelity.FeatureNet(config.model.channels)
    rng = np.random.default_rng(seed_for(config.run.seed, hospital_index, 0, "sample grades"))
    for k in range(config.model.num_outputs):
        truth = data.hidden_labels
        shows = truth == k if truth.ndim == 1 else truth[:, k] == 1
        real = rng.permutation(np.flatnonzero(shows))
        half = min(len(real) // 2, MAX_REAL)
        if half < 4 or per_class < 4:
            continue
        others, own = (net.features(data.train.images[i]) for i in (real[:half], real[half : 2 * half]))
        noise = rng.integers(0, 256, (half, *images.shape[1:]), dtype=np.uint8)
        for name, features in (
            ("samples", net.features(images[targets == k])),
            ("real", others),
            ("noise", net.features(noise)),
        ):
            found = fidelity.kid(features, own)
            grades[f"kid.{k}.{name}"] = found.value
            grades[f"kid.{k}.{name}.error"] = found.standard_error
    return {PREFIX + name: value for name, value in grades.items()}


def merge_sample_grades(parts: Iterable[Mapping[str, float]], class_names: Iterable[str]) -> dict[str, Any]:
    """Return the mean over the hospitals that graded, with errors combined as of independent estimates.

    Returns:
        num_samples, referee_agreement, and kid: {class name: {samples | real | noise: [value, error]}};
        empty where nobody graded.
    """
    known = [p for p in parts if PREFIX + "num" in p and PREFIX + "referee_agreement" in p]
    if not known:
        return {}
    counts = np.array([p[PREFIX + "num"] for p in known])
    agreement = np.array([p[PREFIX + "referee_agreement"] for p in known])
    kid: dict[str, dict[str, list[float]]] = {}
    for k, class_name in enumerate(class_names):
        for name in ("samples", "real", "noise"):
            key = f"{PREFIX}kid.{k}.{name}"
            found = [(p[key], p[key + ".error"]) for p in known if key in p and key + ".error" in p]
            if found:
                values, errors = np.array(found).T
                error = float(np.sqrt((errors**2).sum()) / len(errors))
                kid.setdefault(class_name, {})[name] = [float(values.mean()), error]
    return {
        "num_samples": int(counts.sum()),
        "referee_agreement": float((agreement * counts).sum() / counts.sum()),
        "kid": kid,
    }
