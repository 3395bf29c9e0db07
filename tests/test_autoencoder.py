"""The autoencoder: shapes of every preset, its loss against closed forms, and that a few steps teach it phantoms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from jointdiff.autoencoder import Autoencoder, autoencoder_loss, feature_distance, kl_divergence, sampled
from jointdiff.autoencoder_config import AutoencoderConfig
from jointdiff.config import autoencoder_config
from jointdiff.data.phantom import draw_scans, phantom_info
from jointdiff.errors import ConfigError
from jointdiff.fidelity import FeatureNet
from jointdiff.latent_scale import psnr
from jointdiff.model import to_network
from jointdiff.presets import preset_names

TINY = AutoencoderConfig(name="tiny", image_size=28, widths=(16, 32))
WEIGHTS = {"l1_weight": 1.0, "l2_weight": 0.0, "feature_weight": 0.0, "kl_weight": 0.0}


def scans(size: int, num: int) -> np.ndarray:
    return draw_scans(phantom_info(image_size=size), num, np.random.default_rng(0)).images


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", preset_names("autoencoder"))
def test_every_preset_maps_its_size_to_small_latents_and_back(name: str, channels: int) -> None:
    size = int(name.split("-")[-1])
    config = autoencoder_config(size, channels)
    assert config.name == name
    assert config.downsampling in (4, 8)
    network = Autoencoder(config)
    x = torch.zeros(1, channels, size, size)
    mean, logvar = network.encode(x)
    assert mean.shape == logvar.shape == (1, *config.latent_shape)
    assert config.latent_shape == (4, size // config.downsampling, size // config.downsampling)
    assert network.decode(mean).shape == x.shape
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in network.modules())


@pytest.mark.parametrize(
    ("size", "name"), [(28, "kl-64"), (64, "kl-64"), (96, "kl-128"), (224, "kl-224"), (512, "kl-256")]
)
def test_auto_takes_the_smallest_preset_that_is_made_for_a_size(size: int, name: str) -> None:
    assert autoencoder_config(size, 1).name == name


def test_a_size_that_does_not_divide_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"image-size 30 is no multiple .* of 4 \(kl-64\).*choose another"):
        autoencoder_config(30, 1)
    with pytest.raises(ConfigError, match="did you mean 'kl-64'"):
        autoencoder_config(64, 1, "kl-46")


def test_the_log_variance_is_bounded() -> None:
    network = Autoencoder(TINY)
    with torch.no_grad():
        network.encoder[-1].bias.fill_(1e6)
    _, logvar = network.encode(torch.zeros(1, 1, 28, 28))
    assert logvar.max() == 10


def test_kl_of_the_prior_is_zero_and_of_a_shift_half_its_square() -> None:
    zero = torch.zeros(2, 4, 3, 3)
    assert torch.equal(kl_divergence(zero, zero), torch.zeros(2))
    assert torch.allclose(kl_divergence(zero + 2, zero), torch.full((2,), 2.0))
    spread = math.log(4.0)
    assert torch.allclose(kl_divergence(zero, zero + spread), torch.full((2,), 0.5 * (4 - 1 - spread)))


def test_draws_have_the_encoders_mean_and_variance_and_come_from_the_generator() -> None:
    mean, logvar = torch.full((1, 4, 100, 100), 3.0), torch.full((1, 4, 100, 100), math.log(0.25))
    z = sampled(mean, logvar, torch.randn(mean.shape, generator=torch.Generator().manual_seed(0)))
    assert abs(z.mean() - 3) < 0.01
    assert abs(z.std() - 0.5) < 0.01
    assert torch.equal(z, sampled(mean, logvar, torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))))


def test_the_loss_is_the_weighted_sum_of_its_named_parts() -> None:
    x, y = torch.zeros(2, 1, 8, 8), torch.full((2, 1, 8, 8), 0.5)
    mean = torch.ones(2, 4, 2, 2)
    found = autoencoder_loss(
        x, y, mean, torch.zeros_like(mean), l1_weight=2.0, l2_weight=4.0, feature_weight=3.0, kl_weight=10.0,
        features=lambda images: [images, 2 * images],
    )  # fmt: skip
    assert [found[f"loss_{name}"][0].item() for name in ("l1", "l2", "feature", "kl")] == [0.5, 0.25, 0.625, 0.5]
    assert found["loss"].tolist() == [2 * 0.5 + 4 * 0.25 + 3 * 0.625 + 10 * 0.5] * 2
    assert all(part.shape == (2,) for part in found.values())


def test_the_feature_distance_sends_no_gradient_to_the_scan_and_sees_a_blur() -> None:
    x32 = to_network(scans(32, 4))
    x = x32.clone().requires_grad_(True)
    blurred = torch.nn.functional.avg_pool2d(x32, 3, 1, 1).requires_grad_(True)
    brighter = x32 + (blurred - x32).square().mean().sqrt()  # as far off in the mean square
    net = FeatureNet(1)
    distance = feature_distance(x, blurred, net.maps)
    distance.sum().backward()
    assert x.grad is None
    assert blurred.grad is not None and blurred.grad.abs().sum() > 0
    assert distance.mean() > 3 * feature_distance(x32, brighter, net.maps).mean()
    assert torch.equal(feature_distance(x32, x32, net.maps), torch.zeros(4))


def test_a_few_steps_teach_it_to_copy_phantoms() -> None:
    torch.manual_seed(0)
    network = Autoencoder(TINY)
    x = to_network(scans(28, 24))
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)

    def decibels() -> float:
        with torch.no_grad():
            return float(psnr(x, network.decode(network.encode(x)[0])).mean())

    before = decibels()
    for _ in range(40):
        mean, logvar = network.encode(x)
        loss = autoencoder_loss(
            x,
            network.decode(sampled(mean, logvar, torch.randn(mean.shape, generator=generator))),
            mean,
            logvar,
            **WEIGHTS,
        )["loss"]
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    assert decibels() > max(18.0, before + 5)
