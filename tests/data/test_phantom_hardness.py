"""The phantoms are hard enough to mean something: the four demands that were fixed before anything was tuned.

    pytest -m "slow or not slow" --log-cli-level=INFO tests/data/test_phantom_hardness.py

prints the measured numbers (about two minutes on one core).
"""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import nn
from torch.nn import functional as F

from jointdiff.augment import weak_view
from jointdiff.data import Dataset, ImageSet, load_dataset

PROBE_PENALTIES = (1e-4, 1e-3, 1e-2)
NUM_BINS = 32

log = logging.getLogger(__name__)


def linear_probe(data: Dataset) -> float:
    """Return the test balanced accuracy of logistic regression on pixels with all labels, the best over penalties."""
    train, test = (s.images.reshape(len(s), -1) / 127.5 - 1 for s in (data.train, data.test))
    scores = []
    for penalty in PROBE_PENALTIES:
        probe = LogisticRegression(C=penalty, max_iter=100, class_weight="balanced")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            probe.fit(train, data.train.labels)
        scores.append(balanced_accuracy_score(data.test.labels, probe.predict(test)))
    return float(max(scores))


def global_statistics(images: ImageSet) -> dict[str, float]:
    """Return the AUC of ill against healthy of every global statistic: mean, variance, and each histogram bin."""
    pixels = images.images.reshape(len(images), -1)
    bins = np.stack([(pixels // (256 // NUM_BINS) == b).sum(axis=1) for b in range(NUM_BINS)])
    statistics = {"mean": pixels.mean(axis=1), "variance": pixels.var(axis=1)}
    statistics |= {f"bin {b}": counts for b, counts in enumerate(bins)}
    return {name: float(roc_auc_score(images.labels > 0, value)) for name, value in statistics.items()}


class SmallNet(nn.Module):
    """Three convolutions with GroupNorm, mean and standard deviation over the image, one linear layer."""

    def __init__(self, channels: int, num_outputs: int) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(channels, 16, 5, stride=2, padding=2), nn.GroupNorm(8, 16), nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GroupNorm(8, 32), nn.SiLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.SiLU(),
        )  # fmt: skip
        self.head = nn.Linear(128, num_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits [B, K]."""
        maps = self.maps(x)
        return self.head(torch.cat([maps.mean(dim=(2, 3)), maps.std(dim=(2, 3))], dim=1))


def train_small_net(
    data: Dataset, rows: np.ndarray, *, num_steps: int = 600, batch_size: int = 64, seed: int = 0
) -> float:
    """Return the test balanced accuracy after training on `rows` alone (AdamW 1e-3, weak views as in every method)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = SmallNet(data.info.channels, data.info.num_outputs)
    images = torch.from_numpy(data.train.images[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1
    labels = torch.from_numpy(data.train.labels[rows])
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(num_steps):
        batch = torch.randint(len(rows), (batch_size,), generator=generator)
        loss = F.cross_entropy(net(weak_view(images[batch], generator)), labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        test = torch.from_numpy(data.test.images).permute(0, 3, 1, 2).float() / 127.5 - 1
        predicted = torch.cat([net(part).argmax(dim=1) for part in test.split(200)])
    return float(balanced_accuracy_score(data.test.labels, predicted))


def few_labels(data: Dataset, *, num_labels: int = 12, num_draws: int = 8) -> np.ndarray:
    """Return the small net's test balanced accuracy on `num_labels` labels in all, one per draw of the labels."""
    classes = np.unique(data.train.labels)
    scores = []
    for seed in range(num_draws):
        rng = np.random.default_rng(seed)
        groups = [
            rng.permutation(np.flatnonzero(data.train.labels == k))[: num_labels // len(classes)] for k in classes
        ]
        scores.append(train_small_net(data, np.concatenate(groups), seed=seed))
    return np.array(scores)


@pytest.fixture(scope="module")
def phantoms() -> Dataset:
    """The default data, in full."""
    return load_dataset("phantom")


def test_a_linear_probe_on_pixels_stays_below_070(phantoms: Dataset) -> None:
    score = linear_probe(phantoms)
    log.info("linear probe on pixels, all labels: balanced accuracy %.3f", score)
    assert score < 0.70


@pytest.mark.parametrize("name", ["phantom", "phantom:rgb"])
def test_no_global_statistic_tells_ill_from_healthy(name: str) -> None:
    data = load_dataset(name)
    for split in (data.train, data.test):
        aucs = global_statistics(split)
        worst = max(aucs, key=lambda statistic: abs(aucs[statistic] - 0.5))
        log.info("%s, %d scans, worst global statistic: %s, AUC %.3f", name, len(split), worst, aucs[worst])
        assert 0.40 < aucs[worst] < 0.60


@pytest.mark.slow
def test_a_small_net_learns_from_all_labels(phantoms: Dataset) -> None:
    score = train_small_net(phantoms, np.arange(len(phantoms.train)))
    log.info("small net, all labels: balanced accuracy %.3f", score)
    assert score >= 0.97


@pytest.mark.slow
def test_the_same_net_is_weak_on_12_labels(phantoms: Dataset) -> None:
    scores = few_labels(phantoms)
    log.info("small net, 12 labels: mean %.3f, sd %.3f, %d draws", scores.mean(), scores.std(ddof=1), len(scores))
    assert 0.60 <= scores.mean() <= 0.80
