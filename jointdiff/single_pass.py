"""Searches for a counterfactual in one pass of denoising: the authors' recipe, and three kinds of guidance.

Each takes an EditTask and returns the edited images [N,C,H,W], whether they convince or not.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from jointdiff.edit_task import EditTask
from jointdiff.sampling import guide_through_denoiser, guided_representations, invert_ddim, sample_ddim, sample_ddpm


def authors(task: EditTask) -> torch.Tensor:
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


def _guided(task: EditTask, start: torch.Tensor, timesteps: list[int]) -> torch.Tensor:
    return sample_ddim(task.guided(l1=task.settings.l1, mirrored=True), start, timesteps, task.alpha_bar)


def tweedie(task: EditTask) -> torch.Tensor:
    """Edit in one pass from random noise, guided at the estimate of x_0 (`guide_to_margin`)."""
    timesteps = task.timesteps(task.settings.depth, task.settings.num_steps)
    return _guided(task, task.noised(timesteps[0]), timesteps)


def inversion(task: EditTask) -> torch.Tensor:
    """Edit in one pass from the scan's own DDIM inversion, which keeps the anatomy, guided as `tweedie`."""
    timesteps = task.timesteps(task.settings.depth, task.settings.num_steps)
    return _guided(task, invert_ddim(task.denoise, task.images, timesteps, task.alpha_bar), timesteps)


def representations(task: EditTask) -> torch.Tensor:
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
