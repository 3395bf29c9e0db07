"""Many tensors as a few arrays of bytes, for the wire: Flower sends, stores and asks for every array by itself. Pure.

A model of a hundred tensors costs Flower two objects for each, at every station between server and site. A parcel is a
safetensors file of at most PARCEL_BYTES (or of one larger tensor), so packing needs that much memory and no model's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

PARCEL_BYTES = 4_000_000  # below the size at which Flower cuts an array into pieces


def pack(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return parcels by name, uint8 [bytes]; the same tensors give the same bytes, whatever their order.

    Args:
        tensors: Numbers of any shape; float, integer or bool.
    """
    return {f"parcel-{number:04d}": np.frombuffer(save(part), np.uint8) for number, part in enumerate(_parts(tensors))}


def unpack(parcel: np.ndarray) -> dict[str, np.ndarray]:
    """Return the tensors of one parcel.

    Args:
        parcel: uint8 [bytes], from anybody.

    Raises:
        ValueError: It is none.
    """
    if parcel.dtype != np.uint8 or parcel.ndim != 1:
        raise ValueError("a parcel is a row of bytes")
    try:
        return dict(load(parcel.tobytes()))
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"a parcel cannot be opened ({type(error).__name__})") from None


def unpack_all(parcels: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors of parcels that come one by one.

    Raises:
        ValueError: One is none, or two hold a tensor of the same name.
    """
    found: dict[str, np.ndarray] = {}
    for parcel in parcels:
        part = unpack(parcel)
        if found.keys() & part.keys():
            raise ValueError("two parcels hold a tensor of the same name")
        found |= part
    return found


def _parts(tensors: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    part: dict[str, np.ndarray] = {}
    size = 0
    for name in sorted(tensors):
        tensor = np.array(tensors[name], order="C")  # of its own: a view's memory may hold more than its numbers
        if part and size + tensor.nbytes > PARCEL_BYTES:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += tensor.nbytes
    if part:
        yield part
