"""COUT, the deletion/insertion curve of counterfactuals (Khorram and Fuxin, CVPR 2022).

An edit that changes the decision by few, well-placed pixels scores near 1; one that needs all its pixels to tip the
decision at the last moment scores near -1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

NUM_STEPS = 16
Predict = Callable[[np.ndarray], np.ndarray]  # uint8 images [N, H, W, C] to probabilities [N, K]


def cout(
    originals: np.ndarray,
    edited: np.ndarray,
    targets: np.ndarray,
    predict: Predict,
    *,
    task: str = "multi-class",
    num_steps: int = NUM_STEPS,
) -> np.ndarray:
    """Return COUT of each edit: the area between the target's probability curve and the source's.

    The pixels of an edit are put into the original in order of their absolute change (summed over channels, largest
    first; equal ones from the top left), in T steps of equal size, so that x_0 is the original and x_T the edit. With
    AUC_k = (1/T) sum_{i=1..T} (p_k(x_{i-1}) + p_k(x_i)) / 2,  COUT = AUC_target - AUC_source, in [-1, 1].
    The source is the decision about the original; 0 where that is the target already. Multi-label: the target is the
    label's other answer, the source its present one, with p(source) = 1 - p(target).

    Args:
        originals, edited: uint8 [N, H, W, C].
        targets: Wanted class of each edit, or the label to turn over: int [N].
        predict: Gives probabilities [N, K] of uint8 images [N, H, W, C].
        task: multi-class or multi-label.
        num_steps: T >= 1; the model is asked T + 1 times about every scan.

    Returns:
        float64 [N].

    >>> def brightness(x):  # p(bright) = mean brightness
    ...     return np.stack([1 - x.mean((1, 2, 3)) / 255, x.mean((1, 2, 3)) / 255], axis=1)
    >>> black = np.zeros((1, 4, 4, 1), np.uint8)
    >>> cout(black, black + 255, np.array([1]), brightness).tolist()  # both lines cross in the middle
    [0.0]
    """
    n, height, width, _ = originals.shape
    num_pixels, rows = height * width, np.arange(n)
    if n == 0:
        return np.zeros(0)
    change = np.abs(edited.astype(np.int64) - originals).sum(axis=3).reshape(n, -1)
    rank = np.empty_like(change)
    np.put_along_axis(rank, np.argsort(-change, axis=1, kind="stable"), np.arange(num_pixels)[None], axis=1)
    rank = rank.reshape(n, height, width, 1)
    curve = np.empty((num_steps + 1, n))
    probs = predict(originals)
    source, shown = probs.argmax(axis=1), probs[rows, targets] >= 0.5
    for step in range(num_steps + 1):
        if step:
            probs = predict(np.where(rank < round(step * num_pixels / num_steps), edited, originals))
        if task == "multi-label":
            curve[step] = (2 * probs[rows, targets].astype(np.float64) - 1) * np.where(shown, -1, 1)
        else:
            curve[step] = probs[rows, targets].astype(np.float64) - probs[rows, source]
    return ((curve[:-1] + curve[1:]) / 2).mean(axis=0)
