"""The referee: an independent classifier that judges samples and counterfactuals.

A plain residual network (GroupNorm, no time embedding, no diffusion), trained with *all* labels of the official train
split. It shares neither architecture nor weights nor training data's scarcity with the model it judges. It judges edits
in both directions and must not expect one of them, so classes count alike in its loss, however rare they are (the
findings of a multi-label task do not). Only for data whose labels are free to use: phantoms and public sets. In a
deployment no hospital has one.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import nn

from jointdiff.data.base import class_counts
from jointdiff.statistics import ClassificationStatistics
from jointdiff.storage import locked, write_atomic

if TYPE_CHECKING:
    from jointdiff.data import ImageSet

VERSION = "referee-2"
STEPS = 300
BATCH_SIZE = 64
_WIDTH = 32  # channels at half the size
_MAX_SIDE = 32  # larger images are halved by strided convolutions until no side is longer


class _Block(nn.Module):
    """x -> x + conv(relu(norm(conv(relu(norm(x)))))), with a stride and a 1 x 1 shortcut where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(4, inputs), nn.GroupNorm(4, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.short = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs or stride != 1 else nn.Identity()
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        h = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return h + self.short(F.avg_pool2d(x, self.stride, ceil_mode=True) if self.stride > 1 else x)


class _Network(nn.Module):
    def __init__(self, channels: int, num_outputs: int, image_size: int) -> None:
        super().__init__()
        # The first level halves, so that the costly full size has few channels; larger images are halved more often.
        halvings = 1 + max(0, (image_size - 1) // _MAX_SIDE).bit_length()
        widths = [max(16, _WIDTH // 2 ** (halvings - i)) for i in range(halvings)] + [_WIDTH]
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.Sequential(
            *(_Block(a, b, 2) for a, b in itertools.pairwise(widths)),
            _Block(_WIDTH, _WIDTH, 1),
            _Block(_WIDTH, 2 * _WIDTH, 2),
        )
        self.norm = nn.GroupNorm(4, 2 * _WIDTH)
        self.head = nn.Linear(4 * _WIDTH, num_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images [B, C, H, W] in [-1, 1] to logits [B, K]."""
        h = F.relu(self.norm(self.blocks(self.stem(x))))
        # The greatest response beside the mean: a lesion is small, and a mean over the scan drowns it.
        return self.head(torch.cat([h.mean((2, 3)), h.amax((2, 3))], dim=1))


@dataclass(frozen=True)
class Referee:
    """A trained referee; call it with images to get probabilities."""

    network: nn.Module
    task: str  # multi-class | multi-label
    device: torch.device

    @torch.no_grad()
    def predict(self, images: np.ndarray, *, batch_size: int = 256) -> np.ndarray:
        """Return probabilities, float32 [N, K], of images uint8 [N, H, W, C]."""
        self.network.eval()
        starts = range(0, max(1, len(images)), batch_size)  # one empty batch where there are no images
        logits = [self.network(_to_tensor(images[i : i + batch_size], self.device)) for i in starts]
        every = torch.cat(logits).float()
        probs = every.sigmoid() if self.task == "multi-label" else every.softmax(1)
        return probs.cpu().numpy()

    __call__ = predict

    def accuracy(self, images: ImageSet) -> float | None:
        """Return the referee's own accuracy on labelled images: print it wherever the referee is used."""
        probs = self.predict(images.images)
        return ClassificationStatistics.from_predictions(probs, images.labels, task=self.task).finish()["accuracy"]


def train_referee(
    train: ImageSet,
    num_outputs: int,
    task: str,
    *,
    seed: int = 0,
    steps: int = STEPS,
    device: torch.device | str = "cpu",
) -> Referee:
    """Train a referee on every labelled image of `train`; 300 steps take 37 s of one core (AVX2) at 28 px.

    Args:
        train: The official train split with all its labels; images without a label (-1) are left out.
        num_outputs: Classes, or labels of a multi-label task.
        task: multi-class or multi-label.
        seed: Of the initial weights, the batches and the augmentation.
        steps: Optimiser steps of 64 images.

    Raises:
        ValueError: There is no labelled image.
    """
    device = torch.device(device)
    known = train.labels >= 0 if train.labels.ndim == 1 else (train.labels >= 0).all(axis=1)
    images, labels = train.images[known], torch.from_numpy(train.labels[known])
    if len(images) == 0:
        raise ValueError("A referee needs labelled images, and the train split has none.")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _Network(images.shape[3], num_outputs, max(images.shape[1:3])).to(device)
    weight = _class_weights(train.labels[known], num_outputs).to(device) if task == "multi-class" else None
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=4e-3, total_steps=steps, pct_start=0.2)
    network.train()
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(order) < BATCH_SIZE:  # every image once before any image twice
            order = torch.cat([order, torch.randperm(len(images), generator=generator)])
        batch, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
        x = _augment(_to_tensor(images[batch.numpy()], torch.device("cpu")), generator).to(device)
        logits, y = network(x), labels[batch].to(device)
        if weight is None:
            loss = F.binary_cross_entropy_with_logits(logits, y.float())
        else:
            loss = (F.cross_entropy(logits, y, reduction="none") * weight[y]).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return Referee(network.eval(), task, device)


def cached_referee(
    home: Path,
    train: ImageSet,
    num_outputs: int,
    task: str,
    *,
    seed: int = 0,
    steps: int = STEPS,
    device: torch.device | str = "cpu",
) -> Referee:
    """Return the referee of this very data from HOME/referees/, or train it and keep it there.

    A cached file that is damaged is replaced. Arguments as `train_referee`.
    """
    device = torch.device(device)
    facts = f"{VERSION} {num_outputs} {task} {seed} {steps} {train.images.shape}"
    path = home / "referees" / f"{_fingerprint(train, facts)[:32]}.safetensors"
    network = _Network(train.images.shape[3], num_outputs, max(train.images.shape[1:3]))
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):  # hospitals of one machine ask at the same moment: one trains, all read
        if path.is_file():
            try:
                network.load_state_dict(_read(path, facts))
                return Referee(network.to(device).eval(), task, device)
            except (SafetensorError, RuntimeError, ValueError, OSError) as error:
                logging.getLogger(__name__).warning("The cached referee is damaged (%s): training a new one.", error)
        referee = train_referee(train, num_outputs, task, seed=seed, steps=steps, device=device)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in referee.network.state_dict().items()}
        write_atomic(path, to_safetensors(state, metadata={"facts": facts}))
        return referee


def _read(path: Path, facts: str) -> Mapping[str, torch.Tensor]:
    with safe_open(str(path), framework="pt", device="cpu") as file:
        if (file.metadata() or {}).get("facts") != facts:
            raise ValueError("it is the referee of something else")
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def _fingerprint(train: ImageSet, facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    digest.update(train.images.tobytes())
    digest.update(train.labels.tobytes())
    return digest.hexdigest()


def _class_weights(labels: np.ndarray, num_outputs: int) -> torch.Tensor:
    """Return weights, float32 [K], with which all classes count alike and the mean over `labels` [N] is one.

    >>> _class_weights(np.array([0, 1, 1, 1]), 2)
    tensor([2.0000, 0.6667])
    """
    counts = np.array(class_counts(labels, num_outputs))
    present = max(1, int((counts > 0).sum()))
    return torch.from_numpy(len(labels) / (present * np.maximum(counts, 1))).float()


def _to_tensor(images: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device).float() / 127.5 - 1


def _augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Flip, shift, scale brightness and contrast of every image by its own draw; [B, C, H, W] in [-1, 1]."""
    n, side = len(x), max(x.shape[2:])
    draws = torch.rand(5, n, generator=generator)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = torch.where(draws[0] < 0.5, -1.0, 1.0), 1.0
    # Whole pixels: interpolation would blur away a faint lesion.
    reach = max(1, side // 14)
    theta[:, :, 2] = ((draws[1:3] * (2 * reach + 1)).floor() - reach).T * 2 / torch.tensor([x.shape[3], x.shape[2]])
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, mode="nearest", padding_mode="border", align_corners=False)
    contrast, brightness = 0.8 + 0.4 * draws[3], 0.3 * (draws[4] - 0.5)
    return x * contrast[:, None, None, None] + brightness[:, None, None, None]
