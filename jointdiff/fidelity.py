"""KID, the kernel inception distance, on a fixed feature net that needs no download.

The usual Inception net is large, was trained on photographs, wants 299 px in colour and must be downloaded. Here the
features are those of a random convolution net: its weights are drawn once and for all from PCG64 with a fixed seed, so
that two people who compare numbers compare the same numbers. Random features see noise, blur, contrast, texture and
coarse layout; they do not know what a lung is. KID values of this net compare with each other only, at the same image
size and number of channels: print FeatureNet.name, and real against real and against noise, beside them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

VERSION = "random-conv-1"
_SEED = 20240917
_WIDTHS = (16, 32, 64, 96, 128, 128)  # channels of each level; each level has half the size of the one before
_NUM_CALIBRATION = 128
_MAPS_SIZE = 64  # largest side that maps are calibrated at
_BOUND = 4.0  # no standardised feature is farther from zero


@dataclass(frozen=True)
class KidResult:
    """A kernel inception distance."""

    value: float  # unbiased: around 0, also below, for two samples of one distribution
    standard_error: float  # of the sampling of both sets of images


@dataclass
class FeatureNet:
    """Random convolution features, `jointdiff random-conv-1`.

    Levels: convolution (5 x 5 of mean zero at the first, then 3 x 3), fixed normalisation per map, ReLU, average
    pooling by two; as many levels as leave at least 3 pixels. Features: mean and standard deviation over the image of
    the pixels and of every level's maps, standardised, then bounded by z / (1 + |z| / 4): the cubic kernel would
    otherwise follow a few outliers. Both normalisations come from 128 synthetic pink-noise images of the same size,
    which too are fixed.
    """

    channels: int  # 1 or 3
    _layers: dict[tuple[int, int, str], list[_Layer]] = field(default_factory=dict, init=False, repr=False)

    @property
    def name(self) -> str:
        """What to print beside every number."""
        return f"{VERSION}, {self.channels} channel{'s' if self.channels > 1 else ''}"

    def features(self, images: np.ndarray, *, batch_size: int = 256) -> np.ndarray:
        """Return features of images.

        Args:
            images: uint8 [N, H, W, C], at least 8 pixels per side.

        Returns:
            float64 [N, D]; D depends on size and channels alone.

        Raises:
            ValueError: Another type, shape or number of channels.

        >>> FeatureNet(1).features(np.zeros((2, 28, 28, 1), np.uint8)).shape
        (2, 418)
        """
        images = np.asarray(images)
        fits = images.ndim == 4 and images.shape[3] == self.channels and min(images.shape[1:3]) >= 8
        if images.dtype != np.uint8 or not fits:
            raise ValueError(
                f"Images must be uint8 [N, H >= 8, W >= 8, {self.channels}], not {images.dtype} {images.shape}."
            )
        layers = self._layers_for((images.shape[1], images.shape[2]))
        mean, deviation = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("mean", "deviation"))
        pooled = [torch.cat(_pooled(x, layers), dim=1) for x in _batches(images, batch_size)]
        z = ((torch.cat(pooled) if pooled else torch.zeros(0, len(mean))) - mean).double() / deviation
        return (z / (1 + z.abs() / _BOUND)).numpy()

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return every convolution's maps, for a distance between images that gradients flow through.

        The filters are those of images of at most 64 pixels: a convolution takes any size, and drawing them at 224
        pixels takes a minute.

        Args:
            x: [N,C,H,W] in [-1,1], on any device.

        Returns:
            One [N,c,h,w] per level, the first at full size; of unit variance on pink noise before its ReLU.
        """
        layers = self._layers_for((min(x.shape[2], _MAPS_SIZE), min(x.shape[3], _MAPS_SIZE)), x.device)
        found = []
        for level, layer in enumerate(layers):
            x = _apply(x, layer, level)
            found.append(x)
        return found[1:]

    def _layers_for(self, size: tuple[int, int], device: torch.device | str = "cpu") -> list[_Layer]:
        place = (*size, str(device))
        if place not in self._layers:
            layers = _calibrated(self.channels, size)
            self._layers[place] = [layer.to(device) for layer in layers]
        return self._layers[place]


def kid(
    features_a: np.ndarray, features_b: np.ndarray, *, num_subsets: int = 10, subset_size: int = 1000, seed: int = 0
) -> KidResult:
    """Estimate KID: the unbiased squared MMD with the kernel (x.y / D + 1)^3 (Binkowski et al., ICLR 2018).

    The images are dealt at random into disjoint subsets. Each gives an unbiased estimate and its jackknife variance
    (one image of either set left out at a time); disjoint subsets are independent, so means and variances combine.

    Args:
        features_a, features_b: [N, D] and [M, D], at least 4 images each; equal sizes are not needed.
        num_subsets: Most subsets to average over; fewer where there are not enough images to fill them.
        subset_size: Most images of each set in a subset; memory grows with its square.
        seed: Of the dealing; without effect where one subset holds all.

    Raises:
        ValueError: Shapes do not fit, too few images, or values that are not finite.

    >>> rng = np.random.default_rng(0)
    >>> a, b = rng.normal(size=(200, 8)), rng.normal(size=(200, 8)) + 0.5
    >>> kid(a, b).value > 5 * kid(a, b).standard_error
    True
    """
    a, b = np.asarray(features_a, np.float64), np.asarray(features_b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"Features must have shapes [N, D] and [M, D], not {a.shape} and {b.shape}.")
    fewest = min(len(a), len(b))
    if fewest < 4 or subset_size < 4 or num_subsets < 1:
        raise ValueError(f"KID needs at least 4 images of each kind (and subsets of 4), not {len(a)} and {len(b)}.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("KID: the features hold NaN or infinity.")
    rng = np.random.default_rng(seed)
    a, b = a[rng.permutation(len(a))], b[rng.permutation(len(b))]
    num = max(1, min(num_subsets, max(len(a), len(b)) // subset_size, fewest // 4))
    estimates = [_mmd(a[i::num][:subset_size], b[i::num][:subset_size]) for i in range(num)]
    values, variances = zip(*estimates, strict=True)
    return KidResult(float(np.mean(values)), float(math.sqrt(sum(variances)) / num))


def _mmd(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return the unbiased squared MMD of [N, D] and [M, D], and its jackknife variance."""
    n, m = len(a), len(b)
    within_a, within_b, between = _kernel(a, a), _kernel(b, b), _kernel(a, b)
    np.fill_diagonal(within_a, 0)
    np.fill_diagonal(within_b, 0)
    sum_a, sum_b, sum_ab = within_a.sum(), within_b.sum(), between.sum()
    mean_a, mean_b, mean_ab = sum_a / (n * (n - 1)), sum_b / (m * (m - 1)), sum_ab / (n * m)
    # What the estimate would be without image i: every sum loses that image's row and column.
    left_a = (sum_a - 2 * within_a.sum(1)) / ((n - 1) * (n - 2))
    left_b = (sum_b - 2 * within_b.sum(1)) / ((m - 1) * (m - 2))
    without_a = left_a + mean_b - 2 * (sum_ab - between.sum(1)) / ((n - 1) * m)
    without_b = mean_a + left_b - 2 * (sum_ab - between.sum(0)) / (n * (m - 1))
    return mean_a + mean_b - 2 * mean_ab, (n - 1) * without_a.var() + (m - 1) * without_b.var()


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


@dataclass
class _Layer:
    """What is fixed of one level; level 0 is the pixels themselves and has no convolution."""

    weight: torch.Tensor | None  # [outputs, inputs, side, side], odd side
    shift: torch.Tensor  # [outputs], subtracted after the convolution
    mean: torch.Tensor  # [2 * outputs], of the pooled features
    deviation: torch.Tensor  # [2 * outputs]

    def to(self, device: torch.device | str) -> _Layer:
        """Return the layer on a device."""
        weight = None if self.weight is None else self.weight.to(device)
        return _Layer(weight, self.shift.to(device), self.mean.to(device), self.deviation.to(device))


def _apply(x: torch.Tensor, layer: _Layer, level: int) -> torch.Tensor:
    if layer.weight is None:
        return x
    return F.relu(_maps(x, layer.weight, level) - layer.shift[:, None, None])


def _maps(x: torch.Tensor, weight: torch.Tensor, level: int) -> torch.Tensor:
    x = F.avg_pool2d(x, 2) if level > 1 else x
    return F.conv2d(F.pad(x, [weight.shape[-1] // 2] * 4, mode="replicate"), weight)


@torch.no_grad()
def _pooled(x: torch.Tensor, layers: list[_Layer]) -> list[torch.Tensor]:
    """Return every level's mean and standard deviation over the image, [B, 2 * outputs] each."""
    pooled = []
    for level, layer in enumerate(layers):
        x = _apply(x, layer, level)
        pooled.append(torch.cat([x.mean((2, 3)), x.std((2, 3), correction=0)], dim=1))
    return pooled


@torch.no_grad()
def _calibrated(channels: int, size: tuple[int, int]) -> list[_Layer]:
    """Draw the filters, and normalise map by map and feature by feature on pink noise, one level after the other."""
    (x,) = _batches(_pink_noise(_NUM_CALIBRATION, size, channels), _NUM_CALIBRATION)
    rng = np.random.Generator(np.random.PCG64(_SEED))
    layers: list[_Layer] = []
    for level in range(_num_levels(min(size)) + 1):
        weight, shift = None, torch.zeros(0)
        if level:
            inputs, outputs = x.shape[1], _WIDTHS[level - 1]
            side = 5 if level == 1 else 3
            drawn = rng.normal(size=(outputs, inputs, side, side))
            if level == 1:
                drawn -= drawn.mean((2, 3), keepdims=True)  # edges and texture; brightness is level 0's
            weight = torch.from_numpy(drawn.astype(np.float32))
            maps = _maps(x, weight, level)
            scale = maps.std((0, 2, 3))
            weight, shift = weight / scale[:, None, None, None], maps.mean((0, 2, 3)) / scale
        layer = _Layer(weight, shift, torch.zeros(0), torch.zeros(0))
        x = _apply(x, layer, level)
        features = torch.cat([x.mean((2, 3)), x.std((2, 3), correction=0)], dim=1)
        layer.mean, layer.deviation = features.mean(0), features.std(0)
        layers.append(layer)
    return layers


def _batches(images: np.ndarray, batch_size: int) -> Iterator[torch.Tensor]:
    for start in range(0, len(images), batch_size):
        batch = np.ascontiguousarray(images[start : start + batch_size].transpose(0, 3, 1, 2))
        yield torch.from_numpy(batch).float() / 127.5 - 1


def _num_levels(side: int) -> int:
    """Return how many levels leave at least 3 pixels at the last; 28 px: 28, 14, 7, 3."""
    return min(len(_WIDTHS), int(math.log2(side / 3)) + 1)


def _pink_noise(num: int, size: tuple[int, int], channels: int) -> np.ndarray:
    """Draw images with the 1/f spectrum of natural pictures, of varied brightness and contrast; uint8 [N, H, W, C]."""
    rng = np.random.Generator(np.random.PCG64(_SEED + 1))
    frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None])
    frequency[0, 0] = np.inf
    white = np.fft.rfft2(rng.normal(size=(num, channels, *size)))
    pink = np.fft.irfft2(white / frequency, s=size)
    pink /= pink.std((2, 3), keepdims=True)
    contrast, brightness = rng.uniform(20, 70, (num, 1, 1, 1)), rng.uniform(60, 190, (num, 1, 1, 1))
    return np.clip(np.rint(brightness + contrast * pink), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
