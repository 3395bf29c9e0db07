"""Merging that bears a few hospitals whose updates are wrong: trimmed mean, coordinate median, Krum.

Pure: they see the hospitals' tensors through `Sliced`, some values at a time, so memory is the same for 4 and for 64
hospitals. All hospitals count alike: a weight that a hospital names itself would be a lever for the wrong ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from server.slices import Sliced, Tensors, slices


def trimmed_mean(parts: Sequence[Sliced], like: Mapping[str, np.ndarray], *, num_faulty: int) -> Tensors:
    """Return, coordinate by coordinate, the mean without the `num_faulty` lowest and highest values.

    Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018. With too few
    parts to trim that many from both ends, as many are trimmed as leave one.

    Args:
        parts: The hospitals' tensors, of names and shapes as in `like`.
        like: Gives names, shapes and dtypes.
        num_faulty: >= 0; 0 is the plain mean.
    """
    trim = min(num_faulty, (len(parts) - 1) // 2)

    def rule(values: np.ndarray) -> np.ndarray:
        return np.sort(values, axis=0)[trim : len(values) - trim].mean(axis=0)

    return _by_coordinate(parts, like, rule)


def median(parts: Sequence[Sliced], like: Mapping[str, np.ndarray]) -> Tensors:
    """Return the median of every coordinate (Yin et al., ICML 2018)."""
    return _by_coordinate(parts, like, lambda values: np.median(values, axis=0))


def krum(parts: Sequence[Sliced], like: Mapping[str, np.ndarray], *, num_faulty: int, num_chosen: int = 1) -> list[int]:
    """Return which parts lie closest to their neighbours, best first: Krum for one, multi-Krum for more.

    A part's score is the sum of its squared distances to its n - f - 2 nearest others (Blanchard et al., "Machine
    Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017). Their guarantee needs n >= 2f + 3;
    with fewer replies at least the nearest one counts.

    Args:
        num_faulty: f >= 0.
        num_chosen: How many indices to return; at most as many as there are parts.
    """
    count = len(parts)
    distances = np.zeros((count, count))
    for name, start, stop in slices(like, count):
        values = _stack(parts, name, start, stop)
        values -= values.mean(axis=0)  # |a - b|^2 = a.a + b.b - 2 a.b loses its digits far from the origin
        products = values @ values.T
        squares = np.diag(products)
        distances += np.clip(squares[:, None] + squares - 2 * products, 0, None)
    np.fill_diagonal(distances, 0)
    nearest = max(1, count - num_faulty - 2)
    scores = np.sort(distances, axis=1)[:, 1 : 1 + nearest].sum(axis=1)  # column 0 is the distance to itself
    return [int(i) for i in np.argsort(scores, kind="stable")[:num_chosen]]


def _by_coordinate(
    parts: Sequence[Sliced], like: Mapping[str, np.ndarray], rule: Callable[[np.ndarray], np.ndarray]
) -> Tensors:
    merged = {name: np.empty(array.shape, array.dtype) for name, array in like.items()}
    for name, start, stop in slices(like, len(parts)):
        merged[name].reshape(-1)[start:stop] = rule(_stack(parts, name, start, stop))
    return merged


def _stack(parts: Sequence[Sliced], name: str, start: int, stop: int) -> np.ndarray:
    return np.stack([part.read(name, start, stop).astype(np.float64) for part in parts])
