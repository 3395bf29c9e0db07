"""What a hospital does in a run, by what the run trains: the joint model, or the autoencoder.

Client, server and the run without a federation ask here, so that neither has code of its own for either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from jointdiff import head, head_sums
from jointdiff.autoencoder import Autoencoder
from jointdiff.autoencoder_config import LATENT_CHANNELS
from jointdiff.autoencoder_training import train_autoencoder_round
from jointdiff.config import Config, trains_autoencoder
from jointdiff.data.base import ImageSet
from jointdiff.data.hospital import HospitalData
from jointdiff.errors import RunError
from jointdiff.evaluation import extract_features, predict
from jointdiff.latent_scale import LatentScale, latent_sums
from jointdiff.model import JointModel, to_network
from jointdiff.networks import Network
from jointdiff.reconstruction import ReconstructionStatistics, why_collapsed
from jointdiff.score_histogram import NUM_BINS
from jointdiff.spaces import PIXELS, Space
from jointdiff.statistics import ClassificationStatistics
from jointdiff.training import State, head_is_solved_after, train_round

Statistics = ClassificationStatistics | ReconstructionStatistics
Solved = dict[str, torch.Tensor]
_BATCH = 64  # images in one pass of an autoencoder without gradients


def train(
    model: Network,
    data: HospitalData,
    config: Config,
    *,
    round_number: int,
    hospital_index: int,
    device: torch.device,
    state: State | None,
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Train in place for one round: `train_round` or `train_autoencoder_round`."""
    work = train_autoencoder_round if isinstance(model, Autoencoder) else train_round
    return work(
        model,  # type: ignore[arg-type]
        data,
        config,
        round_number=round_number,
        hospital_index=hospital_index,
        device=device,
        state=state,
    )


def statistics_of(
    model: Network, images: ImageSet, config: Config, device: torch.device, *, num_bins: int = NUM_BINS
) -> Statistics:  # fmt: skip
    """Return how a model does on images, ready to be merged or finished.

    Args:
        num_bins: Of the score histograms of a classifier.
    """
    if isinstance(model, JointModel):
        probs = predict(model, images.images, device=device)
        return ClassificationStatistics.from_predictions(
            probs, images.labels, task=config.model.task, num_bins=num_bins
        )
    parts = []
    for x, mean in _encoded(model, images.images, device):
        with torch.no_grad():
            parts.append(_measured(x, model.decode(mean), mean))
    first, *others = parts or [_measured(*(torch.zeros(0, 4, 1, 1) for _ in range(3)))]
    return first.merge(others)


def merged(parts: Sequence[Statistics]) -> Statistics:
    """Return the statistics of all images together; the parts, one or more, are of one kind."""
    first, *others = parts
    return first.merge(others)  # type: ignore[arg-type]


def _measured(x: torch.Tensor, reconstruction: torch.Tensor, mean: torch.Tensor) -> ReconstructionStatistics:
    try:
        return ReconstructionStatistics.from_images(x, reconstruction, mean)
    except ValueError as error:
        raise RunError(f"The autoencoder cannot be evaluated: {error}. Take a smaller learning rate.") from None


def _encoded(model: Autoencoder, images: np.ndarray, device: torch.device) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield images [B,C,H,W] and the mean of their latents, in batches."""
    model.eval()
    for start in range(0, len(images), _BATCH):
        x = to_network(images[start : start + _BATCH], device)
        with torch.no_grad():
            yield x, model.encode(x)[0]


def sums_are_merged_after(round_number: int, config: Config) -> bool:
    """Tell whether the server asks for sums over the training images after a round (0 = before the first).

    For the joint model they solve the head; for the autoencoder they give the scale of its latents, after the last.
    """
    return round_number == config.run.num_rounds if trains_autoencoder(config) else head_is_solved_after(
        round_number, config
    )  # fmt: skip


def sums_of(
    model: Network,
    data: HospitalData,
    config: Config,
    device: torch.device,
    pseudo: bool = False,
    features: torch.Tensor | None = None,
) -> dict[str, np.ndarray]:
    """Return one hospital's sums over its training images; two hospitals' add up to those of their pooled images.

    Args:
        pseudo: As `head_statistics`, like `features`; an autoencoder has neither.
    """
    if isinstance(model, JointModel):
        return head.head_statistics(model, data, config, device, pseudo=pseudo, features=features)
    return _sums_over(model, data.train.images, device)


def gatherer(
    model: Network, data: HospitalData, config: Config, device: torch.device
) -> Callable[[bool], dict[str, np.ndarray]]:
    """Return what gathers the sums of one place again and again; only the model's head may change in between."""
    features = extract_features(model, data.train.images, device=device) if isinstance(model, JointModel) else None
    return partial(sums_of, model, data, config, device, features=features)


def _sums_over(model: Autoencoder, images: np.ndarray, device: torch.device) -> dict[str, np.ndarray]:
    parts = [latent_sums(mean) for _, mean in _encoded(model, images, device)]
    return head_sums.add_sums(parts or [latent_sums(torch.zeros(0, LATENT_CHANNELS, 1, 1))])


def no_sums(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return the sums over no image: they give names, shapes and types of what hospitals send.

    Args:
        shapes: Of the network's tensors.
    """
    if trains_autoencoder(config):
        return latent_sums(torch.zeros(0, LATENT_CHANNELS, 1, 1))
    return head_sums.no_head_sums(config, num_features=shapes["head.mean"][0])


def solved(
    gather: Callable[[bool], Mapping[str, np.ndarray]],
    round_number: int,
    config: Config,
    weights: Mapping[str, np.ndarray],
) -> Iterator[Solved]:
    """Give what follows from the merged sums: the head's tensors, once or several times, or the latents' scale.

    Args:
        gather: As in `head.solved_heads`.
        weights: The network's, that the sums are taken with.

    Raises:
        RunError: No scale follows from them.
    """
    if trains_autoencoder(config):
        yield _scale(gather(False))
    else:
        learned = {name: torch.from_numpy(array) for name, array in weights.items() if name.startswith("head.")}
        yield from head.solved_heads(gather, round_number, config, learned=learned)


def solved_in_public(model: Network, config: Config, device: torch.device, *, space: Space = PIXELS) -> Solved:
    """Return the same from phantoms: for private runs, in which no site's sums may travel.

    Args:
        space: Where a joint model works.
    """
    if isinstance(model, JointModel):
        return head.public_head(model, config, device, space=space)
    return _scale(_sums_over(model, head.public_images(config), device))


def _scale(sums: Mapping[str, np.ndarray]) -> Solved:
    try:
        scale = LatentScale.from_sums(sums)
    except ValueError as error:
        raise RunError(str(error)) from None
    return {"latent_mean": torch.tensor(scale.mean), "latent_std": torch.tensor(scale.std)}


def check_outcome(config: Config, pooled: Mapping[str, object]) -> None:
    """Let a run fail whose last round left an autoencoder that nothing may be built upon.

    Args:
        pooled: The metrics of the last round; {} where every hospital withholds them.

    Raises:
        RunError: It has collapsed; says by which limit, and what to do.
    """
    if trains_autoencoder(config) and pooled.get("psnr") is not None and (why := why_collapsed(pooled)):
        rounds = "autoencoder-rounds" if config.phase else "num-rounds"
        raise RunError(
            f"The autoencoder has collapsed, or was hardly trained: {why}. Nothing can be built upon its latents. Take "
            f"more {rounds} or local-steps, a larger learning-rate, or a smaller kl-weight in the training preset, "
            "and look for scans that are blank."
        )
