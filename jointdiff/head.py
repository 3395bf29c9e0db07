"""The classifier head, solved for all hospitals together from sums that each of them adds up over its own images.

Ridge regression on standardised features: the sites send sums of features and of their products, never one image's
features alone unless it is their only labelled one; the server adds the sums and solves. The solution is exactly that
of pooled data. Shapes: features [N,D]; outputs K.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch

from jointdiff.config import Config
from jointdiff.data.hospital import HospitalData
from jointdiff.evaluation import extract_features
from jointdiff.head_calibration import Head, calibrated
from jointdiff.head_self_training import confident, mixed
from jointdiff.head_sums import head_sums, standardisation_sums, unpack
from jointdiff.model import JointModel, to_network
from jointdiff.reproducibility import generator_for
from jointdiff.spaces import PIXELS, Space, view_source
from jointdiff.training import head_is_calibrated_after, num_warmup_rounds

MAX_VIEWS = 4096  # views in all per hospital: with many labels fewer of each
NUM_PUBLIC = 512  # phantoms that a private run's head is standardised on
LOGIT_SPREAD = 2.5  # standard deviation of a solved logit over all images


def solve_head(
    sums: Mapping[str, np.ndarray], config: Config, *, ridge: float | None = None
) -> dict[str, torch.Tensor]:
    """Solve the head from merged sums: class-balanced ridge regression on standardised features.

    Args:
        sums: From `head_sums`, added up over the hospitals.
        config: `training.ridge` is the L2 penalty per labelled image, on features of unit variance; > 0.
        ridge: Another penalty than the configuration's.

    Returns:
        The head's tensors: mean, scale [D]; weight [K,D]; bias [K], float32. For a gradient head the standardisation
        alone: mean and scale.
    """
    ridge = config.training.ridge if ridge is None else ridge
    multi_label = config.model.task == "multi-label"
    n = float(sums["count"])
    mean = sums["sum"] / n
    scale = np.sqrt(np.clip(sums["squares"] / n - mean**2, 1e-6, None))
    standardisation = {"head.mean": torch.from_numpy(mean).float(), "head.scale": torch.from_numpy(scale).float()}
    if config.training.head == "gradient":
        return standardisation
    covariance = unpack(sums["products"], len(mean)) / n - np.outer(mean, mean)
    covariance = covariance / np.outer(scale, scale)
    counts, group_sum, group_products = (
        sums["group_count"],
        sums["group_sum"],
        unpack(sums["group_products"], len(mean)),
    )
    present = counts > 0
    weights = np.where(present, 1 / np.clip(counts, 1, None), 0) / max(1, present.sum())
    x_mean = (weights @ group_sum - mean) / scale
    raw = np.einsum("g,gij->ij", weights, group_products)
    first = weights @ group_sum
    second = (raw - np.outer(first, mean) - np.outer(mean, first) + np.outer(mean, mean)) / np.outer(scale, scale)
    gram = second - np.outer(x_mean, x_mean)
    if multi_label:
        total = max(1.0, float(counts[0]))
        y_mean = sums["target_sum"] / total
        cross = (sums["target_products"] / total - np.outer(mean, y_mean)) / scale[:, None] - np.outer(x_mean, y_mean)
    else:
        y_mean = np.where(present, 1 / max(1, present.sum()), 0)
        class_means = np.where(present[:, None], group_sum / np.clip(counts, 1, None)[:, None] - mean, 0) / scale
        cross = class_means.T * y_mean - np.outer(x_mean, y_mean)
    weight = np.linalg.solve(gram + ridge * np.eye(len(gram)), cross)
    bias = y_mean - x_mean @ weight
    if not multi_label:
        # The views give the direction; the images as they are give the thresholds, halfway between the class means.
        clean_means = (
            np.where(present[:, None], sums["clean_sum"] / np.clip(counts, 1, None)[:, None] - mean, 0) / scale
        )
        bias = y_mean - (np.where(present, 1 / max(1, present.sum()), 0) @ clean_means) @ weight
        # Softmax ignores what all logits share.
        weight, bias = weight - weight.mean(axis=1, keepdims=True), bias - bias.mean()
        spread = np.sqrt(np.einsum("dk,de,ek->", weight, covariance, weight) / max(1, weight.shape[1] - 1))
        factor = LOGIT_SPREAD / max(float(spread), 1e-12) / np.sqrt(2)
        weight, bias = weight * factor, bias * factor
    else:
        spread = np.sqrt(np.clip(np.einsum("dk,de,ek->k", weight, covariance, weight), 1e-24, None))
        weight, bias = weight / spread * LOGIT_SPREAD, (bias - 0.5) / spread * LOGIT_SPREAD
    return {
        **standardisation,
        "head.linear.weight": torch.from_numpy(weight.T.copy()).float(),
        "head.linear.bias": torch.from_numpy(bias).float(),
    }


def solved_heads(
    gather: Callable[[bool], Mapping[str, np.ndarray]], round_number: int, config: Config, *, learned: Head
) -> Iterator[dict[str, torch.Tensor]]:
    """Give the head that the labels alone solve, then, where it trains itself, each of its successors.

    There are no successors during the denoising warm-up, whose features are to change, and none in a multi-label task.
    At the end of a run whose learned head is calibrated, that head comes last.

    Args:
        gather: Returns the sums of all hospitals; told whether over pseudo-labelled images, which it must take from the
            head that was given last.
        round_number: After which the head is solved; 0 = before the first.
        learned: The head's tensors until now.
    """
    labelled, training = gather(False), config.training
    solved = solve_head(labelled, config)
    yield solved
    for _ in range(num_self_training(round_number, config)):
        solved = solve_head(
            mixed(labelled, gather(True), training.head_labelled_share), config, ridge=training.head_pseudo_ridge
        )
        yield solved
    if head_is_calibrated_after(round_number, config):
        yield calibrated(learned, solved, labelled)


def num_self_training(round_number: int, config: Config) -> int:
    """Return how often the head is solved again, on what it is sure of, after a round."""
    if config.model.task == "multi-label" or round_number < num_warmup_rounds(config):
        return 0
    return config.training.head_self_training


def public_head(
    model: JointModel, config: Config, device: torch.device, *, space: Space = PIXELS
) -> dict[str, torch.Tensor]:
    """Standardise a gradient head over phantoms: for runs in which no site's sums may travel."""
    inputs = space.inputs(public_images(config))
    sums = standardisation_sums(extract_features(model, inputs, device=device).cpu().numpy())
    return solve_head(sums, config)


def public_images(config: Config) -> np.ndarray:
    """Return phantoms of a run's size and channels, uint8 [N,H,W,C]: they are of nobody."""
    from jointdiff.data.registry import load_dataset

    name = "phantom:rgb" if config.model.channels == 3 else "phantom"
    return load_dataset(name, image_size=config.model.image_size).train.images[:NUM_PUBLIC]


def head_statistics(
    model: JointModel,
    data: HospitalData,
    config: Config,
    device: torch.device,
    pseudo: bool = False,
    features: torch.Tensor | None = None,
) -> dict[str, np.ndarray]:
    """Return one hospital's sums over the features of its training images, and of strong views of the labelled ones.

    The views are the same in every round (seeded by the labelled images' number and the run's seed).

    Args:
        pseudo: Sum over the images that the model's own head is sure of instead, with its decisions for labels.
        features: The model's features of the training images [N,D], where they are known already.
    """
    train, views = data.train, config.training.head_views
    found = extract_features(model, train.images, device=device) if features is None else features.to(device)
    values = found.cpu().numpy()
    if config.training.head == "gradient":
        return standardisation_sums(values)
    if pseudo:
        with torch.no_grad():
            probs = model.probabilities(model.head(found))
        rows, labels = confident(probs, torch.as_tensor(train.labels, device=device), config)
        return head_sums(values, values[rows], labels, config.model.num_outputs)
    rows = np.flatnonzero(train.labelled)
    if not views or not len(rows):
        return head_sums(values, values[rows], train.labels[rows], config.model.num_outputs)
    generator = generator_for(config.run.seed, len(rows), 0, "head views", device)
    source = view_source(data, latent=config.model.latent)
    seen = np.repeat(rows, max(1, min(views, MAX_VIEWS // len(rows))))
    parts = []
    with torch.no_grad():
        for start in range(0, len(seen), 256):
            x = to_network(source.images[seen[start : start + 256]], device)
            parts.append(model.features(source.views.strong(x, generator)).cpu().numpy())
    labels = train.labels[seen]
    return head_sums(values, np.concatenate(parts), labels, config.model.num_outputs, clean=values[seen])
