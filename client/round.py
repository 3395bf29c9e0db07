"""One local piece of work, without Flower: instructions and tensors in, a report and tensors out.

What happens on each kind of message stands in one function each; `run` checks who asks and picks it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from client import state
from client.secure_sum import SecureSum
from jointdiff import protocol, storage
from jointdiff.config import Config
from jointdiff.data import HospitalData, ImageSet, class_table, hospital_data
from jointdiff.errors import RefusedError
from jointdiff.evaluation import predict
from jointdiff.explanation import explain_site
from jointdiff.head import head_statistics
from jointdiff.identity import check_identity
from jointdiff.model import JointModel
from jointdiff.protocol import RoundInstructions, RoundReport
from jointdiff.statistics import ClassificationStatistics
from jointdiff.training import select_device, train_round

_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
Tensors = dict[str, np.ndarray]
Answer = tuple[RoundReport, Tensors]


def run(instructions: RoundInstructions, tensors: Mapping[str, np.ndarray]) -> Answer:
    """Do what the server asks of this hospital.

    Args:
        instructions: What to do, with the run's resolved configuration.
        tensors: The model's state_dict as float32 arrays; empty for DESCRIBE.

    Returns:
        The report, and what travels beside it: weights (TRAIN), mergeable statistics (HEAD, EVALUATE), or nothing.
        In a run with secure aggregation weights and statistics for the head are masked.

    Raises:
        RefusedError: The server runs other code, or asks for a kind of work that this site does not know.
        JointDiffError: Data or device are not there.
    """
    started = time.perf_counter()
    check_identity(instructions.code_version, instructions.code_hash)
    if instructions.kind not in _WORK:
        raise RefusedError(f"This site does not know the kind of work that was asked; it knows {', '.join(_WORK)}.")
    if not _RUN_NAME.fullmatch(instructions.run_name):
        raise RefusedError("The name of the run is no plain name: the site uses it for its own folders.")
    site = Site(instructions, Config.from_dict(instructions.config))
    report, answer = _WORK[instructions.kind](site, tensors)
    report = replace(report, device=_device_name(site.device), duration_s=time.perf_counter() - started)
    return report, answer


@dataclass(frozen=True)
class Site:
    """What a hospital works with: the instructions, and its own data, device and folder."""

    instructions: RoundInstructions
    config: Config

    @cached_property
    def data(self) -> HospitalData:
        """This hospital's images."""
        return hospital_data(self.config.run, self.instructions.hospital_index)

    @cached_property
    def device(self) -> torch.device:
        """Where this hospital computes."""
        return select_device(self.config.run.device)

    @property
    def secure_sum(self) -> SecureSum:
        """This hospital's part in the secure sum that the instructions are about."""
        return SecureSum(self.instructions, self.config.run, self.folder)

    @property
    def folder(self) -> Path:
        """Where this hospital keeps what must not leave it."""
        return site_folder(self.instructions)

    def model(self, tensors: Mapping[str, np.ndarray]) -> JointModel:
        """Return the network with the weights that the server sent, on the device."""
        with torch.random.fork_rng(devices=[]):  # the first weights are overwritten: their draw must leave no trace
            model = JointModel(self.config.model)
        model.load_state_dict({name: torch.tensor(array) for name, array in tensors.items()})
        return model.to(self.device)

    def report(self, images: ImageSet) -> RoundReport:
        """Return a report that counts `images`; the caller adds what it found."""
        return RoundReport(self.instructions.hospital, num_images=len(images), num_labels=images.num_labelled)


def site_folder(instructions: RoundInstructions) -> Path:
    """Return the site's own folder: in a simulation the one the server names, else the site's home."""
    return Path(instructions.site_folder) if instructions.site_folder else storage.home()


def _describe(site: Site, _tensors: Mapping[str, np.ndarray]) -> Answer:
    return replace(site.report(site.data.train), table=class_table(site.data)), {}


def _train(site: Site, tensors: Mapping[str, np.ndarray]) -> Answer:
    ask = site.instructions
    if site.config.run.secure_aggregation:
        site.secure_sum.check_ready()  # before the work, not after it
    model = site.model(tensors)
    metrics, new_state = train_round(
        model,
        site.data,
        site.config,
        round_number=ask.round,
        hospital_index=ask.hospital_index,
        device=site.device,
        state=state.load(site.folder, ask.run_name, before=ask.round),
    )
    state.save(site.folder, ask.run_name, ask.round, new_state)
    weights = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
    report = replace(site.report(site.data.train), metrics=metrics)
    if site.config.run.secure_aggregation:
        return report, site.secure_sum.mask_change(tensors, weights, report)
    return report, weights


def _head(site: Site, tensors: Mapping[str, np.ndarray]) -> Answer:
    statistics = head_statistics(site.model(tensors), site.data, site.config, site.device)
    if site.config.run.secure_aggregation:
        statistics = site.secure_sum.mask_sums(statistics)
    return site.report(site.data.train), statistics


def _keys(site: Site, _tensors: Mapping[str, np.ndarray]) -> Answer:
    return replace(site.report(site.data.train), payload=site.secure_sum.show_keys()), {}


def _shares(site: Site, _tensors: Mapping[str, np.ndarray]) -> Answer:
    return RoundReport(site.instructions.hospital, payload=site.secure_sum.deal_shares()), {}


def _unmask(site: Site, _tensors: Mapping[str, np.ndarray]) -> Answer:
    return RoundReport(site.instructions.hospital, payload=site.secure_sum.reveal()), {}


def _evaluate(site: Site, tensors: Mapping[str, np.ndarray]) -> Answer:
    model = site.model(tensors)
    answer: Tensors = {}
    for part, images in (("test", site.data.test), ("heldout", site.data.heldout)):
        if images is not None and len(images):
            probs = predict(model, images.images, device=site.device)
            found = ClassificationStatistics.from_predictions(probs, images.labels, task=site.config.model.task)
            answer |= {f"{part}.{name}": array for name, array in found.to_arrays().items()}
    return site.report(site.data.test), answer


def _explain(site: Site, tensors: Mapping[str, np.ndarray]) -> Answer:
    folder = site.folder / "explanations" / site.instructions.run_name
    grades, num_graded = explain_site(
        site.model(tensors),
        site.data,
        site.config,
        hospital_index=site.instructions.hospital_index,
        device=site.device,
        folder=folder,
    )
    return replace(site.report(site.data.test), num_images=num_graded, metrics=grades), {}


_WORK: dict[str, Callable[[Site, Mapping[str, np.ndarray]], Answer]] = {
    protocol.DESCRIBE: _describe,
    protocol.TRAIN: _train,
    protocol.HEAD: _head,
    protocol.EVALUATE: _evaluate,
    protocol.EXPLAIN: _explain,
    protocol.KEYS: _keys,
    protocol.SHARES: _shares,
    protocol.UNMASK: _unmask,
}


def _device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
