"""The phantoms' truth: masks, twins, determinism, sizes and variants."""

from __future__ import annotations

import time

import numpy as np
import pytest

from jointdiff.data import phantom
from jointdiff.data.base import ImageSet
from jointdiff.errors import ConfigError

FEW = {"train": 60, "val": 10, "test": 20}


def findings(images: ImageSet) -> np.ndarray:
    return images.labels.any(axis=1) if images.labels.ndim == 2 else images.labels > 0


@pytest.mark.parametrize("variant", phantom.VARIANTS)
@pytest.mark.parametrize("image_size", [28, 48])
def test_twin_differs_in_the_lesion_alone(variant: str, image_size: int) -> None:
    scans = phantom.load_phantom(variant, image_size=image_size, sizes=FEW).train
    assert scans.masks is not None and scans.twins is not None
    ill = findings(scans)
    np.testing.assert_array_equal(scans.images[~scans.masks], scans.twins[~scans.masks])
    np.testing.assert_array_equal(scans.masks.any(axis=(1, 2)), ill)
    np.testing.assert_array_equal(scans.images[~ill], scans.twins[~ill])
    contrast = np.abs(scans.images[ill].astype(int) - scans.twins[ill]).max(axis=(1, 2, 3))
    assert contrast.min() > 40, "a lesion that nobody sees is no lesion"


def test_a_lesion_is_small_and_lies_in_the_lung() -> None:
    scans = phantom.load_phantom(sizes=FEW).train
    assert scans.masks is not None and scans.twins is not None
    ill = scans.labels == 1
    share = scans.masks[ill].mean(axis=(1, 2))
    assert share.min() > 0.02 and share.max() < 0.09
    twins, masks = scans.twins[ill, ..., 0], scans.masks[ill]
    body = twins > 40
    in_lung = np.array(
        [twin[mask].mean() < twin[seen & ~mask].mean() for twin, mask, seen in zip(twins, masks, body, strict=True)]
    )
    assert in_lung.mean() > 0.95, "lungs are darker than the rest of the body"


def test_counts_and_share_of_ill() -> None:
    data = phantom.load_phantom()
    assert {name: len(getattr(data, name)) for name in phantom.SPLIT_SIZES} == phantom.SPLIT_SIZES
    assert data.train.labels.mean() == pytest.approx(phantom.ILL_FRACTION, abs=0.001)


def test_the_findings_of_a_multi_label_scan_are_independent() -> None:
    labels = phantom.load_phantom("multi-label").train.labels
    assert abs(np.corrcoef(labels.T)[0, 1]) < 0.06


def test_the_same_seed_draws_the_same_scans_and_another_seed_others() -> None:
    first, again, other = (phantom.load_phantom(seed=seed, sizes=FEW).train for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert (first.images != other.images).mean() > 0.5


def test_splits_share_no_scan() -> None:
    data = phantom.load_phantom(sizes=FEW)
    assert not (data.train.images[:10] == data.test.images[:10]).all(axis=(1, 2, 3)).any()


def test_the_same_patients_at_every_size() -> None:
    small, large = (phantom.load_phantom(image_size=size, sizes=FEW).train for size in (28, 56))
    np.testing.assert_array_equal(small.labels, large.labels)
    shrunk = large.images.reshape(60, 28, 2, 28, 2).mean(axis=(2, 4))
    assert np.abs(shrunk - small.images[..., 0]).mean() < 8


def test_rgb_has_three_different_channels() -> None:
    data = phantom.load_phantom("rgb", sizes=FEW)
    assert data.info.channels == 3 and data.train.images.shape == (60, 28, 28, 3)
    assert np.ptp(data.train.images.mean(axis=(1, 2)), axis=1).mean() > 3


def test_unknown_variant_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'rgb'"):
        phantom.load_phantom("rbg")


@pytest.mark.slow
def test_the_default_set_is_drawn_within_seconds() -> None:
    start = time.perf_counter()
    phantom.load_phantom()
    assert time.perf_counter() - start < 10, "about 1 s on an idle core"
