"""Real numbers as whole numbers modulo 2^32 or 2^64, so that masks can hide them and sums come out exactly.

A value is refused if it could carry a sum round the modulus: nothing is clipped and nothing wraps in silence. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Tensors = dict[str, np.ndarray]
_DTYPES = {32: (np.uint32, np.int32), 64: (np.uint64, np.int64)}
_UPDATE_LIMIT = 2.0**3  # a weight's change in one round; honest ones are a hundred times smaller
_SUMS_LIMIT = 2.0**32  # sums of products of features over one hospital's images


@dataclass(frozen=True)
class FixedPoint:
    """An encoding x -> round(x / step) modulo 2^bits, in which the sum of `num_summands` values cannot overflow.

    Every summand is rounded by at most step / 2, the modular sum itself is exact: a sum of n values is off by at most
    n * step / 2.
    """

    bits: int  # 32 | 64
    limit: float  # R, a power of two: |x| <= R for every summand
    num_summands: int  # H, at least 1

    @property
    def step(self) -> float:
        """The quantisation step, a power of two: the smallest with H * R / step < 2^(bits - 1).

        >>> FixedPoint(32, 8.0, 3).step == 2**-26
        True
        """
        return self.limit / 2.0 ** (self.bits - 1 - self.num_summands.bit_length())

    @property
    def dtype(self) -> np.dtype:
        """The unsigned type that travels."""
        return np.dtype(_DTYPES[self.bits][0])

    def error(self, num_included: int) -> float:
        """Return the largest error of a sum of `num_included` values."""
        return num_included * self.step / 2

    def encode(self, tensors: Mapping[str, np.ndarray]) -> Tensors:
        """Return unsigned whole numbers of the same names and shapes.

        Raises:
            ValueError: A value is not finite, or beyond the limit; names the tensor.
        """
        encoded = {}
        for name, array in tensors.items():
            values = array.astype(np.float64)
            if not np.isfinite(values).all():
                raise ValueError(f"{name} holds NaN or infinite values: has the training diverged?")
            largest = float(np.abs(values).max(initial=0.0))
            if largest > self.limit:
                raise ValueError(
                    f"{name} holds {largest:.3g}, but a secure sum carries values up to {self.limit:g} only: has the "
                    "training diverged? Otherwise use fewer local-steps or a smaller learning rate, or leave "
                    "secure-aggregation out."
                )
            encoded[name] = np.asarray(np.rint(values / self.step)).astype(np.int64).astype(self.dtype)
        return encoded

    def decode(self, totals: Mapping[str, np.ndarray], num_included: int) -> Tensors:
        """Return the sums in float64.

        Args:
            totals: Sums of encoded values modulo 2^bits.
            num_included: How many were summed, at most `num_summands`.

        Raises:
            ValueError: A sum is larger than so many values within the limit can make it: a mask is still on it.
        """
        bound = num_included * int(self.limit / self.step)
        decoded = {}
        for name, array in totals.items():
            values = np.ascontiguousarray(array).view(_DTYPES[self.bits][1]).reshape(array.shape)
            if ((values > bound) | (values < -bound)).any():
                raise ValueError(f"the masks on {name} do not cancel: a hospital did not follow the protocol")
            decoded[name] = values * self.step
        return decoded


def for_updates(num_hospitals: int) -> FixedPoint:
    """Return the encoding of weighted changes of the weights: 32 bits, |x| <= 8, step 2^-26 for three hospitals."""
    return FixedPoint(32, _UPDATE_LIMIT, num_hospitals)


def for_sums(num_hospitals: int) -> FixedPoint:
    """Return the encoding of the head's float64 sums: 64 bits, |x| <= 2^32, step 2^-29 for three hospitals."""
    return FixedPoint(64, _SUMS_LIMIT, num_hospitals)
