"""Which network a run trains: the joint model, or with `method: autoencoder` the autoencoder of its scans."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from jointdiff.autoencoder import Autoencoder
from jointdiff.autoencoder_config import AutoencoderConfig
from jointdiff.config import Config, ModelConfig, trains_autoencoder
from jointdiff.errors import CheckpointError
from jointdiff.model import JointModel

Network = JointModel | Autoencoder
Design = ModelConfig | AutoencoderConfig  # what a network is built from; hashable


def design_of(config: Config) -> Design:
    """Return what the network of a run is made of."""
    if trains_autoencoder(config):
        assert config.autoencoder is not None, "a run of method autoencoder is resolved with one"
        return config.autoencoder
    return config.model


def build(design: Design) -> Network:
    """Return the network with fresh weights, drawn from torch's global random state.

    Raises:
        ConfigError: The image size does not fit the network.
    """
    return Autoencoder(design) if isinstance(design, AutoencoderConfig) else JointModel(design)


def network_with(config: Config, tensors: Mapping[str, np.ndarray], device: torch.device | str) -> Network:
    """Return a run's network with these weights on the device; no random state is touched.

    Args:
        tensors: The state_dict.
    """
    with torch.random.fork_rng(devices=[]):  # the first weights are overwritten: their draw leaves no trace
        network = build(design_of(config))
    network.load_state_dict({name: torch.tensor(array) for name, array in tensors.items()})
    return network.to(device)


def check_joint(config: Config, where: object) -> None:
    """Refuse a checkpoint of an autoencoder where a joint model is wanted.

    Args:
        where: The checkpoint's path.

    Raises:
        CheckpointError: It holds an autoencoder.
    """
    if trains_autoencoder(config):
        raise CheckpointError(
            f"The checkpoint {where} holds an autoencoder (method autoencoder): it neither classifies nor draws. Name "
            "a checkpoint of another method."
        )
