"""The UNet that is shared by the denoiser and the classifier (Deja et al. 2023, after Ho et al. 2020).

GroupNorm only: BatchNorm can neither be averaged over hospitals cleanly nor be trained under differential privacy.
Shapes: images [B,C,H,W]; t [B] int64; encoder maps: list of [B,c_i,h_i,w_i], the middle block's map last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F


def timestep_embedding(t: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the sinusoidal embedding of timesteps (Vaswani et al. 2017): [B,dim], dim even."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


class ResidualBlock(nn.Module):
    """GroupNorm - SiLU - convolution, twice, with the timestep as scale and shift between."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(inputs), _norm(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.time = nn.Linear(embedding, 2 * outputs)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """Map [B,C,H,W] to [B,outputs,H,W]; the embedding [B,E] scales and shifts between the convolutions."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.time(emb)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.norm2(h) * (1 + scale) + shift)
        return self.skip(x) + self.conv2(self.dropout(h))


class Attention(nn.Module):
    """Self-attention over positions, one head per 32 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // 32)
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B,C,H,W] to the same shape: every position attends to all."""
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).view(b, 3, self.heads, c // self.heads, h * w).transpose(-1, -2)
        mixed = F.scaled_dot_product_attention(qkv[:, 0], qkv[:, 1], qkv[:, 2])
        return x + self.out(mixed.transpose(-1, -2).reshape(b, c, h, w))


class Stage(nn.Module):
    """A residual block, with attention behind it at the coarse levels."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float, attention: bool) -> None:
        super().__init__()
        self.block = ResidualBlock(inputs, outputs, embedding, dropout)
        self.attention = Attention(outputs) if attention else nn.Identity()

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """Map [B,C,H,W] to [B,outputs,H,W]."""
        return self.attention(self.block(x, emb))


class UNet(nn.Module):
    """Encoder, middle and decoder; the encoder alone serves the classifier.

    Args:
        channels: Of the images.
        width: Channels of the first level.
        multipliers: Width of each level, in units of `width`.
        num_blocks: Residual blocks per level (the decoder has one more).
        attention_levels: Levels with self-attention, 0 = full size. The middle always has it.
        dropout: Inside residual blocks; 0 disables.
        patch_size: Pixels per side folded into channels before the first convolution.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int,
        multipliers: Sequence[int],
        num_blocks: int,
        attention_levels: Sequence[int],
        dropout: float = 0.0,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        self.width, self.patch_size = width, patch_size
        emb = 4 * width
        self.time = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb), nn.SiLU())
        self.conv_in = nn.Conv2d(channels * patch_size**2, width, 3, padding=1)
        widths = [width]
        self.down = nn.ModuleList()
        c = width
        for level, m in enumerate(multipliers):
            stages = nn.ModuleList()
            for _ in range(num_blocks):
                stages.append(Stage(c, m * width, emb, dropout, level in attention_levels))
                c = m * width
                widths.append(c)
            last = level == len(multipliers) - 1
            self.down.append(
                nn.ModuleDict({"stages": stages} | ({} if last else {"shrink": nn.Conv2d(c, c, 3, 2, padding=1)}))
            )
            if not last:
                widths.append(c)
        self.middle1 = Stage(c, c, emb, dropout, attention=True)
        self.middle2 = ResidualBlock(c, c, emb, dropout)
        self.feature_widths = (*widths, c)
        self.up = nn.ModuleList()
        for level, m in reversed(list(enumerate(multipliers))):
            stages = nn.ModuleList()
            for _ in range(num_blocks + 1):
                stages.append(Stage(c + widths.pop(), m * width, emb, dropout, level in attention_levels))
                c = m * width
            self.up.append(
                nn.ModuleDict({"stages": stages} | ({} if level == 0 else {"grow": nn.Conv2d(c, c, 3, padding=1)}))
            )
        self.norm_out = _norm(c)
        self.conv_out = nn.Conv2d(c, channels * patch_size**2, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def embed(self, t: torch.Tensor) -> torch.Tensor:
        """Return the timestep's embedding [B, 4 width]."""
        return self.time(timestep_embedding(t, self.width))

    def encode(self, x: torch.Tensor, emb: torch.Tensor) -> list[torch.Tensor]:
        """Return every encoder map, and the middle block's map last."""
        h = self.conv_in(F.pixel_unshuffle(x, self.patch_size) if self.patch_size > 1 else x)
        maps = [h]
        for level in self.down:
            for stage in level["stages"]:  # type: ignore[index]
                h = stage(h, emb)
                maps.append(h)
            if "shrink" in level:  # type: ignore[operator]
                h = level["shrink"](h)  # type: ignore[index]
                maps.append(h)
        maps.append(self.middle2(self.middle1(h, emb), emb))
        return maps

    def decode(self, maps: Sequence[torch.Tensor], emb: torch.Tensor) -> torch.Tensor:
        """Return the prediction [B,C,H,W] from encoder maps, which are left as they are."""
        *skips, h = maps
        for level in self.up:
            for stage in level["stages"]:  # type: ignore[index]
                *skips, skip = skips
                if h.shape[-2:] != skip.shape[-2:]:
                    h = F.interpolate(h, size=skip.shape[-2:], mode="nearest")
                h = stage(torch.cat([h, skip], dim=1), emb)
            if "grow" in level:  # type: ignore[operator]
                size = skips[-1].shape[-2:]
                h = level["grow"](F.interpolate(h, size=size, mode="nearest"))  # type: ignore[index]
        out = self.conv_out(F.silu(self.norm_out(h)))
        return F.pixel_shuffle(out, self.patch_size) if self.patch_size > 1 else out
