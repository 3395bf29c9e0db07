"""Edits that were made already, kept batch by batch, so that thousands of explanations survive an interruption.

A part is found by a key over all that decides it: the model, the scans, the targets and how edits are searched. It
holds images of scans: it lies in the site's own folder, and goes when the gallery is whole.
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from jointdiff.storage import atomic_path

FOLDER = "parts"


@dataclass(frozen=True)
class Part:
    """Edits of one batch of scans."""

    edited: np.ndarray  # uint8 [n,H,W,C]
    found: np.ndarray  # bool [n]
    seconds: float  # that they took, in all


class Parts:
    """The parts of one gallery in its folder.

    Args:
        folder: The gallery's own; None: nothing is kept.
        state: The model's state_dict.
        search: How edits are searched, in words: whatever changes them must change this text.
    """

    def __init__(self, folder: Path | None, state: Mapping[str, torch.Tensor], search: str) -> None:
        self._folder = None if folder is None else folder / FOLDER
        self._digest = hashlib.sha256(search.encode())
        if self._folder is not None:
            for name in sorted(state):
                self._digest.update(name.encode() + state[name].detach().cpu().contiguous().numpy().tobytes())

    def _path(self, scans: np.ndarray, targets: np.ndarray) -> Path:
        assert self._folder is not None
        digest = self._digest.copy()
        digest.update(str(scans.shape).encode() + np.ascontiguousarray(scans).tobytes() + targets.tobytes())
        return self._folder / f"{digest.hexdigest()[:32]}.npz"

    def get(self, scans: np.ndarray, targets: np.ndarray) -> Part | None:
        """Return the edits of scans, uint8 [n,H,W,C], towards targets [n]; None where they are not there whole."""
        if self._folder is None or not (path := self._path(scans, targets)).is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                part = Part(file["edited"], file["found"], float(file["seconds"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # damaged: made again
            return None
        return part if part.edited.shape == scans.shape and part.found.shape == targets.shape else None

    def put(self, scans: np.ndarray, targets: np.ndarray, part: Part) -> None:
        """Keep a part, in one step."""
        if self._folder is None:
            return
        path = self._path(scans, targets)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path, private=True) as temporary, temporary.open("wb") as file:
            np.savez(file, edited=part.edited, found=part.found, seconds=part.seconds)


def clear(folder: Path) -> None:
    """Remove the parts of a gallery's folder: the gallery is whole."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
