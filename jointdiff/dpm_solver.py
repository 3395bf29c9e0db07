"""DPM-Solver++(2M) (Lu et al. 2022): the probability-flow ODE in the log-SNR, second order at one evaluation a step.

Shapes as in sampling.py: x [B,C,H,W]; alpha_bar [T]; a denoiser returns the estimate of x_0, whatever the network
predicts, and guidance wraps it as it does for DDIM. lambda_t = log(sqrt(a_t) / sqrt(1 - a_t)) is half the log-SNR.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from jointdiff.sampling import Callback, Denoiser

LOWEST = -5.1  # half log-SNR that sampling starts from, as in the paper: below it x_t is noise, to a share of 0.6%


def half_log_snr(alpha_bar: torch.Tensor) -> torch.Tensor:
    """Return lambda_t = log(sqrt(a) / sqrt(1 - a)) of every timestep, float64 [T], falling with t."""
    a = alpha_bar.double()
    return 0.5 * (a.log() - torch.log1p(-a))


def log_snr_timesteps(num_steps: int, alpha_bar: torch.Tensor, *, lowest: float = LOWEST) -> list[int]:
    """Return at most `num_steps` timesteps, falling to 0, evenly spaced in the log-SNR.

    Args:
        num_steps: >= 1; fewer come back where two fall on one timestep.
        lowest: Half log-SNR to start from; a schedule that ends above it starts at its last timestep.

    >>> from jointdiff.schedule import cosine_alpha_bar
    >>> log_snr_timesteps(5, cosine_alpha_bar(1000))
    [995, 950, 504, 44, 0]
    """
    rising = half_log_snr(alpha_bar).cpu().flip(0)
    first = max(float(rising[0]), lowest)
    wanted = torch.linspace(first, float(rising[-1]), num_steps, dtype=torch.float64)
    above = torch.searchsorted(rising, wanted).clamp(1, len(rising) - 1)
    nearest = torch.where(wanted - rising[above - 1] < rising[above] - wanted, above - 1, above)
    return sorted({len(rising) - 1 - int(i) for i in nearest}, reverse=True)


def sample_dpm_solver(
    denoise: Denoiser,
    x: torch.Tensor,
    timesteps: Sequence[int],
    alpha_bar: torch.Tensor,
    *,
    callback: Callback | None = None,
) -> torch.Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): multistep, deterministic, one evaluation for each timestep.

    x <- (sigma' / sigma) x - alpha' (e^-h - 1) D, with h = lambda' - lambda, D = x_0 + h / (2 h_before) (x_0 - x_0
    before); D = x_0 in the first step. The last timestep's x_0 is the result, as in DDIM, which is the same with
    D = x_0 throughout.

    Args:
        x: x_t at timesteps[0].
        timesteps: Falling.

    Returns:
        x_0 [B,C,H,W].
    """
    lambdas = half_log_snr(alpha_bar).tolist()
    before: tuple[torch.Tensor, float] | None = None  # x_0 and the length of the step that led away from it
    for i, t in enumerate(timesteps):
        x0 = denoise(x, torch.full((len(x),), t, device=x.device, dtype=torch.int64))
        if i + 1 == len(timesteps):
            x = x0
        else:
            t_next = timesteps[i + 1]
            h = lambdas[t_next] - lambdas[t]
            mixed = x0 if before is None else x0 + h / (2 * before[1]) * (x0 - before[0])
            a, a_next = float(alpha_bar[t]), float(alpha_bar[t_next])
            x = math.sqrt((1 - a_next) / (1 - a)) * x - math.sqrt(a_next) * math.expm1(-h) * mixed
            before = (x0, h)
        if callback is not None:
            callback(i, x)
    return x
