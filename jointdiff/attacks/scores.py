"""What a model says about single records, as scores that are higher the better it knows a record.

Images uint8 [N,H,W,C]; scores float64 [N].
"""

from __future__ import annotations

import numpy as np
import torch

from jointdiff import diffusion, losses
from jointdiff.config import Config
from jointdiff.evaluation import extract_features
from jointdiff.model import JointModel, to_network
from jointdiff.reproducibility import generator_for
from jointdiff.schedule import SCHEDULES

NUM_TIMESTEPS = 8
NUM_NOISES = 2  # per timestep
_SHARES = (0.05, 0.75)  # first and last timestep, as shares of all: nearer to 0 and to 1 every image is alike


@torch.no_grad()
def classification_scores(
    model: JointModel, images: np.ndarray, labels: np.ndarray, *, device: torch.device
) -> np.ndarray:
    """Return log p(y) / (1 - p(y)) of the true labels: the classification loss, turned over and stretched.

    For one label per image the loss is log(1 + e^-score), so that ranking by the one is ranking by the other; unlike
    the loss the score is not 0 for every record that an overfitted model is sure of.

    Args:
        labels: int64 [N] classes, or [N,L] of 0 and 1 (mean over the labels); all known.
    """
    logits = model.head(extract_features(model, images, device=device)).double().cpu()
    truth = torch.from_numpy(labels)
    if truth.ndim == 2:
        return (logits * (2 * truth - 1)).mean(dim=1).numpy()
    own = logits.gather(1, truth[:, None])[:, 0]
    others = logits.scatter(1, truth[:, None], -torch.inf)
    return (own - others.logsumexp(dim=1)).numpy()


@torch.no_grad()
def denoising_scores(
    model: JointModel, images: np.ndarray, config: Config, *, device: torch.device, batch_size: int = 256
) -> np.ndarray:
    """Return minus the denoising loss, averaged over a fixed grid of timesteps and noises, the same for every record.

    The loss is that of training: the same prediction, schedule and weighting.
    """
    training = config.training
    alpha_bar = SCHEDULES[training.schedule](training.num_timesteps).to(device)
    first, last = (share * (training.num_timesteps - 1) for share in _SHARES)
    timesteps = np.linspace(first, last, NUM_TIMESTEPS).round().astype(int).tolist()
    generator = generator_for(0, 0, 0, "audit: noises of the denoising loss")
    shape = (NUM_TIMESTEPS, NUM_NOISES, config.model.channels, *images.shape[1:3])
    noises = torch.randn(shape, generator=generator).to(device)
    model.eval()
    total = np.zeros(len(images))
    for start in range(0, len(images), batch_size):
        x = to_network(images[start : start + batch_size], device)
        for step, timestep in enumerate(timesteps):
            t = torch.full((len(x),), timestep, device=device)
            weight = diffusion.min_snr_weight(t, alpha_bar, gamma=training.snr_gamma, prediction=training.prediction)
            for noise in noises[step]:
                eps = noise.expand_as(x)
                goal = diffusion.target(x, eps, t, alpha_bar, prediction=training.prediction)
                output = model.denoise(diffusion.add_noise(x, eps, t, alpha_bar), t)
                loss = losses.denoising_loss(output, goal, weight)
                total[start : start + len(x)] -= loss.double().cpu().numpy()
    return total / (NUM_TIMESTEPS * NUM_NOISES)
