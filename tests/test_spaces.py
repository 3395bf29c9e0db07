"""What a network sees of images: pixels as they are, or latents, one byte per value."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from jointdiff.augment import LATENT_VIEWS, PIXEL_VIEWS
from jointdiff.config import TrainingConfig
from jointdiff.data import hospital_data
from jointdiff.errors import ConfigError
from jointdiff.head import head_statistics
from jointdiff.latents import FrozenAutoencoder
from jointdiff.model import JointModel, to_network
from jointdiff.preparation import prepare
from jointdiff.spaces import CODE_RANGE, PIXELS, Latents, seen_data, view_source
from jointdiff.training import train_round

CPU = torch.device("cpu")


def test_latents_of_images_are_the_autoencoders_to_half_a_step(tiny_autoencoder, tiny_run):
    frozen = FrozenAutoencoder.load(tiny_autoencoder())
    images = hospital_data(tiny_run(), 0).train.images
    codes = Latents(frozen).inputs(images)
    assert codes.shape == (len(images), 8, 8, 4) and codes.dtype == np.uint8
    latents = frozen.to_latents(images).clamp(-CODE_RANGE, CODE_RANGE)
    read = torch.from_numpy(codes.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2) * CODE_RANGE
    assert float((read - latents).abs().max()) <= CODE_RANGE / 255 + 1e-6
    np.testing.assert_array_equal(codes[3:], Latents(frozen).inputs(images[3:]))


def test_pictures_of_latents_are_what_the_autoencoder_decodes(tiny_autoencoder, tiny_run):
    frozen = FrozenAutoencoder.load(tiny_autoencoder())
    images = hospital_data(tiny_run(), 0).train.images
    space = Latents(frozen)
    shown = space.pictures(space.inputs(images))
    assert shown.shape == images.shape and shown.dtype == np.uint8
    decoded = (frozen.to_images(frozen.to_latents(images)).permute(0, 2, 3, 1).numpy() + 1) * 127.5
    beyond = float((frozen.to_latents(images).abs() > CODE_RANGE).float().mean())
    assert np.abs(shown - decoded).mean() < 2 + 100 * beyond
    assert (
        space.inputs(images[:0]).shape == (0, 8, 8, 4)
        and space.pictures(np.zeros((0, 8, 8, 4), np.uint8)).shape[0] == 0
    )


def test_a_hospitals_data_keep_labels_and_lose_what_is_of_pixels(tiny_autoencoder, tiny_run):
    data = hospital_data(tiny_run(), 1)
    assert seen_data(data, PIXELS) is data
    seen = seen_data(data, Latents(FrozenAutoencoder.load(tiny_autoencoder())))
    assert seen.train.images.shape[1:] == (8, 8, 4) and seen.test.images.shape == (6, 8, 8, 4)
    np.testing.assert_array_equal(seen.train.labels, data.train.labels)
    assert seen.view_source is None
    assert seen.train.masks is None and seen.heldout is None and seen.hidden_labels is data.hidden_labels


def test_views_are_made_of_scans_and_encoded_or_of_latents(tiny_autoencoder, tiny_run):
    data, space = hospital_data(tiny_run(), 1), Latents(FrozenAutoencoder.load(tiny_autoencoder()))
    assert seen_data(data, PIXELS, TrainingConfig()).view_source is None
    assert view_source(data, latent=False) == (data.train.images, PIXEL_VIEWS)
    quick = seen_data(data, space, TrainingConfig(latent_views="latents"))
    assert view_source(quick, latent=True) == (quick.train.images, LATENT_VIEWS)

    images, views = view_source(seen_data(data, space, TrainingConfig()), latent=True)
    assert images is data.train.images
    x = to_network(images)
    for made, view in zip(views, PIXEL_VIEWS, strict=True):
        encoded, pictures = (draw(x, torch.Generator().manual_seed(3)) for draw in (made, view))
        whole = space.autoencoder.encode(pictures).detach() / CODE_RANGE
        assert encoded.shape == (16, 4, 8, 8) and encoded.dtype == torch.float32 and not encoded.requires_grad
        assert torch.allclose(encoded, whole.clamp(-1, 1), atol=1e-5) and encoded.abs().max() <= 1


def test_training_sees_views_of_scans_and_the_table_and_the_head_the_latents(tiny_autoencoder, tiny_run):
    """Scans that are blank make every view the same latent, whatever the latents of the table say."""
    config = prepare(tiny_run(autoencoder=tiny_autoencoder(), preset=""))[0]
    space = Latents(FrozenAutoencoder.load(tiny_autoencoder()))
    seen = seen_data(hospital_data(config.run, 1), space, config.training)
    source = view_source(seen, latent=True)
    blank = source._replace(images=np.zeros_like(source.images))
    torch.manual_seed(0)
    start = JointModel(config.model).state_dict()

    def after(**changes):
        model = JointModel(config.model)
        model.load_state_dict(start)
        train_round(model, replace(seen, **changes), config, round_number=2, hospital_index=0, device=CPU, state=None)
        return torch.cat([p.flatten() for p in model.parameters()])

    assert torch.equal(after(), after()) and not torch.equal(after(), after(view_source=blank))
    assert not torch.equal(after(), after(view_source=None))
    model = JointModel(config.model)
    sums = [head_statistics(model, data, config, CPU) for data in (seen, replace(seen, view_source=blank))]
    assert np.array_equal(sums[0]["products"], sums[1]["products"])
    assert not np.array_equal(sums[0]["group_products"], sums[1]["group_products"])


@pytest.mark.parametrize("key, value", [("latent-views", "scan"), ("labelled-view", "medium")])
def test_views_that_there_are_not_are_named(tiny_run, tmp_path, key, value):
    (tmp_path / "preset.yaml").write_text(f"{key}: {value}\n")
    with pytest.raises(ConfigError, match=f"{key} must be .* not '{value}'"):
        prepare(tiny_run(preset=str(tmp_path / "preset.yaml")))
