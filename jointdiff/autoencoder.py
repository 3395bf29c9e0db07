"""The autoencoder of scans: a small image of latents per scan, and back (Kingma and Welling 2014; Rombach et al. 2022).

    L = l1 |x - x'| + l2 (x - x')^2 + f ||phi(x) - phi(x')||^2 + kl KL(N(mean, exp(logvar)) || N(0, 1)),
    x' = decode(mean + exp(logvar / 2) eps)

phi are the maps of a fixed random feature net (fidelity.py): nothing is downloaded, and no discriminator is trained.
GroupNorm only, as in the UNet: BatchNorm can neither be averaged over hospitals nor be trained under differential
privacy. The first level folds 2 x 2 pixels into channels, so that no convolution but the last works at full size.
Shapes: images [B,C,H,W] in [-1,1]; latents [B,4,h,w] with h = H / downsampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from jointdiff.autoencoder_config import LATENT_CHANNELS, AutoencoderConfig

LOGVAR_RANGE = (-20.0, 10.0)  # of the encoder's second output: exp of it stays finite
_FIRST_LOGVAR = -6.0
_PATCH = 2  # pixels per side that the first level folds into channels
FeatureMaps = Callable[[torch.Tensor], Sequence[torch.Tensor]]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


class Block(nn.Module):
    """GroupNorm - SiLU - convolution, twice, around a skip."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(inputs), _norm(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B,inputs,H,W] to [B,outputs,H,W]."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class Autoencoder(nn.Module):
    """Encoder and decoder, and the scale of the latents once it was measured.

    `latent_mean` and `latent_std` [4] are buffers, merged over hospitals like the head's standardisation; a standard
    deviation of 0 says that nobody has measured yet.

    Raises:
        ValueError: As AutoencoderConfig.check.
    """

    latent_mean: torch.Tensor
    latent_std: torch.Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        config.check()
        self.config = config
        first, *rest = config.widths
        pixels = config.channels * _PATCH**2
        encoder: list[nn.Module] = [nn.Conv2d(pixels, first, 3, padding=1), *_blocks(first, config.num_blocks)]
        width = first
        for wider in rest:
            encoder += [nn.Conv2d(width, wider, 3, 2, padding=1), *_blocks(wider, config.num_blocks)]
            width = wider
        last = nn.Conv2d(width, 2 * LATENT_CHANNELS, 3, padding=1)
        encoder += [_norm(width), nn.SiLU(), last]
        decoder: list[nn.Module] = [nn.Conv2d(LATENT_CHANNELS, width, 3, padding=1)]
        for narrower in (*reversed(config.widths[:-1]), None):
            decoder += _blocks(width, config.num_blocks)
            if narrower is not None:
                decoder += [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(width, narrower, 3, padding=1)]
                width = narrower
        decoder += [_norm(width), nn.SiLU(), nn.Conv2d(width, pixels, 3, padding=1), nn.PixelShuffle(_PATCH)]
        # Over the borders of the 2 x 2 patches, which are drawn side by side and know nothing of each other.
        smooth = nn.Conv2d(config.channels, config.channels, 3)  # padded before: per-record gradients know zeros alone
        nn.init.dirac_(smooth.weight)
        nn.init.zeros_(smooth.bias)  # type: ignore[arg-type]
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(*decoder, nn.ReplicationPad2d(1), smooth)
        with torch.no_grad():  # little noise at first: pictures come before the prior
            last.bias[LATENT_CHANNELS:] = _FIRST_LOGVAR  # type: ignore[index]
        self.register_buffer("latent_mean", torch.zeros(LATENT_CHANNELS))
        self.register_buffer("latent_std", torch.zeros(LATENT_CHANNELS))

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log variance of the latents of images [N,C,H,W]: float32 [N,4,h,w] each, not yet scaled."""
        mean, logvar = self.encoder(F.pixel_unshuffle(x, _PATCH)).float().chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Return the images [N,C,H,W] of latents [N,4,h,w]; nothing bounds them to [-1,1]."""
        return self.decoder(z)


def _blocks(width: int, count: int) -> list[nn.Module]:
    return [Block(width, width) for _ in range(count)]


def sampled(mean: torch.Tensor, logvar: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """Return latents of the encoder's distribution, by reparametrisation: [N,4,h,w].

    Args:
        eps: Standard normal draws [N,4,h,w].
    """
    return mean + (0.5 * logvar).exp() * eps


def kl_divergence(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """Return KL(N(mean, exp(logvar)) || N(0, 1)) of each record, averaged over its latents: [N]."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).mean(dim=1)


def feature_distance(x: torch.Tensor, y: torch.Tensor, features: FeatureMaps) -> torch.Tensor:
    """Return the squared distance of two images' maps, averaged over positions, maps and levels: [N].

    Args:
        x: The images that are to be met; no gradient flows to them.
        y: [N,C,H,W], as x.
        features: Maps images to one or more maps [N,c,h,w].
    """
    with torch.no_grad():
        wanted = features(x)
    parts = [(a - b).square().flatten(1).mean(dim=1) for a, b in zip(wanted, features(y), strict=True)]
    return torch.stack(parts).mean(dim=0)


def autoencoder_loss(
    x: torch.Tensor,
    reconstruction: torch.Tensor,
    mean: torch.Tensor,
    logvar: torch.Tensor,
    *,
    l1_weight: float,
    l2_weight: float,
    feature_weight: float,
    kl_weight: float,
    features: FeatureMaps | None = None,
) -> dict[str, torch.Tensor]:
    """Return the loss of each record and its parts, every one of shape [N].

    Args:
        x, reconstruction: [N,C,H,W].
        mean, logvar: Of the latents of x, [N,4,h,w].
        l1_weight, l2_weight, feature_weight, kl_weight: Of the parts; 0 disables.
        features: The maps of the feature net; may be None where feature_weight is 0.

    Returns:
        `loss`, their weighted sum, and its parts unweighted: `loss_l1`, `loss_l2`, `loss_feature` and `loss_kl`.
    """
    difference = reconstruction.float() - x
    parts = {
        "loss_l1": difference.abs().flatten(1).mean(dim=1),
        "loss_l2": difference.square().flatten(1).mean(dim=1),
        "loss_feature": torch.zeros(len(x), device=x.device),
        "loss_kl": kl_divergence(mean, logvar),
    }
    if feature_weight:
        assert features is not None, "a feature distance needs a feature net"
        parts["loss_feature"] = feature_distance(x, reconstruction.float(), features)
    weights = (l1_weight, l2_weight, feature_weight, kl_weight)
    total = torch.stack([w * part for w, part in zip(weights, parts.values(), strict=True) if w]).sum(dim=0)
    return {"loss": total, **parts}
