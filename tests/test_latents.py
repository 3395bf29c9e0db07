"""A frozen autoencoder: unit variance from merged sums, one file that survives a round trip, and clear errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from jointdiff import checkpoint
from jointdiff.autoencoder import Autoencoder
from jointdiff.autoencoder_config import AutoencoderConfig
from jointdiff.config import Config
from jointdiff.data.phantom import draw_scans, phantom_info
from jointdiff.errors import CheckpointError, DataError
from jointdiff.latents import FrozenAutoencoder, LatentScale, latent_sums, psnr
from jointdiff.model import to_network

CONFIG = AutoencoderConfig(name="tiny", image_size=28, widths=(8, 16))


@pytest.fixture(scope="module")
def scans() -> np.ndarray:
    return draw_scans(phantom_info(), 60, np.random.default_rng(0)).images


def network(config: AutoencoderConfig = CONFIG, seed: int = 0) -> Autoencoder:
    torch.manual_seed(seed)
    return Autoencoder(config)


def frozen(scans: np.ndarray, autoencoder: Autoencoder | None = None) -> FrozenAutoencoder:
    autoencoder = autoencoder or network()
    with torch.no_grad():
        mean, _ = autoencoder.encode(to_network(scans))
    return FrozenAutoencoder(autoencoder, LatentScale.from_sums(latent_sums(mean)), facts={"run": "a"})


def test_sums_of_hospitals_add_up_to_those_of_pooled_images(scans: np.ndarray) -> None:
    with torch.no_grad():
        mean, _ = network().encode(to_network(scans))
    parts = [latent_sums(mean[:13]), latent_sums(mean[13:])]
    merged = LatentScale.from_sums({name: parts[0][name] + parts[1][name] for name in parts[0]})
    z = mean.double().transpose(0, 1).flatten(1)
    assert merged.mean == pytest.approx(z.mean(dim=1).tolist(), rel=1e-5)
    assert merged.std == pytest.approx(z.std(dim=1, correction=0).tolist(), rel=1e-5)


def test_latents_have_unit_variance_and_no_randomness(scans: np.ndarray) -> None:
    auto = frozen(scans)
    z = auto.to_latents(scans)
    assert z.shape == (60, 4, 7, 7) and z.dtype == torch.float32
    assert z.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert torch.allclose(z.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-2)
    assert torch.equal(z, auto.to_latents(scans))
    assert torch.allclose(z, auto.to_latents(scans.transpose(0, 3, 1, 2), batch=7), atol=1e-5)
    assert auto.to_latents(scans[:0]).shape == (0, 4, 7, 7)


def test_images_come_back_through_the_scale(scans: np.ndarray) -> None:
    auto, x = frozen(scans), to_network(scans)
    with torch.no_grad():
        direct = auto.autoencoder.decode(auto.autoencoder.encode(x)[0]).clamp(-1, 1)
        assert torch.allclose(auto.to_images(auto.to_latents(scans)), direct, atol=1e-4)
    assert torch.allclose(auto.psnr(scans), psnr(x, direct), atol=1e-3)


def test_psnr_of_a_known_error() -> None:
    x = torch.zeros(2, 1, 4, 4)
    assert psnr(x, x + 0.2).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)
    assert psnr(x, x).tolist() == [100.0, 100.0]
    assert psnr(x + 1, x + 3).tolist() == [100.0, 100.0]  # a picture has no whiter than white


def test_nothing_trains_a_frozen_autoencoder(scans: np.ndarray) -> None:
    auto = frozen(scans)
    z = auto.to_latents(scans[:2]).requires_grad_(True)
    auto.to_images(z).sum().backward()
    assert z.grad is not None and z.grad.abs().sum() > 0  # guidance needs it
    assert all(p.grad is None and not p.requires_grad for p in auto.autoencoder.parameters())


def test_a_file_gives_the_same_latents_and_fingerprint(scans: np.ndarray, tmp_path: Path) -> None:
    auto = frozen(scans)
    again = FrozenAutoencoder.load(auto.save(tmp_path / "a.safetensors"), like=replace(CONFIG, name="other"))
    assert torch.equal(again.to_latents(scans), auto.to_latents(scans))
    assert (again.fingerprint, again.scale, again.config, again.facts) == (
        auto.fingerprint, auto.scale, CONFIG, {"run": "a"},
    )  # fmt: skip
    assert frozen(scans, network(seed=1)).fingerprint != auto.fingerprint
    other = LatentScale(auto.scale.mean, tuple(2 * s for s in auto.scale.std))
    assert FrozenAutoencoder(network(), other).fingerprint != auto.fingerprint


def test_a_runs_checkpoint_is_an_autoencoder_once_it_is_measured(scans: np.ndarray, tmp_path: Path) -> None:
    config = replace(Config(), autoencoder=CONFIG)
    auto, path = frozen(scans), tmp_path / "best.safetensors"
    checkpoint.save(path, auto.autoencoder.state_dict(), config, round_number=3)
    again = FrozenAutoencoder.load(path)
    assert (again.fingerprint, again.facts["round"]) == (auto.fingerprint, "3")
    checkpoint.save(path, network().state_dict(), config, round_number=2)
    with pytest.raises(CheckpointError, match=r"no scale yet.*round 2.*ended well"):
        FrozenAutoencoder.load(path)
    checkpoint.save(path, network().state_dict(), Config(), round_number=2)
    with pytest.raises(CheckpointError, match=r"holds no autoencoder.*method=joint.*method=autoencoder"):
        FrozenAutoencoder.load(path)


def test_damage_and_other_architectures_are_told(scans: np.ndarray, tmp_path: Path) -> None:
    path = frozen(scans).save(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"other architecture: image-size is 28 there, 64 here; widths"):
        FrozenAutoencoder.load(path, like=AutoencoderConfig())
    whole = path.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        FrozenAutoencoder.load(tmp_path / "cut.safetensors")
    bits = bytearray(whole)
    bits[-10] ^= 1
    (tmp_path / "bits.safetensors").write_bytes(bytes(bits))
    with pytest.raises(CheckpointError, match=r"not what was saved.*Copy it again"):
        FrozenAutoencoder.load(tmp_path / "bits.safetensors")
    _, header = path, checkpoint.read(path)[0]
    some = dict(list(load_file(path).items())[1:])
    save_file(some, tmp_path / "less.safetensors", metadata=header)
    with pytest.raises(CheckpointError, match="does not fit what its own header says"):
        FrozenAutoencoder.load(tmp_path / "less.safetensors")
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        FrozenAutoencoder.load(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("shape", [(2, 32, 32, 1), (2, 28, 28, 3), (2, 28, 28)])
def test_wrong_images_are_refused_with_what_is_wanted(scans: np.ndarray, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"uint8 images of 28 x 28 pixels in 1 channel, not uint8 \[2"):
        frozen(scans).to_latents(np.zeros(shape, np.uint8))
    with pytest.raises(DataError, match="not float32"):
        frozen(scans).to_latents(np.zeros((2, 28, 28, 1), np.float32))
    with pytest.raises(DataError, match=r"decodes latents of \[4, 7, 7\], not \[4, 8, 8\]"):
        frozen(scans).to_images(torch.zeros(1, 4, 8, 8))


def test_a_dead_channel_is_no_scale() -> None:
    z = torch.randn(5, 4, 3, 3)
    z[:, 2] = 0.5
    with pytest.raises(ValueError, match="collapsed: train it longer"):
        LatentScale.from_sums(latent_sums(z))
    with pytest.raises(ValueError, match="over no image"):
        LatentScale.from_sums(latent_sums(z[:0]))
