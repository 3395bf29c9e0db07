"""Regions: which pixels an edit may change."""

from __future__ import annotations

import torch

from jointdiff.regions import change_map, smooth, strongest
from jointdiff.sampling import guide_to_margin, sample_ddim
from jointdiff.schedule import cosine_alpha_bar

ALPHA_BAR = cosine_alpha_bar(1000)


def test_smoothing_keeps_the_mean_of_a_plane_and_spreads_a_point():
    assert torch.allclose(smooth(torch.full((1, 1, 6, 6), 0.4), 3), torch.full((1, 1, 6, 6), 0.4))
    point = torch.zeros(1, 1, 7, 7)
    point[0, 0, 3, 3] = 9.0
    assert smooth(point, 3)[0, 0, 2:5, 2:5].tolist() == [[1.0] * 3] * 3 and smooth(point, 3).sum() == 9
    assert torch.equal(smooth(point, 1), point)


def test_the_strongest_share_of_each_image_is_taken():
    change = torch.arange(100.0).view(1, 1, 10, 10).repeat(2, 1, 1, 1)
    small, large = strongest(change, torch.tensor([0.1, 0.5]), edge=1)
    assert small.sum() == 10 and bool((small[0, 9] == 1).all())
    assert large.sum() == 50 and bool((large[0, 5:] == 1).all())
    soft = strongest(change, torch.tensor([0.5, 0.5]))
    assert 0 < soft[0, 0, 4, 5] < 1 and soft.max() <= 1 and soft.min() == 0


def test_the_change_is_a_mean_over_channels():
    images = torch.zeros(1, 3, 8, 8)
    edited = images.clone()
    edited[0, 1] = -0.3
    assert torch.allclose(change_map(images, edited), torch.full((1, 1, 8, 8), 0.1))


def test_nothing_outside_the_region_changes_and_the_margin_is_reached():
    images = torch.zeros(2, 1, 8, 8)
    region = torch.zeros(2, 1, 8, 8)
    region[:, :, :4] = 1.0

    def margin(x):
        return x.sum(dim=(1, 2, 3))

    def halves(x, _t):
        return 0.5 * x

    guided = guide_to_margin(
        halves, margin, torch.tensor([8.0, -50.0]), max_step=1.0, originals=images, region=region
    )  # fmt: skip
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    edited = sample_ddim(guided, noise, [500, 250, 0], ALPHA_BAR)
    assert not edited[:, :, 4:].any() and edited[:, :, :4].any()
    assert torch.allclose(margin(edited[:1]), torch.tensor([8.0]), atol=1e-3)
    assert margin(edited[1:]) > -50, "where the margin is there already, nothing is pushed"
