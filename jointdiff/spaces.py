"""What a network sees of images, and what people see of what a network draws: pixels as they are, or latents.

Latents are kept as images are, one byte per value, so that caches, batches and checks are the same for both: a latent
of unit variance is divided by CODE_RANGE and written as an image of four channels is.
Shapes: images uint8 [N,H,W,C]; inputs uint8 [N,h,w,c], which for pixels are the images themselves.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from jointdiff.augment import PIXEL_VIEWS, View, Views, ViewSource, views_of
from jointdiff.config import TrainingConfig
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

    def view_source(self, scans: np.ndarray) -> ViewSource:
        """Return what makes views of scans and encodes them.

        Args:
            scans: uint8 [N,H,W,C], which lie where they lie: one batch after the other is taken.
        """
        return ViewSource(scans, Views(*(partial(self._encoded_view, view=view) for view in PIXEL_VIEWS)))

    @torch.no_grad()
    def _encoded_view(self, x: torch.Tensor, generator: torch.Generator, *, view: View) -> torch.Tensor:
        return (self.autoencoder.encode(view(x, generator)).float() / CODE_RANGE).clamp(-1, 1)


PIXELS = Pixels()


def seen_images(images: ImageSet, space: Space) -> ImageSet:
    """Return what a network sees of a set: of latents without masks and twins, which are of pixels."""
    if space is PIXELS:
        return images
    return replace(images, images=space.inputs(images.images), masks=None, twins=None)


def view_source(data: HospitalData, *, latent: bool) -> ViewSource:
    """Return what the views of a hospital's training images, as the network sees them, are made from."""
    return data.view_source or ViewSource(data.train.images, views_of(latent=latent))


def views_from_scans(scans: np.ndarray, space: Space, training: TrainingConfig | None) -> ViewSource | None:
    """Return the source of views that `latent-views` asks for: None where they are made of what the network sees.

    Args:
        scans: Of the training images, uint8 [N,H,W,C].
        training: None = no views are asked for.
    """
    wanted = training is not None and training.latent_views == "scans"
    return space.view_source(scans) if wanted and isinstance(space, Latents) else None


def seen_data(data: HospitalData, space: Space, training: TrainingConfig | None = None) -> HospitalData:
    """Return what a network sees of a hospital's images, and what its views are made from.

    Args:
        training: None where no network is trained on them.
    """
    if space is PIXELS:
        return data
    parts = {
        name: None if images is None else seen_images(images, space)
        for name, images in (
            ("train", data.train), ("heldout", data.heldout), ("test", data.test), ("nonmembers", data.nonmembers),
        )
    }  # fmt: skip
    source = views_from_scans(data.train.images, space, training)
    return replace(data, view_source=source, **parts)  # type: ignore[arg-type]
