"""KID is zero within its error for one distribution, and grows with damage; its error is an honest one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jointdiff.data import load_dataset
from jointdiff.fidelity import FeatureNet, KidResult, kid


@pytest.fixture(scope="module")
def scans() -> np.ndarray:
    return load_dataset("phantom").train.images[:800]


@pytest.fixture(scope="module")
def real(scans: np.ndarray) -> np.ndarray:
    return FeatureNet(1).features(scans[:400])


def against(real: np.ndarray, images: np.ndarray) -> KidResult:
    return kid(real, FeatureNet(1).features(images))


def noisy(scans: np.ndarray, level: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=scans.shape) * level
    return np.clip(np.rint(scans + noise), 0, 255).astype(np.uint8)


def blurred(scans: np.ndarray, times: int) -> np.ndarray:
    x = scans.astype(np.float64)
    for _ in range(times):
        for axis in (1, 2):
            x = (np.roll(x, 1, axis) + 2 * x + np.roll(x, -1, axis)) / 4
    return np.rint(x).astype(np.uint8)


def test_real_against_real_is_zero_within_its_error(scans: np.ndarray, real: np.ndarray) -> None:
    result = against(real, scans[400:])
    assert abs(result.value) < 3 * result.standard_error


@pytest.mark.parametrize(("damage", "levels"), [(noisy, (0, 16, 32, 64)), (blurred, (0, 1, 2, 4))])
def test_kid_grows_with_damage(scans: np.ndarray, real: np.ndarray, damage, levels) -> None:  # type: ignore[no-untyped-def]
    results = [against(real, damage(scans[400:], level)) for level in levels]
    values = [r.value for r in results]
    assert values == sorted(values)
    assert values[1] > 5 * results[1].standard_error  # the least damage is already seen
    assert values[-1] > 2 * values[1]


def test_a_few_repeated_images_are_not_the_distribution(scans: np.ndarray, real: np.ndarray) -> None:
    result = against(real, np.repeat(scans[400:405], 40, axis=0))
    assert result.value > 5 * result.standard_error


def test_the_error_is_the_spread_over_repeated_draws() -> None:
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.3):
        results = [kid(rng.normal(size=(60, 5)), rng.normal(size=(60, 5)) + shift) for _ in range(300)]
        values = np.array([r.value for r in results])
        claimed = np.sqrt(np.mean([r.standard_error**2 for r in results]))
        # A jackknife errs upwards, by at most sqrt(2) where both distributions are the same.
        assert 0.9 * values.std() < claimed < 1.6 * values.std()
        if shift == 0:
            assert abs(values.mean()) < 4 * values.std() / np.sqrt(300)  # unbiased


def test_kid_by_the_definition() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(5, 3)), rng.normal(size=(4, 3)) + 1
    k = lambda x, y: (x @ y / 3 + 1) ** 3  # noqa: E731
    aa = np.mean([k(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
    bb = np.mean([k(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j])
    ab = np.mean([k(x, y) for x in a for y in b])
    assert kid(a, b).value == pytest.approx(aa + bb - 2 * ab)


def test_subsets_give_the_same_within_the_errors() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(800, 5)), rng.normal(size=(600, 5)) + 0.3
    whole, parts = kid(a, b), kid(a, b, num_subsets=8, subset_size=100)
    assert abs(whole.value - parts.value) < 3 * parts.standard_error
    assert parts.standard_error < 2 * whole.standard_error
    assert kid(a, b, subset_size=100) == kid(a, b, subset_size=100)


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 28, 28), (3, 64, 48)])
def test_any_size_and_colour(channels: int, height: int, width: int) -> None:
    images = np.random.default_rng(3).integers(0, 256, (6, height, width, channels)).astype(np.uint8)
    features = FeatureNet(channels).features(images)
    assert np.isfinite(features).all() and len(np.unique(features[:, 0])) == 6
    assert np.allclose(features[2:4], FeatureNet(channels).features(images[2:4], batch_size=1), atol=1e-3)


def test_the_net_is_the_same_for_ever() -> None:
    # If this fails, the published KIDs no longer compare: change VERSION with it.
    ramp = np.arange(28 * 28, dtype=np.int64).reshape(1, 28, 28, 1) % 251
    features = FeatureNet(1).features(ramp.astype(np.uint8))[0]
    assert features[[0, 1, 2, 100, 417]] == pytest.approx([-0.2884, 1.4942, -0.0415, 1.5634, -1.2419], abs=2e-3)


@pytest.mark.parametrize(("shape", "dtype"), [
    ((2, 28, 28, 1), np.float32), ((2, 28, 28), np.uint8), ((2, 28, 28, 3), np.uint8), ((2, 28, 7, 1), np.uint8),
])  # fmt: skip
def test_wrong_images_are_refused(shape: tuple[int, ...], dtype: type) -> None:
    with pytest.raises(ValueError, match="Images must be"):
        FeatureNet(1).features(np.zeros(shape, dtype))


def test_wrong_features_are_refused() -> None:
    good = np.zeros((10, 3))
    cases = ((good, good[:3], "at least 4"), (good, np.zeros((10, 4)), "shapes"), (good * np.nan, good, "NaN"))
    for a, b, message in cases:
        with pytest.raises(ValueError, match=message):
            kid(a, b)


def test_maps_carry_gradients_and_are_those_of_the_features() -> None:
    net, images = FeatureNet(1), np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1), np.uint8)
    x = (torch.from_numpy(images.transpose(0, 3, 1, 2)).float() / 127.5 - 1).requires_grad_(True)
    maps = net.maps(x)
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 32, 32), (32, 16, 16), (64, 8, 8), (96, 4, 4)]
    sum(m.sum() for m in maps).backward()
    assert x.grad is not None and x.grad.abs().min(dim=0).values.count_nonzero() > 900
    layers = net._layers_for((32, 32))
    pooled = torch.cat([torch.cat([m.mean((2, 3)), m.std((2, 3), correction=0)], dim=1) for m in maps], dim=1)
    z = (pooled.detach() - torch.cat([k.mean for k in layers[1:]])) / torch.cat([k.deviation for k in layers[1:]])
    assert np.allclose((z / (1 + z.abs() / 4)).numpy(), net.features(images)[:, 2:], atol=1e-4)


def test_maps_of_large_images_need_no_filters_of_their_own() -> None:
    net = FeatureNet(1)
    assert net.maps(torch.zeros(1, 1, 128, 96))[0].shape == (1, 16, 128, 96)
    assert set(net._layers) == {(64, 64, "cpu")}
