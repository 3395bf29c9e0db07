"""The referee learns, is the same for the same seed, and its cache holds nobody back and misleads nobody."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from jointdiff import referee
from jointdiff.data import ImageSet, load_dataset
from jointdiff.referee import cached_referee, train_referee


def blobs(n: int, *, seed: int = 0, channels: int = 1, multi_label: bool = False) -> ImageSet:
    """Noise with a bright blob for class 1, a dark one for class 2; multi-label: each of the two by itself."""
    rng = np.random.default_rng(seed)
    images = rng.normal(120, 15, (n, 14, 14, channels))
    findings = rng.integers(0, 2, (n, 2))
    if not multi_label:
        findings[:, 1] *= 1 - findings[:, 0]
    for image, found in zip(images, findings, strict=True):
        for finding, sign in zip(found, (70, -70), strict=True):
            y, x = rng.integers(1, 10, 2)
            image[y : y + 3, x : x + 3] += sign * finding
    labels = findings if multi_label else findings[:, 0] + 2 * findings[:, 1]
    return ImageSet(np.clip(images, 0, 255).astype(np.uint8), labels.astype(np.int64), None, None, None)


@pytest.mark.parametrize(("multi_label", "channels", "num_outputs"), [(False, 1, 3), (True, 3, 2)])
def test_it_learns(multi_label: bool, channels: int, num_outputs: int) -> None:
    train, test = (blobs(400, seed=s, channels=channels, multi_label=multi_label) for s in (0, 1))
    task = "multi-label" if multi_label else "multi-class"
    judge = train_referee(train, num_outputs, task, steps=60)
    probs = judge.predict(test.images, batch_size=150)
    assert probs.shape == (400, num_outputs) and probs.dtype == np.float32
    assert judge.accuracy(test) > 0.9
    assert np.allclose(probs, judge(test.images), atol=1e-5)
    assert judge.predict(test.images[:0]).shape == (0, num_outputs)
    if not multi_label:
        assert np.allclose(probs.sum(1), 1, atol=1e-5)


def test_it_expects_no_class_before_it_has_looked_however_common() -> None:
    noise = np.random.default_rng(0).normal(120, 15, (200, 14, 14, 1)).clip(0, 255).astype(np.uint8)
    train = ImageSet(noise, (np.arange(200) % 10 > 0).astype(np.int64), None, None, None)
    unseen = blobs(200, seed=3).images
    assert 0.35 < train_referee(train, 2, "multi-class", steps=20).predict(unseen)[:, 1].mean() < 0.65


def test_unlabelled_images_change_nothing_and_the_seed_decides() -> None:
    train = blobs(60)
    hidden = ImageSet(np.concatenate([train.images, train.images[:9]]), np.append(train.labels, np.full(9, -1)),
                      None, None, None)  # fmt: skip
    torch.manual_seed(1)
    a = train_referee(train, 3, "multi-class", steps=3).predict(train.images)
    torch.manual_seed(2)
    b = train_referee(hidden, 3, "multi-class", steps=3).predict(train.images)
    c = train_referee(train, 3, "multi-class", steps=3, seed=1).predict(train.images)
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_without_labels_there_is_no_referee() -> None:
    train = blobs(5)
    with pytest.raises(ValueError, match="labelled"):
        train_referee(ImageSet(train.images, np.full(5, -1), None, None, None), 3, "multi-class")


def test_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, trained = blobs(60), []
    train_really = referee.train_referee
    monkeypatch.setattr(referee, "train_referee", lambda *a, **k: trained.append(1) or train_really(*a, **k))

    def get(data: ImageSet, **changes: int) -> np.ndarray:
        return cached_referee(tmp_path, data, 3, "multi-class", **({"steps": 3} | changes)).predict(train.images)

    first = get(train)
    assert np.array_equal(get(train), first) and len(trained) == 1
    other = ImageSet(train.images, np.roll(train.labels, 1), None, None, None)
    assert not np.array_equal(get(other), first) and len(trained) == 2  # other labels, another referee
    get(train, steps=4)
    assert len(trained) == 3
    for path in (tmp_path / "referees").iterdir():
        path.write_bytes(path.read_bytes()[:-50])
    assert np.array_equal(get(train), first) and len(trained) == 4  # damaged: made anew
    assert np.array_equal(get(train), first) and len(trained) == 4


@pytest.mark.parametrize("side", [28, 32, 64, 128])
def test_larger_images_are_brought_to_the_same_grid(side: int) -> None:
    network = referee._Network(1, 2, side)
    grid = network.blocks(network.stem(torch.zeros(1, 1, side, side)))
    assert 7 <= grid.shape[2] <= 8 and network(torch.zeros(1, 1, side, side)).shape == (1, 2)


def test_augmentation_keeps_whole_pixels_and_draws_for_every_image() -> None:
    x = torch.zeros(64, 1, 28, 28)
    x[:, :, 12, 9] = 1
    moved = referee._augment(x, torch.Generator().manual_seed(0))
    spots = [(m - m.amin() > 1e-3).nonzero().tolist() for m in moved[:, 0]]
    assert all(len(spot) == 1 for spot in spots)  # one pixel stays one pixel
    assert {row for ((row, _),) in spots} == {10, 11, 12, 13, 14}
    assert {column for ((_, column),) in spots} == {*range(7, 12), *range(16, 21)}  # shifted, flipped and shifted


@pytest.mark.slow
def test_it_reads_the_phantoms() -> None:
    data = load_dataset("phantom")
    judge = train_referee(data.train, data.info.num_outputs, data.info.task)
    assert judge.accuracy(data.test) >= 0.97
