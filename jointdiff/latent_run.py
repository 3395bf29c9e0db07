"""The frozen autoencoder of a run: chosen by the key `autoencoder`, copied to where it is needed, opened again by name.

A run keeps a copy in its own folder and every site one in its own, so that neither a file that moves nor one that
changes can change a run: what is opened again must have the fingerprint that the run's configuration says.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import jointdiff
from jointdiff.autoencoder import Autoencoder
from jointdiff.autoencoder_config import AutoencoderConfig
from jointdiff.checkpoint import Checkpoint
from jointdiff.config import Config, ModelConfig, RunConfig, from_mapping, to_mapping
from jointdiff.errors import CheckpointError, ConfigError
from jointdiff.latents import FrozenAutoencoder, LatentScale
from jointdiff.networks import network_with
from jointdiff.spaces import PIXELS, Latents, Space

FILE = "autoencoder.safetensors"


def chosen(run: RunConfig, *, channels: int) -> FrozenAutoencoder:
    """Open the autoencoder that a run names.

    Args:
        channels: Of the images.

    Raises:
        CheckpointError: The file is missing, damaged, or no autoencoder.
        ConfigError: It is of other images than the run's.
    """
    if not Path(run.autoencoder).is_file():
        raise CheckpointError(
            f"There is no autoencoder at {run.autoencoder}: train one first (docs/researcher.md, 'Scans at clinical "
            "size'), name its file, or leave autoencoder empty for a run on pixels."
        )
    frozen = FrozenAutoencoder.load(run.autoencoder)
    own, asked = (frozen.config.image_size, frozen.config.channels), (run.image_size, channels)
    if own != asked:
        raise ConfigError(
            f"autoencoder={run.autoencoder} encodes images of {own[0]} pixels per side in {own[1]} channel(s), and the "
            f"run has images of {asked[0]} in {asked[1]}: name one that was trained for these, or set "
            f"image-size={own[0]}."
        )
    return frozen


def model_keys(frozen: FrozenAutoencoder) -> dict[str, object]:
    """Return what an autoencoder says of the network that works on its latents, as keys of ModelConfig."""
    channels, size, _ = frozen.latent_shape
    return {"latent-channels": channels, "latent-size": size, "autoencoder": frozen.fingerprint}


def freeze(folder: Path, config: Config, weights: Mapping[str, np.ndarray]) -> FrozenAutoencoder:
    """Make the run's own frozen autoencoder of what its first phase has trained, and write it into the run's folder.

    It is the same bytes at every call: a run that died right after it makes it again.

    Args:
        config: Of the first phase.
        weights: Of the autoencoder, the scale of its latents among them.
    """
    mean, std = (tuple(float(value) for value in weights[name]) for name in ("latent_mean", "latent_std"))
    facts = {"run": config.run.run_name, "round": str(config.run.num_rounds), "code_version": jointdiff.__version__}
    network = network_with(config, weights, "cpu")
    assert isinstance(network, Autoencoder)
    frozen = FrozenAutoencoder(network, LatentScale(mean, std), facts=facts)
    frozen.save(folder / FILE)
    return frozen


def open_in(folder: Path, model: ModelConfig, *, device: torch.device | str = "cpu") -> FrozenAutoencoder:
    """Open the copy that lies in a folder.

    Args:
        folder: A run's, or what a site keeps it in.
        model: Says the fingerprint.

    Raises:
        CheckpointError: It is missing, damaged, or another autoencoder.
    """
    if not (folder / FILE).is_file():
        raise CheckpointError(
            f"The run's autoencoder is gone: {folder / FILE}. Put the file of fingerprint {model.autoencoder[:12]} "
            "there, or start a new run."
        )
    frozen = FrozenAutoencoder.load(folder / FILE, device=device)
    check_same(frozen, model)
    return frozen


def check_same(frozen: FrozenAutoencoder, model: ModelConfig) -> None:
    """Refuse an autoencoder in whose latents the network was not trained.

    Raises:
        CheckpointError: The fingerprint is another one than the model's.
    """
    if frozen.fingerprint != model.autoencoder:
        raise CheckpointError(
            f"The model works on latents of the autoencoder {model.autoencoder[:12]}, and this one is "
            f"{frozen.fingerprint[:12]}: what one of them encodes means nothing to the other. Use the autoencoder that "
            "the model was trained with."
        )


def space_in(folder: Path, config: Config, device: torch.device) -> Space:
    """Return where a run's network works, with the autoencoder from the folder where there is one; as `open_in`."""
    return Latents(open_in(folder, config.model, device=device)) if config.model.latent else PIXELS


def space_of_checkpoint(loaded: Checkpoint, device: torch.device) -> Space:
    """Return where a checkpoint's network works.

    Raises:
        CheckpointError: It works on latents, and the checkpoint holds no autoencoder, or another one.
    """
    if not loaded.config.model.latent:
        return PIXELS
    if loaded.autoencoder is None:
        raise CheckpointError(
            "The checkpoint works on latents, and the autoencoder is not in the file: it was cut apart. Take the file "
            "as the run wrote it."
        )
    part = loaded.autoencoder
    return Latents(from_tensors(part.state, part.config, loaded.config.model).to(device))


def to_tensors(frozen: FrozenAutoencoder) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return an autoencoder as tensors and plain keys: for a message, or a part of another file."""
    state = {name: tensor.detach().cpu() for name, tensor in frozen.autoencoder.state_dict().items()}
    return state, to_mapping(frozen.config)


def from_tensors(tensors: Mapping[str, torch.Tensor], keys: Mapping[str, Any], model: ModelConfig) -> FrozenAutoencoder:
    """Return what `to_tensors` took apart, if it is the model's.

    Args:
        tensors, keys: Not trusted.
        model: Says the fingerprint.

    Raises:
        CheckpointError: They are no autoencoder, or another one.
    """
    try:
        config = from_mapping(AutoencoderConfig, keys, "the autoencoder")
        with torch.random.fork_rng(devices=[]):  # the first weights are overwritten: their draw leaves no trace
            network = Autoencoder(config)
        network.load_state_dict(dict(tensors))
    except (ConfigError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"The autoencoder's part cannot be read ({type(error).__name__}): it was damaged, or written by another "
            "version. Take another copy."
        ) from None
    scale = LatentScale(tuple(network.latent_mean.tolist()), tuple(network.latent_std.tolist()))
    frozen = FrozenAutoencoder(network, scale)
    check_same(frozen, model)
    return frozen
