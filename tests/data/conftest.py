"""The user's own arrays, small, for the tests of the adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

WriteArrays = Callable[..., Path]


@pytest.fixture
def write_arrays(tmp_path: Path) -> WriteArrays:
    """Return a function that writes 40 grey 12 px images in two classes; arguments replace or remove arrays."""

    def write(**changes: np.ndarray | None) -> Path:
        rng = np.random.default_rng(0)
        arrays: dict[str, np.ndarray | None] = {
            "train_images": rng.integers(0, 256, (40, 12, 12), dtype=np.uint8),
            "train_labels": np.arange(40) % 2,
            "test_images": rng.integers(0, 256, (10, 12, 12), dtype=np.uint8),
            "test_labels": np.arange(10)[:, None] % 2,
            **changes,
        }
        path = tmp_path / "arrays.npz"
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
        return path

    return write
