"""From what the user asked to a run that can start: resolved configuration, first weights, a folder of its own."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from jointdiff import storage
from jointdiff.config import Config, RunConfig, resolve
from jointdiff.data import DatasetInfo, dataset_info
from jointdiff.model import JointModel
from jointdiff.reproducibility import SERVER, seed_for


def prepare(run: RunConfig) -> tuple[Config, DatasetInfo, Path]:
    """Resolve the configuration and make the run's folder. No images are loaded: the server of a run has none.

    Returns:
        The configuration with the run's name and absolute folders; what the data set says of itself; the run's folder.

    Raises:
        JointDiffError: Unknown data set or preset, an existing run-name, an unwritable home, a model that does not fit.
    """
    info = dataset_info(run.dataset, data_root=run.data_root, image_size=run.image_size)
    home = storage.home(run.home)
    run = replace(
        run,
        run_name=run.run_name or run_name_for(run),
        home=str(home),
        sites_home=str(Path(run.sites_home).expanduser().absolute()) if run.sites_home else "",
    )
    config = resolve(run, channels=info.channels, num_outputs=info.num_outputs, task=info.task)
    with torch.device("meta"):
        JointModel(config.model)  # a model that cannot be built must say so before there is a folder
    return config, info, storage.create_run(home, run.run_name)


def run_name_for(run: RunConfig) -> str:
    """Return a name made from the data set, the method and the time."""
    source = Path(run.dataset.partition(":")[2]).stem if run.dataset.startswith("npz:") else run.dataset
    slug = re.sub(r"[^A-Za-z0-9]+", "-", source).strip("-")[:40] or "run"
    return f"{slug}-{run.method}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"[:-3]


def initial_weights(config: Config) -> dict[str, np.ndarray]:
    """Return the state_dict of a fresh model, drawn from the run's seed, as float32 arrays.

    Raises:
        ConfigError: The model does not fit the images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(config.run.seed, SERVER, 0, "initial weights"))
        model = JointModel(config.model)
    return {name: tensor.numpy().astype(np.float32) for name, tensor in model.state_dict().items()}
