"""The head's sums in few bytes: products of features as correlations of 10 bits, all else exact.

Most of what `head_sums` returns are products x_i x_j summed over images, symmetric matrices in float64. Sums and counts
tell their means, their diagonals the variances; what is left are correlations, numbers in [-1, 1] that are off by at
most 1 / 1022 here. The head is solved with a penalty of about 1 on features of unit variance, which is far above that;
raw products of so many bits would lose the variances in the squares of the means. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jointdiff import codec_wire

Sums = dict[str, np.ndarray]
STEPS = 511  # of a correlation from 0 to 1
# The sums of products: name -> the sums and counts of the same images.
_PRODUCTS = {"products": ("sum", "count"), "group_products": ("group_sum", "group_count")}
_DIAGONAL, _CORRELATION = ".diagonal", ".correlation"


def pack(sums: Mapping[str, np.ndarray]) -> Sums:
    """Return what travels for sums of `head_sums`; sums without products come back as they are.

    Raises:
        ValueError: A value is not finite.
    """
    packed = {}
    for name, array in sums.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinite values: has the training diverged?")
        if name not in _PRODUCTS:
            packed[name] = array
            continue
        mean, count, rows, columns = _frame(sums, name)
        diagonal = np.ascontiguousarray(array[..., rows == columns])
        spread = _spread(diagonal, mean, count)
        centred = array / count - mean[..., rows] * mean[..., columns]
        scale = spread[..., rows] * spread[..., columns]
        correlation = np.divide(centred, scale, out=np.zeros_like(centred), where=scale > 0)
        steps = np.rint(np.clip(correlation, -1, 1) * STEPS).astype(np.int16)
        packed[name + _DIAGONAL] = diagonal
        packed[name + _CORRELATION] = codec_wire.squeeze(steps[..., rows != columns].reshape(-1))
    return packed


def unpack(packed: Mapping[str, np.ndarray], like: Mapping[str, np.ndarray], *, canonical: bool = False) -> Sums:
    """Return the sums that `pack` packed, but for the correlations' rounding.

    Args:
        like: Sums over no image: give names, shapes and types.
        canonical: As in codec_wire.unpack.

    Raises:
        ValueError: This is not what `pack` makes; says what is wrong.
    """
    wanted = set(forms(like))
    if packed.keys() != wanted:
        raise ValueError(f"the names of the sums are others: {sorted(map(str, packed.keys() ^ wanted))[:3]}")
    sums: Sums = {}
    for name, form in forms(like).items():
        array = packed[name]
        if form is not None and (array.shape != form or array.dtype != np.float64 or not np.isfinite(array).all()):
            raise ValueError(f"{name} is {array.dtype} {list(array.shape)}, or holds NaN or infinite values")
        if name in like:
            sums[name] = array
    for name in _PRODUCTS.keys() & like.keys():
        mean, count, rows, columns = _frame(sums, name)
        diagonal, off = packed[name + _DIAGONAL], rows != columns
        shape = (*like[name].shape[:-1], int(off.sum()))
        stream = packed[name + _CORRELATION]
        steps = codec_wire.expand(name + _CORRELATION, stream, int(np.prod(shape)), np.dtype(np.int16), canonical)
        if (np.abs(steps.astype(np.int32)) > STEPS).any():
            raise ValueError(f"{name}{_CORRELATION} holds a correlation beyond 1")
        spread = _spread(diagonal, mean, count)
        full = count * mean[..., rows] * mean[..., columns]
        scale = spread[..., rows[off]] * spread[..., columns[off]]
        full[..., off] += count * scale * (steps.reshape(shape) / STEPS)
        full[..., ~off] = diagonal
        if not np.isfinite(full).all():
            raise ValueError(f"{name} becomes infinite")
        sums[name] = full
    return {name: sums[name] for name in like}


def forms(like: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...] | None]:
    """Return name and shape of each array that travels: float64, or None for a stream of bytes."""
    found: dict[str, tuple[int, ...] | None] = {}
    for name, array in like.items():
        if name in _PRODUCTS:
            found[name + _DIAGONAL] = (*array.shape[:-1], like["sum"].shape[0])
            found[name + _CORRELATION] = None
        else:
            found[name] = array.shape
    return found


def _frame(sums: Mapping[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return means [...,D] and counts [...,1] (at least 1) of some products, and the rows and columns of a triangle."""
    total, number = (sums[part] for part in _PRODUCTS[name])
    count = np.maximum(number[..., None], 1.0)
    rows, columns = np.triu_indices(total.shape[-1])
    return total / count, count, rows, columns


def _spread(diagonal: np.ndarray, mean: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.sqrt(np.clip(diagonal / count - mean**2, 0, None))
