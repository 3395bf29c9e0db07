"""A folder for the tensors of a question's replies, so that memory holds a few models however many hospitals answer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file


class Spool:
    """Tensors by hospital, on disk for as long as a question is open.

    Nothing here outlives its round, so nothing is synced: what must survive a crash goes through the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def write(self, hospital: str, tensors: Mapping[str, np.ndarray]) -> None:
        """Keep the tensors of one hospital; a second reply replaces the first."""
        save_file({name: np.asarray(array, order="C") for name, array in tensors.items()}, self._path(hospital))

    def read(self, hospital: str) -> dict[str, np.ndarray]:
        """Return the tensors of one hospital."""
        return load_file(self._path(hospital))

    def _path(self, hospital: str) -> Path:
        return self._folder / f"{hospital}.safetensors"
