"""Inversion: draw the image that an update was computed on, from the update alone.

Gradient matching (Geiping et al., NeurIPS 2020): an image is moved until the gradient of the loss on it points where
the update points. Everything that can be known is given to the attacker: the weights, the label, the noise and the
timestep of the denoising term, no augmentation, one image, one plain gradient step, and the site's mean image to begin
with.

Images in [-1,1], [B,C,H,W]; an update is a list of tensors, one per parameter that the loss touches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from jointdiff import diffusion, losses
from jointdiff.config import Config
from jointdiff.model import JointModel, to_uint8
from jointdiff.schedule import SCHEDULES

Update = list[torch.Tensor]
Loss = Callable[[torch.Tensor], torch.Tensor]

LOSSES = ("classification", "joint")
TIMESTEP_SHARE = 0.3  # of the joint loss's denoising term
LEARNING_RATE = 0.03
TV_WEIGHT = 1e-3


@dataclass(frozen=True)
class Inversion:
    """One attack on one update; images uint8 [H,W,C]."""

    loss: str  # classification | joint
    view: str  # how the attacker sees the update: clear | dp | sum | masked
    original: np.ndarray
    guess: np.ndarray  # the better of the guesses that need no update
    reconstruction: np.ndarray
    psnr: float  # decibels, of the reconstruction
    psnr_guess: float
    ssim: float
    ssim_guess: float
    recognised: bool  # of all images of the site, the reconstruction is nearest to the original
    label_read: bool | None  # the label could be read off the update; None where there is no single label to read


def classification_loss(model: JointModel, labels: torch.Tensor) -> Loss:
    """Return the summed classification loss of images [B,C,H,W] as a function of them."""
    return lambda x: losses.classification_loss(model.classify(x), labels).sum()


def joint_loss(
    model: JointModel, labels: torch.Tensor, config: Config, *, generator: torch.Generator, device: torch.device
) -> Loss:
    """Return the summed joint loss, label term and denoising term, with its noise drawn once and for all."""
    training, of_label = config.training, classification_loss(model, labels)
    alpha_bar = SCHEDULES[training.schedule](training.num_timesteps).to(device)
    t = torch.full((len(labels),), round(TIMESTEP_SHARE * (training.num_timesteps - 1)), device=device)
    shape = (len(labels), config.model.channels, config.model.image_size, config.model.image_size)
    eps = torch.randn(shape, generator=generator, device=generator.device).to(device)
    weight = diffusion.min_snr_weight(t, alpha_bar, gamma=training.snr_gamma, prediction=training.prediction)

    def loss(x: torch.Tensor) -> torch.Tensor:
        goal = diffusion.target(x, eps, t, alpha_bar, prediction=training.prediction)
        output = model.denoise(diffusion.add_noise(x, eps, t, alpha_bar), t)
        denoising = losses.denoising_loss(output, goal, weight).sum()
        return training.diffusion_weight * denoising + training.class_weight * of_label(x)

    return loss


def update_of(loss: Loss, parameters: Sequence[torch.Tensor], x: torch.Tensor, *, keep: bool = False) -> Update:
    """Return the gradient of the loss on images, with zeros where it does not depend on a parameter.

    Args:
        keep: Whether it is to be differentiated once more.
    """
    # Attention's fast kernels have no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        found = torch.autograd.grad(loss(x), parameters, create_graph=keep, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def clipped_and_noised(update: Update, noise_multiplier: float, *, generator: torch.Generator) -> Update:
    """Return what differential privacy makes of one record's update: clipped to C, with noise of deviation sigma C.

    C is the update's own norm: nothing is lost to clipping, so that the noise alone protects. Parameters that the loss
    does not touch are left out; the attacker knows that there is nothing but noise in them.
    """
    scale = noise_multiplier * float(_norm(update))
    return [u + scale * _normal(u, generator) if bool(u.any()) else u for u in update]


def masked(update: Update, *, generator: torch.Generator) -> Update:
    """Return what one site's masked vector looks like to the server: as random as the mask, whatever the update."""
    return [_normal(u, generator) for u in update]


def invert(
    loss: Loss,
    parameters: Sequence[torch.Tensor],
    update: Update,
    start: torch.Tensor,
    *,
    num_steps: int,
    learning_rate: float = LEARNING_RATE,
    tv_weight: float = TV_WEIGHT,
) -> torch.Tensor:
    """Search images whose gradient points where the update points: 1 - cos(gradient, update) + tv_weight TV(x).

    Adam on the sign of the objective's gradient, as Geiping et al. do, its rate cut to a tenth after 3/8, 5/8 and 7/8
    of the steps.

    Args:
        loss: Of images, with labels and noise fixed.
        start: Images to begin with, [B,C,H,W]; B is the number of images behind the update.

    Returns:
        [B,C,H,W] in [-1,1], detached.
    """
    touched = [k for k, u in enumerate(update) if bool(u.any())]
    parameters, update = [parameters[k] for k in touched], [update[k] for k in touched]
    length = _norm(update)
    x = start.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([x], lr=learning_rate)
    milestones = [round(num_steps * share) for share in (3 / 8, 5 / 8, 7 / 8)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    for _ in range(num_steps):
        with sdpa_kernel(SDPBackend.MATH):
            own = update_of(loss, parameters, x, keep=True)
            product = torch.stack([(g * u).sum() for g, u in zip(own, update, strict=True)]).sum()
            objective = 1 - product / (_norm(own) * length).clamp(min=1e-30) + tv_weight * total_variation(x)
            (gradient,) = torch.autograd.grad(objective, x)
        x.grad = gradient.sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            x.clamp_(-1, 1)
    return x.detach()


def label_in(bias_update: torch.Tensor) -> int:
    """Read a record's class off the gradient of the head's bias: p - y is negative at y alone (iDLG, Zhao et al. 2020).

    >>> label_in(torch.tensor([0.2, -0.7, 0.5]))
    1
    """
    return int(bias_update.argmin())


def total_variation(x: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute step between neighbouring pixels, down and across."""
    return x.diff(dim=2).abs().mean() + x.diff(dim=3).abs().mean()


def psnr(image: np.ndarray, original: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of two uint8 images in decibels, at most 60.

    >>> psnr(np.zeros((8, 8, 1), np.uint8), np.full((8, 8, 1), 255, np.uint8))
    0.0
    """
    error = np.mean((image.astype(np.float64) - original) ** 2)
    return 10 * math.log10(255**2 / max(float(error), 255**2 / 1e6))


def ssim(image: np.ndarray, original: np.ndarray) -> float:
    """Return the structural similarity of two uint8 images [H,W,C] (Wang et al. 2004), in 7 x 7 windows; 1 = equal."""
    a, b = (torch.from_numpy(i.astype(np.float64)).permute(2, 0, 1)[None] for i in (image, original))

    def mean(x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, 7, stride=1)

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b, both = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return float((luminance * (2 * both + c2) / (var_a + var_b + c2)).mean())


def graded(
    reconstructions: torch.Tensor,
    original: np.ndarray,
    guesses: np.ndarray,
    gallery: np.ndarray,
    *,
    loss: str,
    view: str,
    label_read: bool | None,
) -> Inversion:
    """Compare reconstructions with the original; of several the best counts.

    Args:
        reconstructions: [B,C,H,W]: of a sum over several sites, one for each.
        original: uint8 [H,W,C].
        guesses: uint8 [G,H,W,C]: what an attacker would draw without the update; the best counts.
        gallery: uint8 [N,H,W,C]: the site's images, the original among them.
    """
    drawn = list(to_uint8(reconstructions))
    best, guess = (max(some, key=lambda image: psnr(image, original)) for some in (drawn, list(guesses)))
    nearest = gallery[np.argmin(((gallery.astype(np.float64) - best) ** 2).sum(axis=(1, 2, 3)))]
    return Inversion(
        loss=loss, view=view, original=original, guess=guess, reconstruction=best,
        psnr=psnr(best, original), psnr_guess=psnr(guess, original),
        ssim=ssim(best, original), ssim_guess=ssim(guess, original),
        recognised=bool((nearest == original).all()), label_read=label_read,
    )  # fmt: skip


def _norm(update: Update) -> torch.Tensor:
    return torch.stack([u.square().sum() for u in update]).sum().sqrt()


def _normal(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like)
