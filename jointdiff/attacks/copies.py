"""Copies: do generated images lie nearer to training images than fresh images of the same kind would?

The yardstick are held-out real images: however near the nearest training image of one of them is, that nearness is no
copy. N queries, M training images; images uint8 [N,H,W,C].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jointdiff.fidelity import FeatureNet
from jointdiff.intervals import Estimate, wilson

NUM_NEIGHBOURS = 50  # that "relative" distance compares with (Carlini et al., USENIX Security 2023)
PERCENTILE = 1.0  # of the held-out images' distances


@dataclass(frozen=True)
class Nearness:
    """How many samples are suspiciously near in one measure of distance."""

    measure: str  # pixels | features, with ", relative" for the share of the distance to the other neighbours
    below_percentile: Estimate  # share of samples nearer than the 1st percentile of held-out images: by chance 1%
    below_all: Estimate  # share of samples nearer than every held-out image
    median_samples: float
    median_heldout: float


@dataclass(frozen=True)
class Copies:
    """What was found among generated samples."""

    num_samples: int
    num_training: int
    num_heldout: int
    num_exact: int  # samples that equal a training image, or its mirror image, in every pixel
    copied: Estimate  # share of samples that every measure calls nearer than the 1st percentile
    measures: tuple[Nearness, ...]
    closest: np.ndarray  # rows of the samples, most suspicious first
    nearest: np.ndarray  # [N]: row of each sample's nearest training image in relative pixel distance


def measure_copies(samples: np.ndarray, training: np.ndarray, heldout: np.ndarray) -> Copies:
    """Compare samples with a site's training images; mirror images count as the images, since training shows them so.

    Args:
        samples, training, heldout: At least one image each. `heldout` must hold no image of `training`.

    Raises:
        ValueError: One set is empty.
    """
    if not (len(samples) and len(training) and len(heldout)):
        raise ValueError(f"{len(samples)} samples, {len(training)} training and {len(heldout)} held-out images: none?")
    known = np.concatenate([training, training[:, :, ::-1]])
    spaces = {"pixels": _pixels, "features": FeatureNet(samples.shape[3]).features}
    found: list[Nearness] = []
    suspicious = np.ones(len(samples), dtype=bool)
    for name, embed in spaces.items():
        references = embed(known)
        pairs = zip(nearest(embed(samples), references)[:2], nearest(embed(heldout), references)[:2], strict=True)
        for measure, (own, others) in zip((name, f"{name}, relative"), pairs, strict=True):
            near = own < np.percentile(others, PERCENTILE)
            suspicious &= near
            medians = float(np.median(own)), float(np.median(others))
            found.append(Nearness(measure, _share(near), _share(own < others.min()), *medians))
    distance, relative, row = nearest(_pixels(samples), _pixels(known))
    return Copies(
        num_samples=len(samples), num_training=len(training), num_heldout=len(heldout),
        num_exact=int((distance == 0).sum()), copied=_share(suspicious), measures=tuple(found),
        closest=np.argsort(relative, kind="stable"), nearest=row % len(training),
    )  # fmt: skip


def nearest(queries: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the nearest reference of every query.

    Args:
        queries, references: float64 [N,D] and [M,D].

    Returns:
        Euclidean distance [N]; that distance as a share of the mean distance to the 50 nearest references, 0 to 1 [N]:
        a picture that is merely smooth, and so not far from anything, has no small one; the reference's row [N].
    """
    squares = (references**2).sum(axis=1)
    distances, shares, rows = [], [], []
    for start in range(0, len(queries), 256):
        q = queries[start : start + 256]
        all_squared = (q**2).sum(axis=1)[:, None] - 2 * q @ references.T + squares
        row = all_squared.argmin(axis=1)
        exact = np.sqrt(((q - references[row]) ** 2).sum(axis=1))  # the expansion loses digits near 0
        count = min(NUM_NEIGHBOURS, len(references))
        near = np.sqrt(np.clip(np.partition(all_squared, count - 1, axis=1)[:, :count], 0, None)).mean(axis=1)
        distances.append(exact)
        shares.append(np.divide(exact, near, out=np.zeros_like(exact), where=exact > 0))
        rows.append(row)
    return np.concatenate(distances), np.concatenate(shares), np.concatenate(rows)


def repeats(images: np.ndarray) -> int:
    """Return how many images equal an earlier one of the set in every pixel."""
    return len(images) - len({image.tobytes() for image in images})


def also_in(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return which images are in the other set too, pixel by pixel: bool [N]."""
    known = {image.tobytes() for image in others}
    return np.array([image.tobytes() in known for image in images], dtype=bool)


def _pixels(images: np.ndarray) -> np.ndarray:
    """Return grey levels as rows whose distance is the root mean square difference of two images."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    return flat / np.sqrt(flat.shape[1])


def _share(hits: np.ndarray) -> Estimate:
    return wilson(int(hits.sum()), len(hits))
