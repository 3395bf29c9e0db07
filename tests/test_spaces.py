"""What a network sees of images: pixels as they are, or latents, one byte per value."""

from __future__ import annotations

import numpy as np
import torch

from jointdiff.data import hospital_data
from jointdiff.latents import FrozenAutoencoder
from jointdiff.spaces import CODE_RANGE, PIXELS, Latents, seen_data


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
    assert seen.train.masks is None and seen.heldout is None and seen.hidden_labels is data.hidden_labels
