"""Samplers, one function each, all with the same first arguments: (denoise, x, timesteps, alpha_bar).

`denoise(x_t, t)` returns the estimate of x_0 (`denoiser` makes one of a model); guidance wraps a denoiser and returns
another. `timesteps` is a falling list of ints; x is [B,C,H,W]; alpha_bar is [T]. `callback(i, x)` is called after
every step and is the only hook.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch

from jointdiff.diffusion import to_eps, to_x0
from jointdiff.model import JointModel, pool

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LogProb = Callable[[torch.Tensor], torch.Tensor]
Callback = Callable[[int, torch.Tensor], None]


def spaced_timesteps(num_steps: int, start: int) -> list[int]:
    """Return at most `num_steps` timesteps from `start` down to 0, evenly spaced.

    >>> spaced_timesteps(4, 999)
    [999, 666, 333, 0]
    """
    if num_steps == 1:
        return [start]
    return sorted({round(start * i / (num_steps - 1)) for i in range(num_steps)}, reverse=True)


def denoiser(model: JointModel, alpha_bar: torch.Tensor, *, prediction: str) -> Denoiser:
    """Return the model's estimate of x_0, clamped to the range of images."""

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return to_x0(model.denoise(x, t), x, t, alpha_bar, prediction=prediction).clamp(-1, 1)

    return denoise


def guide_input(
    denoise: Denoiser, log_prob: LogProb, alpha_bar: torch.Tensor, *, scale: float | torch.Tensor
) -> Denoiser:
    """Guide on the input: move the estimate of x_0 up the gradient of log p(wanted | x_0).

    Classifier guidance (Dhariwal and Nichol 2021) adds (1-a)/sqrt(a) * grad_{x_t} log p to the estimate of x_0. Here
    the gradient is taken at the estimate itself, where the classifier was trained, and not through the denoiser
    (as in FastDiME, Weng et al. 2024): x_0 <- x_0 + scale * sqrt(1-a) * grad_{x_0} log p(x_0).

    Args:
        log_prob: Maps x_0 [B,C,H,W] to the objective of each record [B].
        scale: >= 0, for all or for each record [B]; 0 disables.
    """

    def guided(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x0 = denoise(x, t)
        with torch.enable_grad():
            leaf = x0.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(log_prob(leaf).sum(), leaf)
        strength = torch.as_tensor(scale, device=x.device, dtype=x.dtype).view(-1, 1, 1, 1)
        noise = (1 - alpha_bar[t]).sqrt().view(-1, 1, 1, 1)
        return (x0 + strength * noise * gradient).clamp(-1, 1)

    return guided


def guide_to_margin(
    denoise: Denoiser,
    margin: LogProb,
    wanted: torch.Tensor,
    *,
    max_step: float,
    originals: torch.Tensor,
    l1: float = 0.0,
    region: torch.Tensor | None = None,
    distance: LogProb | None = None,
    distance_share: float = 0.0,
) -> Denoiser:
    """Guide on the input, just far enough: the estimate of x_0 takes a Newton step towards the wanted margin.

    x_0 <- x_0 + (wanted - m) / |grad m|^2 * grad m, nothing where m >= wanted: the step of DeepFool (Moosavi-Dezfooli
    et al. 2016), taken at every denoising step, so that no scale has to be searched and guidance stops by itself.
    With a distance d >= 0 the estimate first takes back a share of it, x_0 <- x_0 - share * d / |grad d|^2 * grad d
    (the step of Polyak 1969 towards d = 0), and the step above makes up for what that costs the margin.

    Args:
        margin: Maps x_0 [B,C,H,W] to log p / (1 - p) of what is wanted: [B].
        wanted: Margin to reach: [B].
        max_step: Largest root mean square of one step, in the units of images.
        l1: Soft threshold of the edit x_0 - originals after each step, in the units of images: the proximal step of an
            L1 term; 0 disables.
        originals: [B,C,H,W].
        region: Soft mask in [0,1], [B,1,H,W]: the estimate differs from the originals inside it alone (as in RePaint,
            Lugmayr et al. 2022). None: the whole image.
        distance: Maps x_0 [B,C,H,W] to its distance from the originals, such as between features: [B].
        distance_share: 0 to 1.
    """

    def guided(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x0 = denoise(x, t)
        if region is not None:
            x0 = originals + region * (x0 - originals)
        with torch.enable_grad():
            leaf = x0.detach().requires_grad_(True)
            value = margin(leaf)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        if region is not None:
            gradient = region * gradient
        missing = wanted - value.detach()
        if distance is not None:
            back = _way_back(distance, x0, share=distance_share, max_step=max_step, region=region)
            missing = missing - (gradient * back).flatten(1).sum(dim=1)
            x0 = x0 + back
        x0 = x0 + _towards(gradient, missing, max_step)
        if l1:
            edit = x0 - originals
            x0 = originals + edit.sign() * (edit.abs() - l1).clamp(min=0)
        return x0.clamp(-1, 1)

    return guided


def _towards(gradient: torch.Tensor, change: torch.Tensor, max_step: float) -> torch.Tensor:
    """Return the least step that changes a linear function by `change` [B], where that is > 0; max_step at most."""
    squared = gradient.flatten(1).square()
    length = change.clamp(min=0) / squared.sum(dim=1).clamp(min=1e-12)
    longest = max_step / squared.mean(dim=1).sqrt().clamp(min=1e-12)
    return length.minimum(longest).view(-1, 1, 1, 1) * gradient


def _way_back(
    distance: LogProb, x0: torch.Tensor, *, share: float, max_step: float, region: torch.Tensor | None
) -> torch.Tensor:
    """Return the step that takes back a share of the distance, inside the region."""
    with torch.enable_grad():
        leaf = x0.detach().requires_grad_(True)
        value = distance(leaf)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    gradient = -gradient if region is None else -region * gradient
    return _towards(gradient, share * value.detach(), max_step)


def guide_through_denoiser(
    model: JointModel, alpha_bar: torch.Tensor, log_prob: Callable[[torch.Tensor], torch.Tensor], *, scale: float,
    prediction: str,
) -> Denoiser:  # fmt: skip
    """Guide on the input, through the denoiser, as the authors' code does.

    eps <- eps - scale sqrt(1-a) grad_{x_t} log p.

    There, the classifier looks at the estimate of x_0, and is told the timestep t, although it was trained at 0.

    Args:
        log_prob: Maps logits [B,K] to the objective of each record [B].
    """

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            x0 = to_x0(model.denoise(leaf, t), leaf, t, alpha_bar, prediction=prediction)
            (gradient,) = torch.autograd.grad(log_prob(model.head(model.features(x0, t))).sum(), leaf)
        a = alpha_bar[t].view(-1, 1, 1, 1)
        # eps moves by -scale sqrt(1-a) gradient, and x_0 = (x - sqrt(1-a) eps) / sqrt(a)
        return (x0.detach() + scale * (1 - a) / a.sqrt() * gradient).clamp(-1, 1)

    return denoise


def guided_representations(
    model: JointModel,
    alpha_bar: torch.Tensor,
    log_prob: Callable[[torch.Tensor], torch.Tensor],
    *,
    scale: float,
    prediction: str,
) -> Denoiser:
    """Guide on the shared representations, the paper's own idea (Deja et al. 2023, section 4.3).

    Every encoder map h moves up the gradient of log p(wanted | pool(h)) before it is decoded:
    h <- h + scale * |h| * grad / |grad|, norms per record over all maps. So `scale` is the relative length of the
    step, the sign is that of ascent, and it enters once.

    Args:
        log_prob: Maps logits [B,K] to the objective of each record [B].
        scale: >= 0; 0 disables.
    """

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        emb = model.unet.embed(t)
        with torch.enable_grad():
            maps = [m.detach().requires_grad_(True) for m in model.unet.encode(x, emb)]
            objective = log_prob(model.head(pool(maps))).sum()
            gradients = torch.autograd.grad(objective, maps)
        length, steep = (
            torch.stack([m.float().square().sum(dim=(1, 2, 3)) for m in group]).sum(dim=0).sqrt()
            for group in (maps, gradients)
        )
        step = (scale * length / steep.clamp(min=1e-12)).view(-1, 1, 1, 1)
        moved = [m.detach() + step * g for m, g in zip(maps, gradients, strict=True)]
        return to_x0(model.unet.decode(moved, emb), x, t, alpha_bar, prediction=prediction).clamp(-1, 1)

    return denoise


def _batch(t: int, x: torch.Tensor) -> torch.Tensor:
    return torch.full((len(x),), t, device=x.device, dtype=torch.int64)


def sample_ddpm(
    denoise: Denoiser,
    x: torch.Tensor,
    timesteps: Sequence[int],
    alpha_bar: torch.Tensor,
    *,
    generator: torch.Generator,
    callback: Callback | None = None,
) -> torch.Tensor:
    """Ancestral sampling (Ho et al. 2020) over the given timesteps: DDIM with eta = 1."""
    return sample_ddim(denoise, x, timesteps, alpha_bar, eta=1.0, generator=generator, callback=callback)


def sample_ddim(
    denoise: Denoiser,
    x: torch.Tensor,
    timesteps: Sequence[int],
    alpha_bar: torch.Tensor,
    *,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> torch.Tensor:
    """DDIM sampling (Song et al. 2021), deterministic when eta is 0.

    Args:
        x: x_t at timesteps[0].
        eta: Share of the ancestral noise, 0 to 1; above 0 a generator is needed.

    Returns:
        x_0 [B,C,H,W].

    Raises:
        ValueError: eta > 0 without a generator.
    """
    if eta > 0 and generator is None:
        raise ValueError("eta > 0 draws noise: give a generator")
    for i, t in enumerate(timesteps):
        tb = _batch(t, x)
        x0 = denoise(x, tb)
        if i + 1 == len(timesteps):
            x = x0
        else:
            a, a_next = alpha_bar[t], alpha_bar[timesteps[i + 1]]
            eps = to_eps(x0, x, tb, alpha_bar)
            sigma = eta * ((1 - a_next) / (1 - a) * (1 - a / a_next)).sqrt()
            x = a_next.sqrt() * x0 + (1 - a_next - sigma**2).clamp(min=0).sqrt() * eps
            if eta > 0:
                assert generator is not None
                noise = torch.randn(x.shape, generator=generator, device=generator.device)
                x = x + sigma * noise.to(x)
        if callback is not None:
            callback(i, x)
    return x


def invert_ddim(denoise: Denoiser, x: torch.Tensor, timesteps: Sequence[int], alpha_bar: torch.Tensor) -> torch.Tensor:
    """DDIM run backwards: the noise that leads to these images (Song et al. 2021), at timesteps[0].

    Args:
        x: Clean images.
        timesteps: Falling, as the sampler will walk them; walked here from the end.
    """
    rising = list(timesteps)[::-1]
    for t, t_next in itertools.pairwise(rising):
        tb = _batch(t, x)
        x0 = denoise(x, tb)
        eps = to_eps(x0, x, tb, alpha_bar)
        a_next = alpha_bar[t_next]
        x = a_next.sqrt() * x0 + (1 - a_next).sqrt() * eps
    return x
