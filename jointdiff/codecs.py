"""Tensors in few bytes: one pair of functions per codec, from a dict of float32 arrays to a few flat arrays and back.

What a hospital sends is the *change* of its weights; what the server sends, the weights. Tensors that weigh nothing
(norms, biases, the head's statistics: vectors, and all of fewer than MIN_LARGE values) stay in float32. Every tensor is
encoded by itself, so that a part of a model decodes as in the whole. Pure. To add a codec: its pair and its parts in
_CODECS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

Tensors = dict[str, np.ndarray]
Layout = Mapping[str, tuple[int, ...]]  # name -> shape; tensors are joined in the order of their names
PLAIN = "fp32"  # tensors as they are, under their own names
EXACT = "float32"  # the part that holds the small tensors
MIN_LARGE = 1024  # values
INT8_MAX = 127
MAX_SHARE = 0.5  # above it a dense codec is smaller


@dataclass(frozen=True)
class Codec:
    """A codec as it is agreed on: `fp32`, `bf16`, `int8` or `top-k:SHARE`."""

    name: str
    share: float = 0.0  # top-k: of each large tensor's values that travel

    @property
    def text(self) -> str:
        """What a person writes.

        >>> parse("top-k:0.05").text
        'top-k:0.05'
        """
        return f"{self.name}:{self.share:g}" if self.share else self.name

    @property
    def plain(self) -> bool:
        """Whether tensors travel as they are."""
        return self.name == PLAIN

    def parts(self, layout: Layout) -> dict[str, tuple[int, np.dtype]]:
        """Return length and type of each flat array that stands for tensors of this layout."""
        return _CODECS[self.name].parts(layout, self.share)

    def encode(self, tensors: Mapping[str, np.ndarray]) -> Tensors:
        """Return the flat arrays that stand for float32 tensors.

        Raises:
            ValueError: A value is not finite, or too large for the codec.
        """
        for name, array in tensors.items():
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds NaN or infinite values: has the training diverged?")
        return _CODECS[self.name].encode(tensors, self.share)

    def decode(self, encoded: Mapping[str, np.ndarray], layout: Layout) -> Tensors:
        """Return the float32 tensors of this layout that flat arrays stand for.

        Raises:
            ValueError: The arrays cannot have come from `encode`: says which, and what is wrong with it.
        """
        wanted = self.parts(layout)
        if encoded.keys() != wanted.keys():
            odd = sorted(str(name) for name in encoded.keys() ^ wanted.keys())
            raise ValueError(f"its parts are not those of the codec {self.name}: missing or unknown are {odd[:3]}")
        for name, (length, dtype) in wanted.items():
            found = encoded[name]
            if found.shape != (length,) or found.dtype != dtype:
                raise ValueError(f"its {name} is {found.dtype} {list(found.shape)}, not {dtype} [{length}]")
            if found.dtype.kind == "f" and not np.isfinite(found).all():
                raise ValueError(f"its {name} holds NaN or infinite values")
        decoded = _CODECS[self.name].decode(encoded, layout, self.share)
        return {name: decoded[name] for name in layout}


def parse(text: str) -> Codec:
    """Read `fp32`, `bf16`, `int8` or `top-k:SHARE`.

    Raises:
        ValueError: Anything else; says what is known.
    """
    name, colon, share = text.partition(":")
    if name == PLAIN and not colon:
        return Codec(PLAIN)
    if name not in _CODECS or (name != "top-k" and colon):
        raise ValueError(f"known are {PLAIN}, bf16, int8 and top-k:SHARE, such as top-k:0.05")
    if name != "top-k":
        return Codec(name)
    try:
        value = float(share)
    except ValueError:
        value = math.nan
    if not 0 < value <= MAX_SHARE:
        raise ValueError(f"the share of top-k must be above 0 and at most {MAX_SHARE:g}, such as top-k:0.05")
    return Codec(name, value)


def known() -> dict[str, int]:
    """Return every codec's name and version."""
    return {PLAIN: 1, **{name: entry.version for name, entry in _CODECS.items()}}


def layout_of(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Return the tensors' names and shapes."""
    return {name: tuple(array.shape) for name, array in tensors.items()}


def relative_error(wanted: Mapping[str, np.ndarray], decoded: Mapping[str, np.ndarray]) -> float:
    """Return ||decoded - wanted|| / ||wanted|| over all tensors, in float64; 0 where all wanted values are 0."""
    lost = kept = 0.0
    for name, array in wanted.items():
        values = array.astype(np.float64).reshape(-1)
        kept += float(values @ values)
        values -= decoded[name].reshape(-1)
        lost += float(values @ values)
    return math.sqrt(lost / kept) if kept else 0.0


def is_large(shape: tuple[int, ...]) -> bool:
    """Tell whether a tensor of this shape is encoded; else it stays in float32.

    >>> is_large((48, 24, 3, 3)), is_large((336,)), is_large((2, 336))
    (True, False, False)
    """
    return len(shape) > 1 and math.prod(shape) >= MIN_LARGE


def _large(layout: Layout) -> list[str]:
    return sorted(name for name, shape in layout.items() if is_large(shape))


def _small(layout: Layout) -> list[str]:
    return sorted(name for name, shape in layout.items() if not is_large(shape))


def _size(layout: Layout, names: Iterable[str]) -> int:
    return sum(math.prod(layout[name]) for name in names)


def _joined(arrays: Iterable[np.ndarray], dtype: type | np.dtype) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *(array.reshape(-1) for array in arrays)]).astype(dtype, copy=False)


def _exact(tensors: Mapping[str, np.ndarray]) -> Tensors:
    names = _small(layout_of(tensors))
    return {EXACT: _joined((tensors[name] for name in names), np.float32)} if names else {}


def _exact_part(layout: Layout) -> dict[str, tuple[int, np.dtype]]:
    names = _small(layout)
    return {EXACT: (_size(layout, names), np.dtype(np.float32))} if names else {}


def _cut(flat: np.ndarray, lengths: Iterable[int]) -> list[np.ndarray]:
    """Return the flat array in pieces of these lengths."""
    return np.split(flat, np.cumsum([0, *lengths])[1:-1]) if flat.size else [flat for _ in lengths]


def _exact_tensors(encoded: Mapping[str, np.ndarray], layout: Layout) -> Tensors:
    names = _small(layout)
    if not names:
        return {}
    pieces = _cut(encoded[EXACT], [math.prod(layout[name]) for name in names])
    return {name: np.array(piece).reshape(layout[name]) for name, piece in zip(names, pieces, strict=True)}


def to_bf16(values: np.ndarray) -> np.ndarray:
    """Return the upper 16 bits of float32 values as uint16, rounded to nearest, ties to even.

    Raises:
        ValueError: A value is beyond the largest bfloat16, 3.39e38.

    >>> from_bf16(to_bf16(np.array([1.0, 1.001, -3.14159], np.float32)))
    array([ 1.      ,  1.      , -3.140625], dtype=float32)
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    if ((rounded & 0x7F80) == 0x7F80).any():
        raise ValueError("a value is too large for bfloat16: has the training diverged?")
    return rounded


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """Return the float32 values of bfloat16 bits.

    Raises:
        ValueError: They stand for NaN or an infinite value.
    """
    if ((bits & 0x7F80) == 0x7F80).any():
        raise ValueError("its bf16 holds NaN or infinite values")
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _encode_bf16(tensors: Mapping[str, np.ndarray], _share: float) -> Tensors:
    """Take the nearest value with 8 bits of mantissa: the relative error of a value is at most 2^-8."""
    names = _large(layout_of(tensors))
    return {"bf16": _joined((to_bf16(tensors[name]) for name in names), np.uint16), **_exact(tensors)}


def _decode_bf16(encoded: Mapping[str, np.ndarray], layout: Layout, _share: float) -> Tensors:
    names = _large(layout)
    pieces = _cut(encoded["bf16"], [math.prod(layout[name]) for name in names])
    large = {name: from_bf16(piece).reshape(layout[name]) for name, piece in zip(names, pieces, strict=True)}
    return large | _exact_tensors(encoded, layout)


def _bf16_parts(layout: Layout, _share: float) -> dict[str, tuple[int, np.dtype]]:
    return {"bf16": (_size(layout, _large(layout)), np.dtype(np.uint16)), **_exact_part(layout)}


def _encode_int8(tensors: Mapping[str, np.ndarray], _share: float) -> Tensors:
    """Take q = round(x / s) in -127..127, with s = max |x| / 127 of the output channel: off by at most s / 2."""
    steps, scales = [], []
    for name in _large(layout_of(tensors)):
        rows = tensors[name].astype(np.float32, copy=False).reshape(len(tensors[name]), -1)
        scale = np.abs(rows).max(axis=1) / np.float32(INT8_MAX)
        safe = np.where(scale > 0, scale, np.float32(np.inf))  # of a channel without values all are 0
        steps.append(np.clip(np.rint(rows / safe[:, None]), -INT8_MAX, INT8_MAX).astype(np.int8))
        scales.append(scale)
    return {"int8": _joined(steps, np.int8), "scale": _joined(scales, np.float32), **_exact(tensors)}


def _decode_int8(encoded: Mapping[str, np.ndarray], layout: Layout, _share: float) -> Tensors:
    names = _large(layout)
    if (encoded["scale"] < 0).any():
        raise ValueError("its scale holds a negative value")
    if (encoded["int8"] == -128).any():
        raise ValueError("its int8 holds -128, which no encoder writes")
    steps = _cut(encoded["int8"], [math.prod(layout[name]) for name in names])
    scales = _cut(encoded["scale"], [layout[name][0] for name in names])
    large = {}
    for name, step, scale in zip(names, steps, scales, strict=True):
        rows = step.reshape(len(scale), -1).astype(np.float32)
        with np.errstate(over="ignore"):
            rows *= scale[:, None]
        if not np.isfinite(rows).all():
            raise ValueError("its scale is too large: values become infinite")
        large[name] = rows.reshape(layout[name])
    return large | _exact_tensors(encoded, layout)


def _int8_parts(layout: Layout, _share: float) -> dict[str, tuple[int, np.dtype]]:
    names = _large(layout)
    scales = sum(layout[name][0] for name in names)
    return {
        "int8": (_size(layout, names), np.dtype(np.int8)),
        "scale": (scales, np.dtype(np.float32)),
        **_exact_part(layout),
    }


def _num_kept(shape: tuple[int, ...], share: float) -> int:
    return max(1, math.ceil(share * math.prod(shape)))


def _gap_type(layout: Layout) -> np.dtype:
    """Return the smallest unsigned type that holds every index of every large tensor."""
    return np.min_scalar_type(max((math.prod(layout[name]) for name in _large(layout)), default=1) - 1)


def _encode_top_k(tensors: Mapping[str, np.ndarray], share: float) -> Tensors:
    """The largest values of every tensor, in bfloat16, and how many values lie between each and the one before it.

    By tensor, not over the model: no layer waits until its changes have grown past those of all others, and indices
    are short. What is left out is 0 for the receiver: without error feedback this is no codec to train with.
    """
    layout = layout_of(tensors)
    gaps, values = [], []
    for name in _large(layout):
        flat = np.ascontiguousarray(tensors[name], np.float32).reshape(-1)
        kept = _num_kept(layout[name], share)
        chosen = np.sort(np.argpartition(np.abs(flat), flat.size - kept)[flat.size - kept :])
        gaps.append(np.diff(chosen, prepend=-1) - 1)
        values.append(to_bf16(flat[chosen]))
    return {"gap": _joined(gaps, _gap_type(layout)), "bf16": _joined(values, np.uint16), **_exact(tensors)}


def _decode_top_k(encoded: Mapping[str, np.ndarray], layout: Layout, share: float) -> Tensors:
    names = _large(layout)
    lengths = [_num_kept(layout[name], share) for name in names]
    large = {}
    for name, gap, bits in zip(names, _cut(encoded["gap"], lengths), _cut(encoded["bf16"], lengths), strict=True):
        at = np.cumsum(gap.astype(np.int64) + 1) - 1
        size = math.prod(layout[name])
        if at[-1] >= size:
            raise ValueError(f"its gap leads to index {at[-1]} of {name}, which has {size} values")
        flat = np.zeros(size, np.float32)
        flat[at] = from_bf16(bits)
        large[name] = flat.reshape(layout[name])
    return large | _exact_tensors(encoded, layout)


def _top_k_parts(layout: Layout, share: float) -> dict[str, tuple[int, np.dtype]]:
    kept = sum(_num_kept(layout[name], share) for name in _large(layout))
    return {"gap": (kept, _gap_type(layout)), "bf16": (kept, np.dtype(np.uint16)), **_exact_part(layout)}


@dataclass(frozen=True)
class _Entry:
    version: int  # of what the parts mean: a change of it is another codec for the other side
    encode: Callable[[Mapping[str, np.ndarray], float], Tensors]
    decode: Callable[[Mapping[str, np.ndarray], Layout, float], Tensors]
    parts: Callable[[Layout, float], dict[str, tuple[int, np.dtype]]]


_CODECS = {
    "bf16": _Entry(1, _encode_bf16, _decode_bf16, _bf16_parts),
    "int8": _Entry(1, _encode_int8, _decode_int8, _int8_parts),
    "top-k": _Entry(1, _encode_top_k, _decode_top_k, _top_k_parts),
}
