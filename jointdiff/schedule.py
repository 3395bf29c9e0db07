"""Noise schedules: alpha_bar [T], the share of signal variance left at each timestep 0..T-1.

x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.
"""

from __future__ import annotations

import math

import torch


def linear_alpha_bar(num_timesteps: int = 1000) -> torch.Tensor:
    """Return the linear-beta schedule of DDPM (Ho et al. 2020), scaled to any number of timesteps.

    Args:
        num_timesteps: T >= 2.

    Returns:
        alpha_bar, float32 [T], strictly falling.

    >>> bool((linear_alpha_bar(1000).diff() < 0).all())
    True
    """
    scale = 1000 / num_timesteps
    betas = torch.linspace(1e-4 * scale, min(0.02 * scale, 0.999), num_timesteps, dtype=torch.float64)
    return torch.cumprod(1 - betas, dim=0).float()


def cosine_alpha_bar(num_timesteps: int = 1000, *, offset: float = 0.008) -> torch.Tensor:
    """Return the cosine schedule of Improved DDPM (Nichol and Dhariwal 2021), better for small images.

    Args:
        num_timesteps: T >= 2.
        offset: Keeps the first betas from vanishing.

    Returns:
        alpha_bar, float32 [T], strictly falling.
    """

    def signal(u: torch.Tensor) -> torch.Tensor:
        return torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2

    u = torch.linspace(0, 1, num_timesteps + 1, dtype=torch.float64)
    betas = (1 - signal(u[1:]) / signal(u[:-1])).clamp(max=0.999)
    return torch.cumprod(1 - betas, dim=0).float()


SCHEDULES = {"linear": linear_alpha_bar, "cosine": cosine_alpha_bar}


def alpha_bar_at(alpha_bar: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return alpha_bar of each record, shaped [B,1,1,1] to multiply images."""
    return alpha_bar[t].view(-1, 1, 1, 1)
