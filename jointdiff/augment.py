"""Weak and strong views of whole batches, with random parameters of their own for every image.

Runs on the device of the images; grey, RGB and latents alike; every draw comes from the given generator.
Shapes: images [B,C,H,W] in [-1,1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

View = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def _uniform(low: float, high: float, count: int, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    draw = torch.rand(count, generator=generator, device=generator.device).to(like.device)
    return low + (high - low) * draw


def warp(
    x: torch.Tensor,
    generator: torch.Generator,
    *,
    degrees: float,
    shift: float,
    zoom: float,
    flip: bool,
) -> torch.Tensor:
    """Rotate, shift, zoom and mirror every image by amounts of its own, in one bilinear resampling.

    Args:
        degrees: Rotation in [-degrees, degrees].
        shift: In [-shift, shift], as a share of the side.
        zoom: Factor in [1 - zoom, 1 + zoom].
        flip: Mirror left and right with probability 1/2.
    """
    n = len(x)
    angle = _uniform(-degrees, degrees, n, x, generator) * (math.pi / 180)
    scale = _uniform(1 - zoom, 1 + zoom, n, x, generator)
    mirror = (_uniform(0, 1, n, x, generator) < 0.5).float() * -2 + 1 if flip else torch.ones_like(angle)
    dx, dy = (2 * _uniform(-shift, shift, n, x, generator) for _ in range(2))
    cos, sin = angle.cos() / scale, angle.sin() / scale
    theta = torch.stack([cos * mirror, -sin, dx, sin * mirror, cos, dy], dim=1).view(n, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def recolour(x: torch.Tensor, generator: torch.Generator, *, strength: float) -> torch.Tensor:
    """Change gain, brightness and gamma of every image by amounts of its own.

    Args:
        strength: 0 disables; 1 = gain 0.5 to 1.5, brightness +-0.5 of half the range, gamma 0.5 to 2.
    """
    n = len(x)
    gain = _uniform(1 - 0.5 * strength, 1 + 0.5 * strength, n, x, generator).view(-1, 1, 1, 1)
    offset = _uniform(-0.5 * strength, 0.5 * strength, n, x, generator).view(-1, 1, 1, 1)
    gamma = (2.0 ** _uniform(-strength, strength, n, x, generator)).view(-1, 1, 1, 1)
    unit = ((x + 1) / 2).clamp(1e-4, 1) ** gamma
    centre = unit.mean(dim=(1, 2, 3), keepdim=True)
    return (((unit - centre) * gain + centre) * 2 - 1 + offset).clamp(-1, 1)


def cutout(x: torch.Tensor, generator: torch.Generator, *, share: float) -> torch.Tensor:
    """Cover one square of every image with its mean (DeVries and Taylor 2017).

    Args:
        share: The square's side as a share of the image's, drawn in [0, share].
    """
    n, _, h, w = x.shape
    half = _uniform(0, share / 2, n, x, generator).view(-1, 1, 1)
    cy, cx = (_uniform(0, 1, n, x, generator).view(-1, 1, 1) for _ in range(2))
    ys = (torch.arange(h, device=x.device).view(1, -1, 1) + 0.5) / h
    xs = (torch.arange(w, device=x.device).view(1, 1, -1) + 0.5) / w
    hole = ((ys - cy).abs() < half) & ((xs - cx).abs() < half)
    return torch.where(hole[:, None], x.mean(dim=(2, 3), keepdim=True), x)


def mirrored(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror every image left and right with probability 1/2; no pixel is resampled."""
    mirror = _uniform(0, 1, len(x), x, generator) < 0.5
    return torch.where(mirror[:, None, None, None], x.flip(-1), x)


def moved(x: torch.Tensor, generator: torch.Generator, *, shift: float) -> torch.Tensor:
    """Shift every latent by whole positions of its own; the border is mirrored.

    Nothing is interpolated or mirrored as a whole: what lies between two latents need be no latent of anything, and the
    mirror of a latent is not the latent of the mirrored image.

    Args:
        shift: Largest shift, as a share of the side.
    """
    n, _, h, w = x.shape
    theta = torch.zeros(n, 2, 3, device=x.device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1.0
    for axis, side in ((0, w), (1, h)):
        reach = round(shift * side)
        theta[:, axis, 2] = _uniform(-reach - 0.5, reach + 0.5, n, x, generator).round() * 2 / side
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="nearest", padding_mode="reflection", align_corners=False)


def rescaled(x: torch.Tensor, generator: torch.Generator, *, strength: float) -> torch.Tensor:
    """Change gain and mean of every channel of every latent by amounts of its own.

    Args:
        strength: 0 disables; 1 = gain 0.5 to 1.5, mean moved by up to half the latent's standard deviation.
    """
    shape = (*x.shape[:2], 1, 1)
    count = x.shape[0] * x.shape[1]
    gain = _uniform(1 - 0.5 * strength, 1 + 0.5 * strength, count, x, generator).view(shape)
    offset = _uniform(-0.5 * strength, 0.5 * strength, count, x, generator).view(shape)
    return x * gain + offset * x.std(dim=(1, 2, 3), keepdim=True)


def noisy(x: torch.Tensor, generator: torch.Generator, *, most: float) -> torch.Tensor:
    """Add Gaussian noise to every latent, of a strength of its own.

    Args:
        most: Largest standard deviation, as a share of the latent's own.
    """
    sigma = _uniform(0, most, len(x), x, generator).view(-1, 1, 1, 1) * x.std(dim=(1, 2, 3), keepdim=True)
    return x + sigma * torch.randn(x.shape, generator=generator, device=generator.device).to(x)


def weak_view(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return a view that keeps the label beyond doubt: a small shift and a mirror."""
    return warp(x, generator, degrees=0, shift=0.06, zoom=0.0, flip=True)


def strong_view(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return a view that is hard to recognise: warped, recoloured, partly covered."""
    x = warp(x, generator, degrees=15, shift=0.1, zoom=0.15, flip=True)
    return cutout(recolour(x, generator, strength=0.6), generator, share=0.3)


def weak_latent_view(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return what `weak_view` is to images, of latents."""
    return moved(x, generator, shift=0.06)


def strong_latent_view(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return what `strong_view` is to images, of latents: moved, rescaled, noised, partly covered."""
    x = noisy(rescaled(moved(x, generator, shift=0.1), generator, strength=0.4), generator, most=0.3)
    return cutout(x, generator, share=0.3)


class Views(NamedTuple):
    """The two strengths of views that training asks for."""

    weak: View
    strong: View


PIXEL_VIEWS = Views(weak_view, strong_view)
LATENT_VIEWS = Views(weak_latent_view, strong_latent_view)


class ViewSource(NamedTuple):
    """What the views of a site's training images are made from, and how."""

    images: np.ndarray  # uint8 [N,H,W,C]: the training images, or the scans that they are latents of
    views: Views  # of these images; what comes out is what the network sees


def views_of(*, latent: bool) -> Views:
    """Return the views of what a network sees: latents, or images."""
    return LATENT_VIEWS if latent else PIXEL_VIEWS
