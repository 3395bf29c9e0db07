"""How well an autoencoder gives images back: sums that merge exactly over hospitals, finished once. Pure.

Every sum is a whole number of 2^-20: hospitals' sums add up to those of pooled images, in any order, bit for bit.
Shapes: images [N,C,H,W] in [-1,1]; latents [N,4,h,w].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from jointdiff.autoencoder_config import LATENT_CHANNELS
from jointdiff.latent_scale import psnr

FORMAT = 1
_STEP = 2.0**-20
_LARGEST = 2**62  # of a sum, in steps
MIN_LATENT_STD = 0.01  # of every channel; below it the decoder hears nothing on that channel
MIN_GAIN_DB = 3.0  # over a grey picture of each image's own mean, whose gain is 0
SHAPES = {
    "counted": (2,), "psnr": (1,), "absolute_error": (1,), "squared_error": (1,), "contrast": (1,),
    "latent_sum": (LATENT_CHANNELS,), "latent_squares": (LATENT_CHANNELS,),
}  # fmt: skip


@dataclass(frozen=True)
class ReconstructionStatistics:
    """Sums over images, as int64 arrays of SHAPES; `counted` is the format and the number of images."""

    arrays: Mapping[str, np.ndarray]

    @classmethod
    def from_images(cls, x: torch.Tensor, reconstruction: torch.Tensor, mean: torch.Tensor) -> ReconstructionStatistics:
        """Measure some images.

        Args:
            x, reconstruction: [N,C,H,W]; the second is clamped to [-1,1], as a picture is.
            mean: Of the latents, not scaled: [N,4,h,w].

        Raises:
            ValueError: NaN or infinite values: the training has diverged.
        """
        difference = (x.float() - reconstruction.float().clamp(-1, 1)).double().flatten(1)
        z = mean.double().flatten(2)
        sums = {
            "psnr": psnr(x, reconstruction).double().sum(),
            "absolute_error": difference.abs().mean(dim=1).sum(),
            "squared_error": difference.square().mean(dim=1).sum(),
            "contrast": x.double().flatten(1).var(dim=1, correction=0).sum(),
            "latent_sum": z.mean(dim=2).sum(dim=0),
            "latent_squares": z.square().mean(dim=2).sum(dim=0),
        }
        arrays = {"counted": np.array([FORMAT, len(x)], np.int64)}
        for name, value in sums.items():
            steps = np.rint(value.reshape(-1).cpu().numpy() / _STEP)
            if not (np.isfinite(steps).all() and np.abs(steps).max() < _LARGEST):
                raise ValueError(f"{name} of the reconstructions is no finite number of a sane size")
            arrays[name] = steps.astype(np.int64)
        return cls(arrays)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> ReconstructionStatistics:
        """Read what `to_arrays` wrote; arrays that came over the wire are not trusted.

        Raises:
            ValueError: Other names, shapes or types, another format, or sums that contradict each other.
        """
        if arrays.keys() != SHAPES.keys():
            raise ValueError(f"the names are others: {sorted(map(str, arrays.keys() ^ SHAPES.keys()))[:3]}")
        for name, shape in SHAPES.items():
            if arrays[name].shape != shape or arrays[name].dtype != np.int64:
                raise ValueError(f"{name} is {arrays[name].dtype} {list(arrays[name].shape)}, not int64 {list(shape)}")
            if (np.abs(arrays[name].astype(np.float64)) > _LARGEST).any():
                raise ValueError(f"{name} is of no sane size")
        form, num_images = arrays["counted"].tolist()
        if form != FORMAT or num_images < 0:
            raise ValueError(f"format {form} with {num_images} images is not known")
        for name in SHAPES.keys() - {"counted", "latent_sum"}:
            if (arrays[name] < 0).any() or (not num_images and arrays[name].any()):
                raise ValueError(f"{name} cannot be so for {num_images} images")
        return cls({name: arrays[name] for name in SHAPES})

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that travel."""
        return dict(self.arrays)

    @property
    def num_images(self) -> int:
        """How many images were measured."""
        return int(self.arrays["counted"][1])

    def merge(self, others: Iterable[ReconstructionStatistics]) -> ReconstructionStatistics:
        """Return the statistics of all images together.

        Raises:
            ValueError: Their sums are too large to be added.
        """
        total = {name: array.copy() for name, array in self.arrays.items()}
        for other in others:
            for name, array in other.arrays.items():
                both = total[name].astype(np.float64) + array
                if (np.abs(both) > _LARGEST).any():
                    raise ValueError(f"the hospitals' sums of {name} are too large to be added")
                total[name] = total[name] + array
        total["counted"][0] = FORMAT
        return ReconstructionStatistics(total)

    def finish(self) -> dict[str, Any]:
        """Return the metrics of these images.

        Returns:
            num_images; psnr: mean over the images, dB; psnr_gain: of the mean squared error over that of a grey
            picture of each image's own mean, dB; reconstruction_l1 and reconstruction_l2: mean absolute and squared
            error per pixel, 2 = from black to white; latent_std: the smallest of the four channels' standard
            deviations, latent_stds: all. None where there is no image.
        """
        n = self.num_images
        if not n:
            return {"num_images": 0, "psnr": None}
        mean = {name: array * _STEP / n for name, array in self.arrays.items() if name != "counted"}
        variance = np.clip(mean["latent_squares"] - mean["latent_sum"] ** 2, 0, None)
        error, contrast = float(mean["squared_error"][0]), float(mean["contrast"][0])
        stds = np.sqrt(variance).tolist()
        return {
            "num_images": n,
            "psnr": float(mean["psnr"][0]),
            "psnr_gain": float(10 * np.log10(max(contrast, 1e-12) / max(error, 1e-12))),
            "reconstruction_l1": float(mean["absolute_error"][0]),
            "reconstruction_l2": error,
            "latent_std": min(stds),
            "latent_stds": stds,
        }


def why_collapsed(metrics: Mapping[str, Any]) -> str:
    """Say why an autoencoder with these metrics must not be built upon; '' where it may.

    >>> why_collapsed({"psnr": 30.0, "psnr_gain": 12.0, "latent_std": 1.2})
    ''
    >>> why_collapsed({"psnr": 14.0, "psnr_gain": 0.1, "latent_std": 1.2})
    'its reconstructions are 0.1 dB nearer to the scans than plain grey pictures (PSNR 14.0 dB), and 3 dB are needed'
    """
    found = []
    if not metrics["latent_std"] >= MIN_LATENT_STD:
        found.append(
            f"a channel of its latents has a standard deviation of {metrics['latent_std']:.2g}, and {MIN_LATENT_STD:g} "
            "are needed"
        )
    if not metrics["psnr_gain"] >= MIN_GAIN_DB:
        found.append(
            f"its reconstructions are {metrics['psnr_gain']:.1f} dB nearer to the scans than plain grey pictures (PSNR "
            f"{metrics['psnr']:.1f} dB), and {MIN_GAIN_DB:g} dB are needed"
        )
    return "; ".join(found)
