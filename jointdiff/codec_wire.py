"""Encoded tensors as they travel: each flat array squeezed without loss into bytes, under the codec's name and version.

Bytes of equal weight are put side by side (the exponents of all values, then their mantissas) and written as a zlib
stream of Huffman codes and runs. It is checked by its own sum, and unpacked to the length that is due and not a byte
further. One array has one stream: `unpack(..., canonical=True)` refuses another that says the same. Pure.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

from jointdiff import codecs
from jointdiff.codecs import Codec, Layout, Tensors


def pack(codec: Codec, tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Return what travels for these tensors: as they are for `fp32`, else one array of bytes for each part.

    Raises:
        ValueError: The codec cannot carry them.
    """
    if codec.plain:
        return dict(tensors)
    return {f"{codec.name}.{part}": squeeze(array) for part, array in codec.encode(tensors).items()}


def unpack(codec: Codec, packed: Mapping[str, np.ndarray], layout: Layout, *, canonical: bool = False) -> Tensors:
    """Return the tensors that `pack` packed, but for the codec's error.

    Args:
        layout: Names and shapes of the tensors.
        canonical: Whether streams that `pack` would have written otherwise are refused: they could hide something.

    Raises:
        ValueError: This is not what `pack` makes for such tensors; says what is wrong.
    """
    if codec.plain:
        if {name: tuple(array.shape) for name, array in packed.items()} != dict(layout):
            raise ValueError("the names or shapes of the tensors are not those that were due")
        return {name: packed[name] for name in layout}
    wanted = names(codec, layout)
    if packed.keys() != set(wanted):
        odd = sorted(str(name) for name in packed.keys() ^ set(wanted))
        raise ValueError(f"the names are not those of the codec {codec.name}: missing or unknown are {odd[:3]}")
    encoded = {}
    for name, part in wanted.items():
        encoded[part] = expand(name, packed[name], *codec.parts(layout)[part], canonical)
    return codec.decode(encoded, layout)


def round_trip(codec: Codec, tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Return what the other side will have of these tensors; for `fp32` they themselves."""
    if codec.plain:
        return dict(tensors)
    return codec.decode(codec.encode(tensors), codecs.layout_of(tensors))


def names(codec: Codec, layout: Layout) -> dict[str, str]:
    """Return the names under which a codec's parts travel, and the parts: all are uint8 of one dimension."""
    return {f"{codec.name}.{part}": part for part in codec.parts(layout)}


def squeeze(array: np.ndarray) -> np.ndarray:
    """Return the bytes [n] that stand for a flat array."""
    planes = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).view(np.uint8)
    stream = zlib.compressobj(level=6, memLevel=9, strategy=zlib.Z_RLE)
    data = stream.compress(planes.reshape(-1, array.dtype.itemsize).T.tobytes()) + stream.flush()
    return np.frombuffer(data, np.uint8)


def expand(name: str, packed: np.ndarray, length: int, dtype: np.dtype, canonical: bool = False) -> np.ndarray:
    """Return the flat array that bytes stand for.

    Args:
        name: For the text of an error.
        length: That is due.
        canonical: Whether another stream than `squeeze` writes is refused.

    Raises:
        ValueError: They stand for none of this length and type.
    """
    if packed.dtype != np.uint8 or packed.ndim != 1:
        raise ValueError(f"{name} is {packed.dtype} {list(packed.shape)}, not bytes in a row")
    wanted = length * dtype.itemsize
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(packed.tobytes(), wanted + 1)
    except zlib.error:
        raise ValueError(f"{name} is damaged: it cannot be unpacked") from None
    if len(data) != wanted or not stream.eof or stream.unused_data or stream.unconsumed_tail:
        raise ValueError(f"{name} has another length than the {wanted} bytes that are due, unpacked")
    planes = np.frombuffer(data, np.uint8).reshape(dtype.itemsize, length)
    values = np.ascontiguousarray(planes.T).reshape(-1).view(dtype.newbyteorder("<"))
    values = values.astype(dtype, copy=False)
    if canonical and not np.array_equal(squeeze(values), packed):
        raise ValueError(f"{name} is not the stream that is written for its values")
    return values
