"""What an autoencoder is made of, apart from the network itself. Pure."""

from __future__ import annotations

from dataclasses import dataclass

LATENT_CHANNELS = 4


@dataclass(frozen=True)
class AutoencoderConfig:
    """The autoencoder of scans: one YAML file in configs/autoencoder/ per size; size and channels are of the data."""

    name: str = "kl-64"
    channels: int = 1  # 1 grey, 3 RGB
    image_size: int = 64  # pixels per side, a multiple of `downsampling`
    widths: tuple[int, ...] = (32, 64)  # channels of each level; every level halves the side of the one before
    num_blocks: int = 1  # residual blocks per level, in the encoder as in the decoder

    @property
    def downsampling(self) -> int:
        """Pixels per side that one position of the latents stands for: 4 with two levels, 8 with three."""
        return 2 ** len(self.widths)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image's latents."""
        side = self.image_size // self.downsampling
        return LATENT_CHANNELS, side, side

    def check(self) -> None:
        """Refuse what cannot be built.

        Raises:
            ValueError: The widths are none, or the image size is no multiple of the downsampling, or too small for it.
        """
        if not self.widths or min(self.widths) < 1 or self.num_blocks < 0:
            raise ValueError(
                f"An autoencoder needs one or more widths of at least 1 and num-blocks of at least 0, not "
                f"{list(self.widths)} and {self.num_blocks}."
            )
        if self.image_size % self.downsampling or self.image_size < 2 * self.downsampling:
            raise ValueError(
                f"image-size {self.image_size} is no multiple of the autoencoder's downsampling of "
                f"{self.downsampling} ({self.name}), or too small for it: choose another size or autoencoder."
            )
