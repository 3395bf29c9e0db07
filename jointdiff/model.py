"""The joint diffusion-classifier: one UNet that denoises, and classifies on its own pooled features.

Shapes: images, or their latents, [B,C,H,W] in [-1,1]; t [B] int64; features [B,D]; logits [B,K].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from jointdiff.config import ModelConfig
from jointdiff.errors import ConfigError
from jointdiff.unet import UNet

CLEAN_TIMESTEP = 0  # the classifier sees clean images at this timestep


def pool(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return mean and standard deviation over the positions of every map, concatenated: [B, 2 * sum of widths]."""
    flat = [m.float().flatten(2) for m in maps]
    means = [m.mean(dim=2) for m in flat]
    stds = [(m.var(dim=2, unbiased=False) + 1e-6).sqrt() for m in flat]
    return torch.cat(means + stds, dim=1)


class Head(nn.Module):
    """A linear classifier on standardised features. Mean and scale are buffers, merged over hospitals."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, num_features: int, num_outputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(num_features))
        self.linear = nn.Linear(num_features, num_outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features [B,D] to logits [B,K]."""
        return self.linear((features - self.mean) / self.scale)


class JointModel(nn.Module):
    """One network, two tasks: `denoise` and `classify` share the encoder.

    Raises:
        ConfigError: The image size does not fit the levels or the patch size.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.input_size % config.patch_size:
            what = "the latents' size" if config.latent else "image-size"
            raise ConfigError(
                f"{what} {config.input_size} is no multiple of the model's patch-size {config.patch_size}: "
                "choose another model or size."
            )
        self.config = config
        self.unet = UNet(
            config.input_channels,
            width=config.width,
            multipliers=config.multipliers,
            num_blocks=config.num_blocks,
            attention_levels=config.attention_levels,
            dropout=config.dropout,
            patch_size=config.patch_size,
        )
        self.head = Head(2 * sum(self.unet.feature_widths), config.num_outputs)

    def denoise(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return the network's prediction (eps or v) for noised images: [B,C,H,W]."""
        emb = self.unet.embed(t)
        return self.unet.decode(self.unet.encode(x, emb), emb)

    def maps(self, x: torch.Tensor, t: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Return the encoder's and the middle block's maps, the shared representations."""
        if t is None:
            t = torch.full((len(x),), CLEAN_TIMESTEP, device=x.device, dtype=torch.int64)
        return self.unet.encode(x, self.unet.embed(t))

    def features(self, x: torch.Tensor, t: torch.Tensor | None = None) -> torch.Tensor:
        """Return the pooled shared representations, by default at timestep 0: [B,D] float32."""
        return pool(self.maps(x, t))

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of clean images: [B,K] float32."""
        return self.head(self.features(x))

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Return softmax (multi-class) or sigmoid (multi-label) of logits."""
        return logits.softmax(dim=1) if self.config.task == "multi-class" else logits.sigmoid()


def model_with(config: ModelConfig, tensors: Mapping[str, np.ndarray], device: torch.device | str) -> JointModel:
    """Return the network with these weights on the device; no random state is touched.

    Args:
        tensors: The state_dict.
    """
    with torch.random.fork_rng(devices=[]):  # the first weights are overwritten: their draw leaves no trace
        model = JointModel(config)
    model.load_state_dict({name: torch.tensor(array) for name, array in tensors.items()})
    return model.to(device)


def to_network(images: np.ndarray | torch.Tensor, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return uint8 images [N,H,W,C] as float32 [N,C,H,W] in [-1,1] on the device."""
    x = torch.as_tensor(images).to(device)
    return x.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(x: torch.Tensor) -> np.ndarray:
    """Return images [N,C,H,W] in [-1,1] as uint8 [N,H,W,C], rounded and clamped."""
    pixels = ((x.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
