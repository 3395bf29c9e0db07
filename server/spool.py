"""A folder for the tensors of a question's replies, so that memory holds a few models however many hospitals answer."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

_DTYPES = {  # safetensors' names
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I16": np.int16,
    "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


class Spool:
    """Tensors by hospital, on disk for as long as a question is open.

    Nothing here outlives its round, so nothing is synced: what must survive a crash goes through the run's state.
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
        """Keep the tensors of one hospital; a second reply replaces the first.

        Raises:
            ValueError: A tensor is of a type that no model has.
        """
        for name, array in tensors.items():
            if array.dtype not in _DTYPES.values():
                raise ValueError(f"{name} is of type {array.dtype}, which no model has")
        save_file({name: np.asarray(array, order="C") for name, array in tensors.items()}, self._path(hospital))

    def read(self, hospital: str) -> dict[str, np.ndarray]:
        """Return the tensors of one hospital."""
        return self.open(hospital).read_all()

    def open(self, hospital: str) -> SpooledTensors:
        """Return the tensors of one hospital, to be read in slices."""
        return SpooledTensors(self._path(hospital))

    def _path(self, hospital: str) -> Path:
        return self._folder / f"{hospital}.safetensors"


class SpooledTensors:
    """One hospital's tensors on disk, read slice by slice. Plain reads: mapped pages would count as memory in use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        self._start = 8 + length
        self._entries = {name: entry for name, entry in header.items() if name != "__metadata__"}

    def read_all(self) -> dict[str, np.ndarray]:
        """Return every tensor, in its shape."""
        shapes = {name: tuple(entry["shape"]) for name, entry in self._entries.items()}
        return {name: self.read(name, 0, math.prod(shape)).reshape(shape) for name, shape in shapes.items()}

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return elements [start, stop) of a tensor, flattened.

        Raises:
            ValueError: The tensor is not there, or is shorter.
        """
        entry = self._entries.get(name)
        if entry is None or not 0 <= start <= stop <= math.prod(entry["shape"]):
            raise ValueError(f"{name}[{start}:{stop}] is not in the spooled reply")
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        with open(self._path, "rb") as file:
            file.seek(self._start + entry["data_offsets"][0] + start * dtype.itemsize)
            return np.fromfile(file, dtype, stop - start)
