"""Samples that the model is asked for by class, through its own classifier: the generator's panel and its grades."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jointdiff.config import Config
from jointdiff.counterfactual import wanted_log_prob
from jointdiff.dpm_solver import log_snr_timesteps, sample_dpm_solver
from jointdiff.model import JointModel, model_with, to_uint8
from jointdiff.reproducibility import SERVER, generator_for
from jointdiff.sampling import Denoiser, denoiser, guide_input, sample_ddim, sample_ddpm, spaced_timesteps
from jointdiff.schedule import SCHEDULES
from jointdiff.spaces import PIXELS, Space
from jointdiff.views.images import enlarge, grid, write_png

SAMPLES_PER_CLASS = 8
PANEL_SCALE = 4  # screen pixels per pixel
SAMPLERS = ("ddim", "dpm-solver", "ddpm")
SAMPLER = "ddim"
NUM_STEPS = 40  # evaluations of the network
GUIDANCE = 4.0


@torch.no_grad()
def guided_samples(
    model: JointModel,
    config: Config,
    targets: np.ndarray,
    *,
    device: torch.device,
    generator: torch.Generator,
    num_steps: int = NUM_STEPS,
    scale: float = GUIDANCE,
    batch_size: int = 64,
    sampler: str = SAMPLER,
    space: Space = PIXELS,
) -> np.ndarray:
    """Draw one image per wanted class, guided on the input by the model's own classifier.

    Args:
        targets: Wanted classes (multi-label: the finding to show), int64 [N].
        generator: Draws the noise, on any device.
        num_steps: At most so many evaluations of the network for each image.
        scale: Of the guidance; 0 gives unconditional samples.
        sampler: ddim | dpm-solver, on timesteps of their own, both fixed by the first noise | ddpm, which draws more.
        space: Where the network works; PIXELS gives a latent network's own output.

    Returns:
        uint8 [N,H,W,C].

    Raises:
        ValueError: There is no such sampler.
    """
    model.eval()
    training, size = config.training, config.model.input_size
    alpha_bar = SCHEDULES[training.schedule](training.num_timesteps).to(device)
    plain = denoiser(model, alpha_bar, prediction=training.prediction)
    parts = []
    for start in range(0, len(targets), batch_size):
        wanted = torch.as_tensor(targets[start : start + batch_size], device=device)
        shape = (len(wanted), config.model.input_channels, size, size)
        noise = torch.randn(shape, generator=generator, device=generator.device).to(device)
        log_prob = wanted_log_prob(model, wanted, torch.ones(len(wanted), device=device))
        guided = guide_input(plain, log_prob, alpha_bar, scale=scale) if scale else plain
        parts.append(to_uint8(_sample(sampler, guided, noise, alpha_bar, num_steps, generator)))
    return space.pictures(np.concatenate(parts))


def _sample(
    sampler: str, denoise: Denoiser, x: torch.Tensor, alpha_bar: torch.Tensor, num_steps: int,
    generator: torch.Generator,
) -> torch.Tensor:  # fmt: skip
    """Return images [B,C,H,W] from noise, over the timesteps that suit the sampler."""
    if sampler == "dpm-solver":
        return sample_dpm_solver(denoise, x, log_snr_timesteps(num_steps, alpha_bar), alpha_bar)
    if sampler not in SAMPLERS:
        raise ValueError(f"There is no sampler '{sampler}': take one of {', '.join(SAMPLERS)}.")
    walk = sample_ddim if sampler == "ddim" else partial(sample_ddpm, generator=generator)
    return walk(denoise, x, spaced_timesteps(num_steps, len(alpha_bar) - 1), alpha_bar)


def make_samples(
    tensors: Mapping[str, np.ndarray], config: Config, folder: Path, *, device: torch.device, space: Space = PIXELS
) -> dict[str, Any]:
    """Draw the panel of a run's generator, one row per class, into samples.png of the run's folder.

    Args:
        tensors: The model's state_dict.

    Returns:
        Fields of the event `sampled`: path (relative to `folder`), per_class, metrics.
    """
    targets = np.repeat(np.arange(config.model.num_outputs), SAMPLES_PER_CLASS)
    generator = generator_for(config.run.seed, SERVER, config.run.num_rounds, "samples")
    images = guided_samples(
        model_with(config.model, tensors, device), config, targets, device=device, generator=generator, space=space
    )
    path = write_png(
        folder / "samples.png", grid([enlarge(image, PANEL_SCALE) for image in images], columns=SAMPLES_PER_CLASS)
    )
    return {"path": path.name, "per_class": SAMPLES_PER_CLASS, "metrics": {}}
