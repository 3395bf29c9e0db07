"""What a network sees of images, and what people see of what a network draws: pixels as they are, or latents.

Latents are kept as images are, one byte per value, so that caches, batches and checks are the same for both: a latent
of unit variance is divided by CODE_RANGE and written as an image of four channels is.
Shapes: images uint8 [N,H,W,C]; inputs uint8 [N,h,w,c], which for pixels are the images themselves.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from jointdiff.data.base import ImageSet
from jointdiff.data.hospital import HospitalData
from jointdiff.model import to_network, to_uint8

if TYPE_CHECKING:
    from jointdiff.latents import FrozenAutoencoder

CODE_RANGE = 3.0  # standard deviations of the latents that become -1 and 1; what is beyond is cut
_BATCH_SIZE = 64


class Space(Protocol):
    """Where a network works."""

    def inputs(self, images: np.ndarray) -> np.ndarray:
        """Return what the network sees of images."""

    def pictures(self, inputs: np.ndarray) -> np.ndarray:
        """Return what people see of a network's inputs."""


class Pixels:
    """The network sees the images themselves."""

    def inputs(self, images: np.ndarray) -> np.ndarray:
        """Return the images."""
        return images

    def pictures(self, inputs: np.ndarray) -> np.ndarray:
        """Return the images."""
        return inputs


class Latents:
    """The network sees latents of a frozen autoencoder, which draws nothing: the same at every call.

    Args:
        autoencoder: On the device where it is to work.
    """

    def __init__(self, autoencoder: FrozenAutoencoder) -> None:
        self.autoencoder = autoencoder

    def inputs(self, images: np.ndarray) -> np.ndarray:
        """Return the latents of images.

        Raises:
            DataError: Another size or number of channels than the autoencoder was made for.
        """
        channels, height, width = self.autoencoder.latent_shape
        found = np.empty((len(images), height, width, channels), np.uint8)
        for start in range(0, len(images), _BATCH_SIZE):
            rows = slice(start, start + _BATCH_SIZE)
            found[rows] = to_uint8(self.autoencoder.to_latents(np.asarray(images[rows]), _BATCH_SIZE) / CODE_RANGE)
        return found

    def pictures(self, inputs: np.ndarray) -> np.ndarray:
        """Return the images that latents stand for."""
        config = self.autoencoder.config
        found = np.empty((len(inputs), config.image_size, config.image_size, config.channels), np.uint8)
        for start in range(0, len(inputs), _BATCH_SIZE):
            rows = slice(start, start + _BATCH_SIZE)
            latents = to_network(inputs[rows], self.autoencoder.device) * CODE_RANGE
            found[rows] = to_uint8(self.autoencoder.to_images(latents))
        return found


PIXELS = Pixels()


def seen_images(images: ImageSet, space: Space) -> ImageSet:
    """Return what a network sees of a set: of latents without masks and twins, which are of pixels."""
    if space is PIXELS:
        return images
    return replace(images, images=space.inputs(images.images), masks=None, twins=None)


def seen_data(data: HospitalData, space: Space) -> HospitalData:
    """Return what a network sees of a hospital's images."""
    if space is PIXELS:
        return data
    parts = {
        name: None if images is None else seen_images(images, space)
        for name, images in (
            ("train", data.train), ("heldout", data.heldout), ("test", data.test), ("nonmembers", data.nonmembers),
        )
    }  # fmt: skip
    return replace(data, **parts)  # type: ignore[arg-type]
