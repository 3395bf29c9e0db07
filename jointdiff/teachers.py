"""Who labels the unlabelled images: the model as it trains, as it was sent, an average of it, or two of them.

A voice answers with probabilities [B,K], without gradients. A teacher is one voice, or two that must agree.
"""

from __future__ import annotations

import copy
from typing import Protocol

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from jointdiff.augment import View
from jointdiff.config import TrainingConfig
from jointdiff.model import JointModel

VOICES = {"local": ("local",), "global": ("global",), "local-ema": ("local-ema",), "agreement": ("local", "global")}


class Voice(Protocol):
    """What one model says of images."""

    def probs(self, x: torch.Tensor, index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return probabilities [B,K].

        Args:
            x: Images, [B,C,H,W] in [-1,1].
            index: Their places among the site's training images, int64 [B].
            generator: Of the weak views.
        """

    def follow(self) -> None:
        """Take note that the local model has made a step."""


class Local:
    """The model itself as it stands, on a weak view (FixMatch, Sohn et al. 2020)."""

    def __init__(self, model: JointModel, weak_view: View) -> None:
        self._model, self._weak_view = model, weak_view

    @torch.no_grad()
    def probs(self, x: torch.Tensor, index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return what the model says of weak views."""
        return self._model.probabilities(self._model.classify(self._weak_view(x, generator)))

    def follow(self) -> None:
        """Do nothing: the voice is the model."""


class Global:
    """The model as the server sent it, on the images as they are: asked once a round.

    Args:
        table: What it says of all of the site's training images, [N,K].
    """

    def __init__(self, table: torch.Tensor) -> None:
        self._table = table

    def probs(self, x: torch.Tensor, index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return what was said of the images."""
        return self._table[index]

    def follow(self) -> None:
        """Do nothing: the weights sent stay what they are."""


class LocalAverage:
    """The average of the model over the steps of this round, on a weak view (mean teacher, Tarvainen and Valpola 2017).

    Args:
        model: Holds the weights sent, from which the average starts.
        weak_view: Of the images that it is asked about.
        decay: Of the average, from step to step; in [0,1).
    """

    def __init__(self, model: JointModel, weak_view: View, decay: float) -> None:
        self._model, self._weak_view = model, weak_view
        self._average = copy.deepcopy(model).to(memory_format=torch.channels_last).requires_grad_(False).eval()
        self._move = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def probs(self, x: torch.Tensor, index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return what the average says of weak views."""
        return self._average.probabilities(self._average.classify(self._weak_view(x, generator)))

    def follow(self) -> None:
        """Move the average towards the model."""
        self._move(list(self._average.parameters()), [p.detach() for p in self._model.parameters()], 0)


def voices_of(
    model: JointModel, training: TrainingConfig, table: torch.Tensor | None, weak_view: View
) -> dict[str, Voice]:
    """Return the voices of a teacher by name, the main one first.

    Args:
        model: Holds the weights sent.
        table: What they say of all of the site's training images [N,K]; None where no voice asks for it.
        weak_view: Of the images that the voices are asked about.
    """
    voices: dict[str, Voice] = {}
    for name in VOICES[training.teacher]:
        if name == "global":
            assert table is not None
            voices[name] = Global(table)
        else:
            decay = training.teacher_ema_decay
            voices[name] = LocalAverage(model, weak_view, decay) if name == "local-ema" else Local(model, weak_view)
    return voices
