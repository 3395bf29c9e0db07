"""How the hospitals' tensors become one: weighted sums in float64, of weights slice by slice.

Pure: arrays in, arrays out. Tensors are dicts name -> array; a hospital's weight in the sum is its number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from server.slices import Sliced, Tensors, slices


class WeightedSum:
    """A running sum of w_k * x_k in float64, divided once at the end.

    One hospital comes out bit for bit as it went in: a float32 times a whole number below 2**29 is exact in float64.

    >>> total = WeightedSum()
    >>> total.add({"w": np.array([1.0], np.float32)}, 3)
    >>> total.add({"w": np.array([5.0], np.float32)}, 1)
    >>> total.mean()["w"]
    array([2.], dtype=float32)
    """

    def __init__(self) -> None:
        self._sums: Tensors = {}
        self._dtypes: dict[str, np.dtype] = {}
        self.weight = 0.0
        self.num_added = 0

    def add(self, tensors: Mapping[str, np.ndarray], weight: float) -> None:
        """Add one hospital's tensors; they are not kept.

        Args:
            weight: Positive, e.g. the number of images.

        Raises:
            ValueError: The weight is not positive and finite, or names or shapes differ from the first hospital's.
        """
        if not 0 < weight < float("inf"):
            raise ValueError(f"A weight in the sum must be positive and finite, not {weight}.")
        if not self.num_added:
            self._sums = {name: np.zeros(array.shape, np.float64) for name, array in tensors.items()}
            self._dtypes = {name: array.dtype for name, array in tensors.items()}
        if tensors.keys() != self._sums.keys():
            raise ValueError(f"The tensors' names differ: {sorted(tensors.keys() ^ self._sums.keys())[:3]}")
        for name, array in tensors.items():
            if array.shape != self._sums[name].shape:
                raise ValueError(f"The shape of {name} differs: {array.shape}, not {self._sums[name].shape}.")
        for name, array in tensors.items():
            self._sums[name] += weight * array.astype(np.float64)
        self.weight += weight
        self.num_added += 1

    def total(self) -> Tensors:
        """Return the sums in float64."""
        return {name: array.copy() for name, array in self._sums.items()}

    def mean(self) -> Tensors:
        """Return the weighted mean in the dtype of the first hospital's tensors.

        Raises:
            ValueError: Nothing was added.
        """
        if not self.num_added:
            raise ValueError("There is nothing to average: no hospital's tensors were added.")
        return {name: (array / self.weight).astype(self._dtypes[name]) for name, array in self._sums.items()}


def fedavg(parts: Sequence[Sliced], weights: Sequence[float], like: Mapping[str, np.ndarray]) -> Tensors:
    """Return the average of the hospitals' weights, weighted by their numbers of images; memory holds one model.

    w = sum_k n_k w_k / sum_k n_k (McMahan et al., "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", AISTATS 2017, algorithm 1), summed in float64 in the hospitals' order.

    Args:
        parts: The hospitals' tensors, of names and shapes as in `like`.
        weights: n_k, none negative; a hospital of weight 0 is not read.
        like: Gives names, shapes and dtypes.

    Raises:
        ValueError: A weight is negative or not finite, or all are 0.
    """
    if not all(0 <= weight < float("inf") for weight in weights) or not any(weights):
        raise ValueError(f"The weights of a mean must be finite, none negative, and not all 0: {list(weights)}.")
    counted = [(part, weight) for part, weight in zip(parts, weights, strict=True) if weight]
    merged = {name: np.empty(array.shape, array.dtype) for name, array in like.items()}
    for name, start, stop in slices(like):
        total = np.zeros(stop - start, np.float64)
        for part, weight in counted:
            total += weight * part.read(name, start, stop).astype(np.float64)
        merged[name].reshape(-1)[start:stop] = total / sum(weights)
    return merged


def fedavg_by_tensor(
    parts: Sequence[Sliced], weights: Callable[[str], Sequence[float]], like: Mapping[str, np.ndarray]
) -> Tensors:
    """Return the average of the hospitals' weights, each tensor with hospitals' weights of its own.

    Args:
        parts: As `fedavg`.
        weights: n_k for a tensor's name. A tensor for which all are 0 stays as it is in `like`.
        like: Gives names, shapes and dtypes, in order.

    Raises:
        ValueError: As `fedavg`.
    """
    merged: Tensors = {}
    for name, array in like.items():
        counted = weights(name)
        merged |= fedavg(parts, counted, {name: array}) if any(counted) else {name: array.copy()}
    return merged


def merge_statistics(parts: Iterable[Mapping[str, np.ndarray]]) -> Tensors:
    """Return the plain sums in float64 of statistics that merge by addition."""
    total = WeightedSum()
    for part in parts:
        total.add(part, 1)
    return total.total()


def weighted_means(parts: Iterable[tuple[Mapping[str, float], float]]) -> dict[str, float]:
    """Return each scalar's weighted mean over the parts that have it and in which it is finite.

    >>> weighted_means([({"loss": 1.0, "acc": 0.5}, 1), ({"loss": 4.0, "acc": float("nan")}, 2)])
    {'acc': 0.5, 'loss': 3.0}
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for scalars, weight in parts:
        for name, value in scalars.items():
            if np.isfinite(value) and weight > 0:
                found.setdefault(name, []).append((float(value), float(weight)))
    return {
        name: sum(value * weight for value, weight in values) / sum(weight for _, weight in values)
        for name, values in sorted(found.items())
    }
