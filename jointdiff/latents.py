"""A trained autoencoder as the second phase uses it: frozen, with latents of unit variance, in one file.

The scale of the latents comes from sums that add up over hospitals (count, sum, sum of squares), never from pooled
images. The file is a safetensors file: the weights are its tensors, configuration, scale and fingerprint lie in its
header. A run of `method: autoencoder` leaves checkpoints, which are opened as well.
Shapes: images [N,C,H,W] in [-1,1], or uint8; latents [N,4,h,w].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from jointdiff import checkpoint
from jointdiff.autoencoder import Autoencoder
from jointdiff.autoencoder_config import LATENT_CHANNELS, AutoencoderConfig
from jointdiff.config import Config, from_mapping, to_mapping
from jointdiff.errors import CheckpointError, ConfigError, DataError
from jointdiff.latent_scale import LatentScale, latent_sums, psnr
from jointdiff.storage import atomic_path

__all__ = ["FORMAT", "FrozenAutoencoder", "LatentScale", "latent_sums", "psnr"]

FORMAT = "jointdiff-autoencoder-1"
_SCALE = ("latent_mean", "latent_std")


class FrozenAutoencoder:
    """An autoencoder whose weights and scale never change again."""

    def __init__(self, autoencoder: Autoencoder, scale: LatentScale, *, facts: Mapping[str, str] | None = None) -> None:
        """Freeze an autoencoder in place.

        Args:
            scale: Of its latents.
            facts: What the file's header shall say of its origin, such as the run; changes no fingerprint.
        """
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.scale = scale
        self.facts = dict(facts or {})
        for name, values in zip(_SCALE, (scale.mean, scale.std), strict=True):
            getattr(autoencoder, name).copy_(torch.tensor(values))

    @property
    def config(self) -> AutoencoderConfig:
        """What the autoencoder is made of."""
        return self.autoencoder.config

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image's latents."""
        return self.config.latent_shape

    @property
    def device(self) -> torch.device:
        """Where the autoencoder computes."""
        return self.autoencoder.latent_mean.device

    def to(self, device: torch.device | str) -> FrozenAutoencoder:
        """Move it to a device, in place."""
        self.autoencoder.to(device)
        return self

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of architecture, weights and scale, but not of the preset's name: equal where latents agree."""
        shape = {name: value for name, value in to_mapping(self.config).items() if name != "name"}
        digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
        for name, tensor in sorted(self.autoencoder.state_dict().items()):
            digest.update(f"/{name}/{tuple(tensor.shape)}/".encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scaled latents [N,4,h,w] of images [N,C,H,W] in [-1,1]: the mean, so no draw; gradients flow."""
        mean, _ = self.autoencoder.encode(x)
        return (mean - self._row("latent_mean")) / self._row("latent_std")

    def to_images(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the images [N,C,H,W], clamped to [-1,1], of scaled latents [N,4,h,w]; gradients flow.

        Raises:
            DataError: Latents of another shape.
        """
        if latents.ndim != 4 or tuple(latents.shape[1:]) != self.latent_shape:
            raise DataError(
                f"This autoencoder decodes latents of {list(self.latent_shape)}, not {list(latents.shape[1:])}: they "
                "are of another autoencoder or image size."
            )
        z = latents.to(self.device) * self._row("latent_std") + self._row("latent_mean")
        return self.autoencoder.decode(z).float().clamp(-1, 1)

    @torch.no_grad()
    def to_latents(self, images: np.ndarray | torch.Tensor, batch: int = 64) -> torch.Tensor:
        """Return the scaled latents of images: float32 [N,4,h,w] on the CPU, the same at every call.

        Args:
            images: uint8 [N,C,H,W], or [N,H,W,C] as data sets hold them: the channels tell which.
            batch: Images in one pass.

        Raises:
            DataError: Another type, size or number of channels than the autoencoder was made for.
        """
        pixels = self._checked(images)
        parts = [self.encode(self._to_network(pixels[i : i + batch])).cpu() for i in range(0, len(pixels), batch)]
        return torch.cat(parts) if parts else torch.zeros(0, *self.latent_shape)

    @torch.no_grad()
    def psnr(self, images: np.ndarray | torch.Tensor, batch: int = 64) -> torch.Tensor:
        """Return how near each image's reconstruction is to it, in dB: [N] on the CPU.

        Args:
            images: As in `to_latents`.

        Raises:
            DataError: As in `to_latents`.
        """
        pixels, found = self._checked(images), [torch.zeros(0)]
        for start in range(0, len(pixels), batch):
            x = self._to_network(pixels[start : start + batch])
            found.append(psnr(x, self.to_images(self.encode(x))).cpu())
        return torch.cat(found)

    def _row(self, name: str) -> torch.Tensor:
        return getattr(self.autoencoder, name)[:, None, None]

    def _checked(self, images: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Return images as uint8 [N,C,H,W]."""
        pixels, c, side = torch.as_tensor(images), self.config.channels, self.config.image_size
        if pixels.ndim == 4 and tuple(pixels.shape[1:]) == (side, side, c):
            pixels = pixels.permute(0, 3, 1, 2)
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or tuple(pixels.shape[1:]) != (c, side, side):
            raise DataError(
                f"This autoencoder encodes uint8 images of {side} x {side} pixels in {c} channel{'s' * (c > 1)}, not "
                f"{str(pixels.dtype).removeprefix('torch.')} {list(torch.as_tensor(images).shape)}: resize or convert "
                "them, or take an autoencoder that was trained for them."
            )
        return pixels

    def _to_network(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.to(self.device).float() / 127.5 - 1

    def save(self, path: Path | str) -> Path:
        """Write autoencoder, scale and fingerprint as one file, atomically.

        Raises:
            CheckpointError: A weight is NaN or infinite; nothing is written.
        """
        path = Path(path)
        state = {
            name: tensor.detach().cpu().contiguous().clone()
            for name, tensor in self.autoencoder.state_dict().items()
            if name not in _SCALE
        }
        checkpoint.check_finite(state, f"Refusing to write the autoencoder {path.name}")
        header = {
            "format": FORMAT,
            "config": json.dumps(to_mapping(replace(self.config, name=Path(self.config.name).name)), sort_keys=True),
            "scale": json.dumps(asdict(self.scale)),
            "fingerprint": self.fingerprint,
            "facts": json.dumps(self.facts, sort_keys=True),
        }
        with atomic_path(path) as temporary:
            save_file(state, temporary, metadata=header)
        return path

    @classmethod
    def load(
        cls, path: Path | str, *, device: torch.device | str = "cpu", like: AutoencoderConfig | None = None
    ) -> FrozenAutoencoder:  # fmt: skip
        """Open what `save` wrote, or a checkpoint of a run of `method: autoencoder`.

        Args:
            like: What it must be made of, but for the preset's name; None = whatever it says.

        Raises:
            CheckpointError: Missing, truncated, changed, no autoencoder, not measured yet, or of another architecture.
        """
        metadata, state = checkpoint.read(path)
        try:
            if metadata.get("format") == FORMAT:
                config = from_mapping(AutoencoderConfig, json.loads(metadata["config"]), "the autoencoder")
                scale = LatentScale(**{k: tuple(v) for k, v in json.loads(metadata["scale"]).items()})
                facts, wanted = json.loads(metadata["facts"]), metadata["fingerprint"]
            else:
                config, scale, facts, wanted = *_from_run(path, state), ""
            _check_like(path, config, like)
            frozen = cls(_network(config, state), scale, facts=facts)
        except (ConfigError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"The autoencoder {path} does not fit what its own header says ({' '.join(str(error).split())[:300]}): "
                "it was damaged, or written by another version. Take another copy."
            ) from None
        if wanted and frozen.fingerprint != wanted:
            raise CheckpointError(
                f"The autoencoder {path} is not what was saved: its weights have the fingerprint "
                f"{frozen.fingerprint[:12]}, its header says {wanted[:12]}. Copy it again."
            )
        return frozen.to(device)


def _from_run(path: Path | str, state: Mapping[str, torch.Tensor]) -> tuple[AutoencoderConfig, LatentScale, dict]:
    """Return what a run's checkpoint says of the autoencoder in it."""
    found = checkpoint.load(path)
    config: Config = found.config
    if config.autoencoder is None or not all(name in state for name in _SCALE):
        raise CheckpointError(
            f"The checkpoint {path} holds no autoencoder: it was trained with method={config.run.method}. Name one of "
            "method=autoencoder."
        )
    mean, std = (state[name].tolist() for name in _SCALE)
    if not min(std) > 0:
        raise CheckpointError(
            f"The autoencoder in {path} has no scale yet: it is measured after the last round, and this is round "
            f"{found.round_number}. Take the checkpoint of a run that has ended well."
        )
    facts = {"run": config.run.run_name, "round": str(found.round_number), "code_version": found.code_version}
    return config.autoencoder, LatentScale(tuple(mean), tuple(std)), facts


def _network(config: AutoencoderConfig, state: Mapping[str, torch.Tensor]) -> Autoencoder:
    with torch.random.fork_rng(devices=[]):  # the first weights are overwritten: their draw leaves no trace
        network = Autoencoder(config)
    zeros = {name: torch.zeros(LATENT_CHANNELS) for name in _SCALE}
    network.load_state_dict({**zeros, **state})
    return network


def _check_like(path: Path | str, config: AutoencoderConfig, like: AutoencoderConfig | None) -> None:
    if like is None:
        return
    keys = [f.name for f in fields(AutoencoderConfig) if f.name != "name"]
    differences = [
        f"{key.replace('_', '-')} is {getattr(config, key)!r} there, {getattr(like, key)!r} here"
        for key in keys
        if getattr(config, key) != getattr(like, key)
    ]
    if differences:
        raise CheckpointError(
            f"The autoencoder {path} is of another architecture: {'; '.join(differences)}. Name one that was trained "
            "for this image size, these channels and this preset."
        )
