"""What a hospital works with while it answers a question: the instructions, its own data, device, folder and rules."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from client import download, kept_features, latents, personal_head, site_config
from client.secure_sum import SecureSum
from client.site_config import SiteConfig
from client.site_policy import SitePolicy
from jointdiff import protocol
from jointdiff.aggregation_rules import by_labels
from jointdiff.config import Config
from jointdiff.data import HospitalData, ImageSet, hospital_data, info_of
from jointdiff.data.site_data import load_site
from jointdiff.errors import RefusedError
from jointdiff.model import JointModel
from jointdiff.networks import Network, network_with
from jointdiff.protocol import RoundInstructions, RoundReport
from jointdiff.round_profile import LOAD, REPORTED
from jointdiff.round_profile import PREFIX as SECONDS
from jointdiff.small_counts import is_small, shown
from jointdiff.spaces import Space
from jointdiff.training import select_device


@dataclass(frozen=True)
class Site:
    """What a hospital works with: the instructions, and its own data, device and folder."""

    instructions: RoundInstructions
    config: Config
    _seconds: dict[str, float] = field(default_factory=dict)  # spent so far on what is not the work itself

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to those of `name`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - began

    def seconds_of_work(self, duration_s: float) -> dict[str, float]:
        """Return what this piece of work of `duration_s` was spent on, by the names of round_profile.REPORTED.

        Nothing in a private run: how long a step takes tells how many records it drew.
        """
        kind = self.instructions.kind
        if self.config.private or kind not in REPORTED:
            return {}
        rest = max(0.0, duration_s - sum(self._seconds.values()))
        return {name: self._seconds.get(name, 0.0) for name in REPORTED[kind]} | {SECONDS + kind: rest}

    @cached_property
    def data(self) -> HospitalData:
        """This hospital's images."""
        with self.timed(LOAD):
            return self._data()

    @cached_property
    def space(self) -> Space:
        """Where the run's network works: on pixels, or on latents of the autoencoder that the server sent."""
        with self.timed(LOAD):
            return latents.space_of(self.config, self.folder, self.device)

    @cached_property
    def inputs(self) -> HospitalData:
        """What the network sees of this hospital's images."""
        data, space = self.data, self.space
        with self.timed(LOAD):
            return latents.seen(
                data,
                space,
                self.folder,
                training=self.config.training,
                on_disk=self.policy.latents_on_disk,
                key_file=self.policy.latents_key,
            )

    def _data(self) -> HospitalData:
        run = self.config.run
        if run.over_sites:
            return self._own_data()
        if self.site.data is not None:
            raise RefusedError(
                "The run names a data set, as only a simulation does, and this site trains on its own data alone: set "
                "dataset=sites."
            )
        return hospital_data(run, self.instructions.hospital_index)

    def _own_data(self) -> HospitalData:
        if self.site.data is None:
            raise RefusedError("The run asks for this site's own data (dataset=sites), and this site has named none.")
        run = self.config.run
        return load_site(self.site.data, info_of(run), cache=self.site.cache, audit_holdout=run.audit_holdout)

    @cached_property
    def device(self) -> torch.device:
        """Where this hospital computes."""
        return select_device(self.site.device or self.config.run.device)

    @property
    def device_name(self) -> str:
        """How that device is called in a report."""
        if self.device.type != "cuda":
            return str(self.device)
        return f"{self.device} ({torch.cuda.get_device_name(self.device)})"

    @property
    def secure_sum(self) -> SecureSum:
        """This hospital's part in the secure sum that the instructions are about."""
        return SecureSum(self.instructions, self.config.run, self.folder)

    @property
    def folder(self) -> Path:
        """Where this hospital keeps what must not leave it."""
        return site_config.folder_of(self.instructions)

    @cached_property
    def site(self) -> SiteConfig:
        """What this hospital says of itself."""
        return site_config.config_of(self.instructions)

    @property
    def policy(self) -> SitePolicy:
        """What this hospital allows."""
        return self.site.policy

    def model(self, tensors: Mapping[str, np.ndarray]) -> Network:
        """Return the network with the weights that the server sent, on the device; parts of it may be the site's."""
        with self.timed(LOAD):
            if self.instructions.kind != protocol.TRAIN:
                tensors, _ = download.complete(self.instructions, self.config, tensors, self.folder)
            tensors = personal_head.put_on(self.instructions, self.config, tensors, self.folder)
            return network_with(self.config, tensors, self.device)

    def features(self, model: JointModel) -> torch.Tensor | None:
        """Return a model's features of the training images, where the head is solved on them more than once."""
        policy = self.policy
        return kept_features.of(
            self.instructions,
            self.config,
            model,
            self.inputs.train.images,
            self.device,
            site_folder=self.folder,
            on_disk=policy.latents_on_disk and not policy.latents_key,
        )

    def report(self, images: ImageSet) -> RoundReport:
        """Return a report that counts `images`, unless they are too few to be told; the caller adds what it found."""
        counts = {"num_images": len(images), "num_labels": images.num_labelled}
        minimum = self.policy.min_cell_count
        withheld = [name for name, count in counts.items() if is_small(count, minimum)]
        if self.config.private:  # how many labels there are is a count over records; how many records, is public
            counts["num_labels"] = 0
            withheld = sorted({*withheld, "num_labels"})
        return RoundReport(
            self.instructions.hospital,
            num_images=shown(counts["num_images"], minimum),
            num_labels=shown(counts["num_labels"], minimum),
            withheld=withheld,
        )

    def check_privacy(self) -> None:
        """Refuse what is computed from training images without noise, where the site has a ceiling: it is passed.

        Raises:
            RefusedError: The site's policy has an epsilon, and the run is not private.
        """
        if self.policy.epsilon is not None and not self.config.private:
            raise RefusedError(
                f"This site has a privacy ceiling (epsilon {self.policy.epsilon:g}), and this run has no differential "
                "privacy: set target-epsilon."
            )

    def check_sending(self) -> None:
        """Refuse to send what was learned from training images in a way that this site's policy forbids.

        Raises:
            RefusedError: As `check_privacy` and `check_counts`; or the site wants secure aggregation, and the run has
                none.
        """
        self.check_privacy()
        self.check_counts()
        if self.policy.require_secure_aggregation and not self.config.run.secure_aggregation:
            raise RefusedError(
                "This site sends its updates under secure aggregation alone (require-secure-aggregation), and this run "
                "has none: set secure-aggregation=true."
            )

    def check_counts(self) -> None:
        """Refuse to train on images that are too few to be told: they are the update's weight in the mean.

        Raises:
            RefusedError: The training images, or the labels where these are the weight, are fewer than min-cell-count.
        """
        minimum, train = self.policy.min_cell_count, self.data.train
        if is_small(len(train), minimum):
            raise RefusedError(f"This site has fewer training images than its min-cell-count of {minimum}.")
        if (asked := by_labels(self.config.run)) and is_small(train.num_labelled, minimum):
            raise RefusedError(
                f"{asked} asks for a number of labels that this site withholds: it is below its min-cell-count of "
                f"{minimum}. Take images or equal."
            )
