"""Sums over reconstructions: closed forms, exact merging, nothing trusted, and the limits of a collapse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from jointdiff.reconstruction import ReconstructionStatistics, why_collapsed

Arrays = dict[str, np.ndarray]


def measured(num: int, seed: int = 0) -> ReconstructionStatistics:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((num, 1, 8, 8), generator=generator) * 2 - 1
    y = x + 0.1 * torch.randn(x.shape, generator=generator)
    return ReconstructionStatistics.from_images(x, y, torch.randn((num, 4, 2, 2), generator=generator))


def test_closed_forms() -> None:
    x = torch.zeros(2, 1, 4, 4)
    x[:, :, :2] = 0.8  # mean 0.4, variance 0.16
    z = torch.zeros(2, 4, 2, 2)
    z[:, 0, 0] = 2.0  # half of the positions: mean 1, variance 1
    found = ReconstructionStatistics.from_images(x, x + 0.04, z).finish()
    assert found["num_images"] == 2
    assert found["psnr"] == pytest.approx(10 * np.log10(4 / 0.0016), abs=1e-4)
    assert found["psnr_gain"] == pytest.approx(20.0, abs=1e-2)  # 0.16 over 0.0016
    assert found["reconstruction_l1"] == pytest.approx(0.04, abs=1e-5)
    assert found["latent_stds"] == pytest.approx([1.0, 0.0, 0.0, 0.0], abs=1e-5)
    assert found["latent_std"] == 0.0


def test_a_reconstruction_is_measured_as_the_picture_that_it_is() -> None:
    x = torch.ones(1, 1, 4, 4)
    assert ReconstructionStatistics.from_images(x, x + 5, torch.zeros(1, 4, 1, 1)).finish()["psnr"] == 100.0


def test_hospitals_merge_bit_for_bit_in_any_order() -> None:
    parts = [measured(n, seed=n) for n in (3, 5, 2)]
    one, other = parts[0].merge(parts[1:]), parts[2].merge([parts[1], parts[0]])
    assert all(np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays)
    assert one.num_images == 10
    mean = sum(p.finish()["psnr"] * p.num_images for p in parts) / 10
    assert one.finish()["psnr"] == pytest.approx(mean, abs=1e-4)


def test_what_travels_is_what_comes_back() -> None:
    found = measured(4)
    assert ReconstructionStatistics.from_arrays(found.to_arrays()).finish() == found.finish()


def _without(name: str) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.__delitem__(name)


def _set(name: str, value: np.ndarray) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (_without("psnr"), "the names are others"),
        (_set("more", np.zeros(1, np.int64)), "the names are others"),
        (_set("psnr", np.zeros(2, np.int64)), "psnr is int64"),
        (_set("latent_sum", np.zeros(4)), "latent_sum is float64"),
        (_set("squared_error", np.array([-1])), "squared_error cannot be so"),
        (_set("squared_error", np.array([2**63 - 1])), "no sane size"),
        (_set("counted", np.array([2, 4])), "format 2"),
        (_set("counted", np.array([1, -4])), "-4 images"),
        (_set("counted", np.array([1, 0])), "cannot be so for 0 images"),
    ],
)
def test_arrays_from_elsewhere_are_not_trusted(change: Callable[[Arrays], None], what: str) -> None:
    arrays = measured(4).to_arrays()
    change(arrays)
    with pytest.raises(ValueError, match=what):
        ReconstructionStatistics.from_arrays(arrays)


def test_nan_is_no_reconstruction() -> None:
    x = torch.zeros(1, 1, 4, 4)
    with pytest.raises(ValueError, match="no finite number"):
        ReconstructionStatistics.from_images(x, x * torch.nan, torch.zeros(1, 4, 1, 1))


def test_a_collapse_is_told_by_both_limits() -> None:
    good = {"psnr": 30.0, "psnr_gain": 12.0, "latent_std": 0.5}
    assert why_collapsed(good) == ""
    assert "standard deviation of 0.001, and 0.01" in why_collapsed({**good, "latent_std": 0.001})
    assert "0.4 dB nearer" in why_collapsed({**good, "psnr_gain": 0.4})
    assert "; " in why_collapsed({"psnr": float("nan"), "psnr_gain": float("nan"), "latent_std": float("nan")})
