"""The server's own labelled images: what it learns from them after a round, and what they tell the head.

For federations in which no hospital has a label (label-split=server): hospitals learn from scans alone, and the server
adds a supervised step on the merged weights (as in SemiFL, Diao et al. 2022, arXiv 2106.01432).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from jointdiff.config import Config, trains_autoencoder
from jointdiff.data import class_table
from jointdiff.data.server_set import server_data
from jointdiff.evaluation import predict
from jointdiff.head import head_statistics
from jointdiff.model import model_with
from jointdiff.record import RunRecord
from jointdiff.reproducibility import SERVER
from jointdiff.settings import AT_SERVER
from jointdiff.spaces import seen_data
from jointdiff.statistics import ClassificationStatistics
from jointdiff.training import select_device, term_weights, train_round
from server.autoencoder import SharedAutoencoder

Tensors = Mapping[str, np.ndarray]


class LabelledSet:
    """The images, and the state of the training on them."""

    def __init__(self, config: Config, record: RunRecord, autoencoder: SharedAutoencoder) -> None:
        """Load the images, as the network sees them.

        Raises:
            ConfigError, DataError: There are none, or they do not fit the run.
        """
        run = config.run
        self._data = seen_data(server_data(run), autoencoder.space, config.training)
        self._num_steps = run.local_steps if run.server_steps < 0 else run.server_steps
        # The learning rate falls over all of the server's steps as it does over a hospital's.
        self._config = replace(config, run=replace(run, local_steps=max(1, self._num_steps)))
        self._record = record
        self._device = select_device(run.device)
        self.state: Tensors = {}  # of the optimiser, after the last round; what a resumed run goes on from

    @classmethod
    def of(cls, config: Config, record: RunRecord, autoencoder: SharedAutoencoder) -> LabelledSet | None:
        """Return the server's images, None where it has none of its own, or no label is looked at."""
        own = config.run.label_split == AT_SERVER and not trains_autoencoder(config)
        return cls(config, record, autoencoder) if own else None

    def introduce(self) -> None:
        """Say in the events what there is."""
        self._record.event("server_set", table=class_table(self._data))

    def train(self, weights: Tensors, number: int) -> Tensors:
        """Return the weights after the server's own steps of a round (1-based); the same where labels do not count yet.

        The loss is a hospital's; without unlabelled images it has no pseudo-labels.
        """
        if not self._num_steps or not term_weights(self._config, number).label:
            return weights
        started = time.monotonic()
        model = model_with(self._config.model, weights, self._device)
        metrics, state = train_round(
            model,
            self._data,
            self._config,
            round_number=number,
            hospital_index=SERVER,
            device=self._device,
            state={name: torch.from_numpy(array) for name, array in self.state.items()} or None,
        )
        self.state = {name: tensor.numpy() for name, tensor in state.items()}
        num_labels, duration_s = len(self._data.train), time.monotonic() - started
        self._record.event(
            "server_trained", round=number, num_labels=num_labels, duration_s=duration_s, metrics=metrics
        )
        return {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}

    def head_sums(self, weights: Tensors, *, pseudo: bool) -> dict[str, np.ndarray]:
        """Return the sums that solve the head, over the server's images: they add up with the hospitals'."""
        model = model_with(self._config.model, weights, self._device)
        return head_statistics(model, self._data, self._config, self._device, pseudo)

    def heldout(self, weights: Tensors) -> ClassificationStatistics | None:
        """Return how the weights classify the images that are held out; None where there are none."""
        images = self._data.heldout
        if images is None:
            return None
        probs = predict(model_with(self._config.model, weights, self._device), images.images, device=self._device)
        return ClassificationStatistics.from_predictions(probs, images.labels, task=self._config.model.task)
