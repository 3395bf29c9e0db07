"""The forward process and the algebra between what a network predicts, x_0 and eps.

Shapes: x, eps, v [B,C,H,W]; t [B] int64; alpha_bar [T]. With a = alpha_bar_t:
x_t = sqrt(a) x_0 + sqrt(1-a) eps,  v = sqrt(a) eps - sqrt(1-a) x_0 (Salimans and Ho 2022).
"""

from __future__ import annotations

import torch

from jointdiff.schedule import alpha_bar_at

PREDICTIONS = ("eps", "v")


def add_noise(x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """Draw x_t ~ q(x_t | x_0) with the given noise."""
    a = alpha_bar_at(alpha_bar, t)
    return a.sqrt() * x0 + (1 - a).sqrt() * eps


def target(
    x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor, alpha_bar: torch.Tensor, *, prediction: str
) -> torch.Tensor:
    """Return what the network should predict: eps or v."""
    if prediction == "eps":
        return eps
    a = alpha_bar_at(alpha_bar, t)
    return a.sqrt() * eps - (1 - a).sqrt() * x0


def to_x0(
    output: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor, alpha_bar: torch.Tensor, *, prediction: str
) -> torch.Tensor:
    """Return the estimate of x_0 (Tweedie) that the network's output implies."""
    a = alpha_bar_at(alpha_bar, t)
    if prediction == "eps":
        return (x_t - (1 - a).sqrt() * output) / a.sqrt()
    return a.sqrt() * x_t - (1 - a).sqrt() * output


def to_eps(x0: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """Return the noise that leads from x_0 to x_t."""
    a = alpha_bar_at(alpha_bar, t)
    return (x_t - a.sqrt() * x0) / (1 - a).sqrt()


def min_snr_weight(t: torch.Tensor, alpha_bar: torch.Tensor, *, gamma: float, prediction: str) -> torch.Tensor:
    """Return the min-SNR weight of each record's squared error (Hang et al. 2023).

    Args:
        t: Timesteps [B].
        gamma: Cap of the signal-to-noise ratio; 0 disables (weight 1).
        prediction: eps or v: what the squared error is measured on.

    Returns:
        Weights [B], >= 0.
    """
    if gamma == 0:
        return torch.ones_like(t, dtype=alpha_bar.dtype)
    a = alpha_bar[t]
    snr = a / (1 - a)
    return snr.clamp(max=gamma) / (snr if prediction == "eps" else snr + 1)
