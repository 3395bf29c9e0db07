"""A trained model as commands open it: a checkpoint with its network built, and what its outputs are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from jointdiff import checkpoint
from jointdiff.config import Config, parse_run_config
from jointdiff.data import info_of
from jointdiff.errors import CheckpointError, JointDiffError
from jointdiff.evaluation import predict
from jointdiff.latent_run import space_of_checkpoint
from jointdiff.model import JointModel
from jointdiff.networks import check_joint
from jointdiff.spaces import PIXELS, Space
from jointdiff.training import select_device


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode, on the device, with the configuration that it was trained by."""

    model: JointModel
    config: Config
    device: torch.device
    space: Space = PIXELS

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities of uint8 images [N,H,W,C]: float32 [N,K]."""
        return predict(self.model, images, device=self.device, space=self.space)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the outputs [K]; their numbers where the data that the model was trained on are not here."""
        run, model = self.config.run, self.config.model
        try:
            names = info_of(run).class_names
        except JointDiffError:
            names = ()
        return (
            tuple(names) if len(names) == model.num_outputs else tuple(f"class {k}" for k in range(model.num_outputs))
        )

    def decision(self, probs: Sequence[float]) -> str:
        """Say in words what was decided: the most probable class, or every finding above one half.

        Args:
            probs: Of one scan, [K].
        """
        if self.config.model.task == "multi-class":
            return self.class_names[max(range(len(probs)), key=probs.__getitem__)]
        return "; ".join(c for c, p in zip(self.class_names, probs, strict=True) if p > 0.5) or "none"

    def check_denoises(self) -> None:
        """Refuse to draw or edit with a network that never learned to denoise: the pictures would mean nothing.

        Raises:
            CheckpointError: The denoising loss was off.
        """
        if not self.config.training.diffusion_weight:
            raise CheckpointError(
                f"The checkpoint was trained without the denoising loss (method {self.config.run.method}), so it can "
                "neither draw nor edit scans: take one of method joint or two-stage."
            )

    def check_classifies(self, target: int | None = None) -> None:
        """Refuse to explain a classifier that is not there: an unsolved head decides the same for every scan.

        A head starts with weights of zero, and stays there until it is solved or the label term starts: its decision
        is that of its bias alone, whatever the scan shows.

        Args:
            target: Of a multi-label task: the finding that must have a classifier. None = any finding will do.

        Raises:
            CheckpointError: The head's weights are all zero, or in a multi-class task the same for every class.
        """
        weight = self.model.head.linear.weight.detach()
        multi_class = self.config.model.task == "multi-class"
        if multi_class:
            weight = weight - weight[:1]  # softmax ignores what all classes share
        elif target is not None:
            weight = weight[target]
        if not bool(weight.any()):
            what = "" if multi_class or target is None else f" for '{self.class_names[target]}'"
            raise CheckpointError(
                f"The checkpoint has no classifier{what}: the weights of its head were never solved or trained (method "
                f"{self.config.run.method}), so there is no decision to explain. Take a checkpoint of a later round."
            )


def open_trained(path: Path | str, *, device: str = "auto") -> Trained:
    """Build the network of a checkpoint and load its weights.

    Args:
        device: auto | cpu | cuda | cuda:N.

    Raises:
        CheckpointError: The file is missing, damaged, or of another architecture.
        ConfigError: There is no such device.
    """
    place = select_device(parse_run_config({"device": device}).device)
    loaded = checkpoint.load(path)
    config = loaded.config
    check_joint(config, path)
    with torch.random.fork_rng(devices=[]):  # the first weights are overwritten: their draw must leave no trace
        model = JointModel(config.model)
    checkpoint.load_into(model, path)
    return Trained(model.to(place).eval(), config, place, space_of_checkpoint(loaded, place))
