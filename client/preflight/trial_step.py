"""One real training step on random images, in a process of its own: what runs out of memory ends this process alone.

Reads {"config": ..., "device": ...} from standard input and writes one line of JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from jointdiff import local_work
from jointdiff.augment import ViewSource
from jointdiff.autoencoder import Autoencoder
from jointdiff.autoencoder_config import LATENT_CHANNELS
from jointdiff.config import Config, autoencoder_config, trains_autoencoder
from jointdiff.data import HospitalData, ImageSet, info_of
from jointdiff.data.base import UNKNOWN
from jointdiff.errors import DeviceMemoryError, JointDiffError
from jointdiff.latents import FrozenAutoencoder, LatentScale
from jointdiff.networks import build, design_of
from jointdiff.phases import phases_of
from jointdiff.spaces import Latents, views_from_scans
from jointdiff.training import select_device


def measure(config: Config, device_name: str) -> dict[str, Any]:
    """Do one step of the last round of every phase of a run, and return what the most demanding one has taken.

    Returns:
        device, seconds, peak_bytes, parts that the batch was done in; or error, and whether it is about memory.
    """
    found = [_step_of(phase, device_name) for phase in phases_of(config)]
    failed = (one for one in found if "error" in one)
    return next(failed, None) or max(found, key=lambda one: one["peak_bytes"])


def _step_of(config: Config, device_name: str) -> dict[str, Any]:
    """Do one step of the last round, in which every term of the loss counts."""
    try:
        device = select_device(device_name)
        run = replace(config.run, local_steps=1)
        config = replace(config, run=run)
        with torch.random.fork_rng(devices=[]):
            model = build(design_of(config)).to(device)
        began = time.perf_counter()
        data = random_data(config, device)
        told, _ = local_work.train(
            model, data, config, round_number=run.num_rounds, hospital_index=0, device=device, state=None
        )
        seconds = time.perf_counter() - began
    except JointDiffError as error:
        return {"error": str(error), "memory": isinstance(error, DeviceMemoryError)}
    except (RuntimeError, MemoryError) as error:  # torch says both on the CPU
        out = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "memory" in str(error).lower()
        return {"error": "out of memory" if out else f"torch fails ({type(error).__name__})", "memory": out}
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak_resident()
    return {"device": str(device), "seconds": seconds, "peak_bytes": peak, "parts": int(told.get("batch_parts", 1))}


def random_data(config: Config, device: torch.device) -> HospitalData:
    """Return random images, or latents with random scans, of the shape that the network sees, half of them labelled."""
    model, rng = config.model, np.random.default_rng(0)
    count = 2 * config.run.batch_size
    images = rng.integers(0, 256, (count, model.input_size, model.input_size, model.input_channels), dtype=np.uint8)
    if model.task == "multi-label":
        truth = rng.integers(0, 2, (count, model.num_outputs))
    else:
        truth = np.arange(count) % model.num_outputs
    labels = truth.astype(np.int64)
    visible = np.where((np.arange(count) % 2 == 0)[(...,) + (None,) * (labels.ndim - 1)], labels, UNKNOWN)
    return HospitalData(
        info=info_of(config.run), train=ImageSet(images, visible), hidden_labels=labels, heldout=None,
        test=ImageSet(images[:2], labels[:2]), view_source=_view_source(config, count, device),
    )  # fmt: skip


def _view_source(config: Config, count: int, device: torch.device) -> ViewSource | None:
    """Return what views of latents are made from: random scans, and a preset's autoencoder if it makes such latents."""
    model = config.model
    if trains_autoencoder(config) or not model.latent:
        return None
    frozen = random_autoencoder(model.image_size, model.channels, device, config.run.autoencoder_model)
    if frozen.latent_shape != (model.input_channels, model.input_size, model.input_size):
        return None
    shape = (count, model.image_size, model.image_size, model.channels)
    scans = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    return views_from_scans(scans, Latents(frozen), config.training)


def random_autoencoder(image_size: int, channels: int, device: torch.device, name: str = "auto") -> FrozenAutoencoder:
    """Return a preset's autoencoder with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Autoencoder(autoencoder_config(image_size, channels, name))
    return FrozenAutoencoder(network, LatentScale((0.0,) * LATENT_CHANNELS, (1.0,) * LATENT_CHANNELS)).to(device)


def _peak_resident() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


if __name__ == "__main__":
    job = json.load(sys.stdin)
    sys.stdout.write(json.dumps(measure(Config.from_dict(job["config"]), job["device"])) + "\n")
