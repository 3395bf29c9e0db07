import pytest
import torch

from jointdiff.augment import (
    LATENT_VIEWS,
    PIXEL_VIEWS,
    cutout,
    moved,
    noisy,
    recolour,
    rescaled,
    strong_view,
    views_of,
    warp,
    weak_view,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("view", [weak_view, strong_view])
def test_views_keep_shape_and_range_and_repeat_with_the_seed(view, channels):
    x = torch.rand(4, channels, 28, 28, generator=generator()) * 2 - 1
    out = view(x, generator(1))
    assert out.shape == x.shape and out.dtype == x.dtype
    assert out.min() >= -1 - 1e-5 and out.max() <= 1 + 1e-5
    assert torch.equal(out, view(x, generator(1)))
    assert not torch.equal(out, view(x, generator(2)))


@pytest.mark.parametrize("view", [weak_view, strong_view])
def test_every_image_of_a_batch_is_changed_in_its_own_way(view):
    one = torch.rand(1, 1, 28, 28, generator=generator()) * 2 - 1
    out = view(one.expand(16, -1, -1, -1), generator(3))
    assert len(torch.unique(out.flatten(1), dim=0)) > 12


def test_a_warp_by_nothing_is_the_identity():
    x = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(warp(x, generator(), degrees=0, shift=0, zoom=0, flip=False), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(recolour(x * 0.9, generator(), strength=0), x * 0.9, atol=1e-5, rtol=0)


def test_a_flip_mirrors_left_and_right():
    x = torch.rand(64, 1, 8, 8)
    out = warp(x, generator(), degrees=0, shift=0, zoom=0, flip=True)
    same = (out - x).abs().flatten(1).amax(dim=1) < 1e-4
    mirrored = (out - x.flip(-1)).abs().flatten(1).amax(dim=1) < 1e-4
    assert bool((same | mirrored).all()) and 10 < int(mirrored.sum()) < 54


def test_a_grey_image_stays_grey_in_three_channels():
    x = torch.rand(4, 1, 16, 16).expand(-1, 3, -1, -1) * 2 - 1
    out = strong_view(x, generator(5))
    torch.testing.assert_close(out[:, 0], out[:, 2])


def test_cutout_covers_one_square_with_the_mean():
    x = torch.rand(8, 1, 32, 32)
    out = cutout(x, generator(2), share=0.5)
    changed = (out != x).float().mean(dim=(1, 2, 3))
    assert changed.max() <= 0.5**2 + 0.05 and changed.max() > 0


@pytest.mark.parametrize("view", LATENT_VIEWS)
def test_views_of_latents_repeat_with_the_seed_and_differ_from_latent_to_latent(view):
    one = torch.randn(1, 4, 16, 16, generator=generator()) / 3
    x = one.expand(32, -1, -1, -1)
    out = view(x, generator(1))
    assert out.shape == x.shape and out.isfinite().all()
    assert torch.equal(out, view(x, generator(1))) and not torch.equal(out, view(x, generator(2)))
    assert len(torch.unique(out.flatten(1), dim=0)) > 6


def test_latents_move_by_whole_positions_and_are_never_mirrored():
    x = torch.randn(1, 4, 16, 16, generator=generator())
    out = moved(x.expand(64, -1, -1, -1), generator(3), shift=0.06)
    assert torch.isin(out, x).all()  # no value lies between two of the latent's own
    inner, shifts = (slice(None), slice(2, -2), slice(2, -2)), [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    rolled = {shift: torch.roll(x[0], shift, (1, 2))[inner] for shift in shifts}
    found = [[shift for shift, part in rolled.items() if torch.equal(latent[inner], part)] for latent in out]
    assert all(len(shift) == 1 for shift in found) and len({shift[0] for shift in found}) == 9


def test_rescaling_and_noise_of_latents_by_nothing_are_the_identity():
    x = torch.randn(2, 4, 8, 8, generator=generator())
    assert torch.equal(rescaled(x, generator(), strength=0), x) and torch.equal(noisy(x, generator(), most=0), x)
    assert 0 < float((noisy(x, generator(), most=0.3) - x).std()) < 0.3


def test_a_network_gets_the_views_of_what_it_sees():
    assert views_of(latent=False) is PIXEL_VIEWS and (weak_view, strong_view) == PIXEL_VIEWS
    assert views_of(latent=True) is LATENT_VIEWS
