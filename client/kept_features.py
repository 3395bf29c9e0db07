"""Features of this site's training images, on its own disk while a head that trains itself is solved again and again.

Each time the server asks for sums over the same features of the same network, in a deployment of a new process; a pass
over all images is what takes the time. The file is used for the weights and images that it was made of, and for no
others. It is not written where the site keeps no latents on its disk or seals them: a feature says as much of a scan.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from client import state
from jointdiff.config import Config
from jointdiff.evaluation import extract_features
from jointdiff.head import num_self_training
from jointdiff.model import JointModel
from jointdiff.protocol import RoundInstructions
from jointdiff.sharing import HEAD, part_of

_log = logging.getLogger(__name__)

PART = "features"  # of the state
_BATCH_SIZE = 256


def of(
    ask: RoundInstructions,
    config: Config,
    model: JointModel,
    images: np.ndarray,
    device: torch.device,
    *,
    site_folder: Path,
    on_disk: bool,
) -> torch.Tensor | None:
    """Return the features of a site's training images, computed or read back, or None where nobody asks twice.

    Args:
        images: What the network sees, uint8 [N,H,W,C].
        on_disk: False computes them, leaves nothing behind, and deletes what lay there.

    Returns:
        [N,D], float32. A disk that takes no file costs a pass each time, and nothing else.
    """
    if not num_self_training(config.own_round(ask.round), config):
        return None
    if not on_disk:
        state.drop(site_folder, ask.run_name, part=PART)
        return extract_features(model, images, device=device)
    key = _key(model, images)
    found = _read(ask, key, site_folder)
    if found is None:
        found = extract_features(model, images, device=device)
        try:
            state.save(site_folder, ask.run_name, ask.round, {"key": key, "features": found}, part=PART)
        except OSError as error:
            _log.warning("Features are not kept, each pass of the head computes them again: %s", error.strerror)
    return found


def _read(ask: RoundInstructions, key: torch.Tensor, site_folder: Path) -> torch.Tensor | None:
    try:
        kept = state.load(site_folder, ask.run_name, before=ask.round + 1, after=ask.round - 1, part=PART)
    except (SafetensorError, OSError):  # damaged: made anew
        return None
    return kept["features"] if kept and torch.equal(kept.get("key", key[:0]), key) else None


def _key(model: JointModel, images: np.ndarray) -> torch.Tensor:
    """Return the SHA-256 of the images and of all weights that features follow from, uint8 [32]."""
    digest = hashlib.sha256(f"{images.shape}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        if part_of(name) != HEAD:
            digest.update(f"/{name}/".encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    for start in range(0, len(images), _BATCH_SIZE):  # mapped images may be more than the memory holds
        digest.update(np.ascontiguousarray(images[start : start + _BATCH_SIZE]).tobytes())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
