"""What every test gets: a home of its own, no telemetry, one thread, and skips where a tool is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jointdiff.config import RunConfig, parse_run_config

TINY_SIZE = 16  # pixels per side of the smallest federation
_TINY_MODEL = "width: 8\nmultipliers: [1]\npatch-size: 2\nnum-blocks: 1\nattention-levels: []\n"

os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", RAY_USAGE_STATS_ENABLED="0")


@pytest.fixture(autouse=True, scope="session")
def _own_home(tmp_path_factory: pytest.TempPathFactory):
    """No test reads or writes the homes of the person who runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOINTDIFF_HOME", str(tmp_path_factory.mktemp("jointdiff-home")))
        patch.setenv("FLWR_HOME", str(tmp_path_factory.mktemp("flower-home")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny tensors are slower on many threads, and sums are the same everywhere on one."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data.npz (brighter images are ill) and model.yaml (a few thousand parameters)."""
    folder = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 48), ("val", 12), ("test", 18)):
        labels = np.arange(count) % 2
        noise = rng.integers(0, 120, (count, TINY_SIZE, TINY_SIZE))
        arrays[f"{split}_images"] = (noise + labels[:, None, None] * 60).astype(np.uint8)
        arrays[f"{split}_labels"] = labels
    np.savez(folder / "data.npz", class_names=np.array(["healthy", "ill"]), **arrays)
    (folder / "model.yaml").write_text(_TINY_MODEL)
    return folder


@pytest.fixture
def tiny_run(tiny_files: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """A function that makes the RunConfig of a federation of three in a fraction of a second; keywords change it."""

    def make(**changes: Any) -> RunConfig:
        values: dict[str, Any] = {
            "dataset": f"npz:{tiny_files / 'data.npz'}",
            "image-size": TINY_SIZE,
            "num-labels": 12,
            "num-rounds": 2,
            "local-steps": 2,
            "batch-size": 4,
            "model": str(tiny_files / "model.yaml"),
            "device": "cpu",
            "explain": 0,
            "min-hospitals": 1,
            "round-retries": 0,
            "run-name": "tiny",
            "home": str(tmp_path / "home"),
        }
        return parse_run_config(values | {name.replace("_", "-"): value for name, value in changes.items()})

    return make


@pytest.fixture
def tiny_autoencoder(tiny_files: Path, tmp_path: Path) -> Callable[..., str]:
    """A function that writes a frozen autoencoder of the tiny federation's images: untrained, measured, by its seed."""

    def make(seed: int = 0, *, size: int = TINY_SIZE, channels: int = 1) -> str:
        import torch

        from jointdiff.autoencoder import Autoencoder
        from jointdiff.autoencoder_config import AutoencoderConfig
        from jointdiff.latents import FrozenAutoencoder, LatentScale, latent_sums
        from jointdiff.model import to_network

        with np.load(tiny_files / "data.npz") as file:
            images = np.repeat(file["train_images"][:, :size, :size, None], channels, axis=3)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            config = AutoencoderConfig(name="tiny", channels=channels, image_size=size, widths=(8,), num_blocks=1)
            network = Autoencoder(config)
            sums = latent_sums(network.encode(to_network(images))[0])
        frozen = FrozenAutoencoder(network, LatentScale.from_sums(sums))
        return str(frozen.save(tmp_path / f"autoencoder-{seed}-{size}-{channels}.safetensors"))

    return make


@pytest.fixture
def small_holdouts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two labels of a class are enough to hold a fifth out, for sets of a few dozen images."""
    from jointdiff.data import hospital

    def forget() -> None:
        for cached in (hospital._deal, hospital._hospital_data):
            cached.cache_clear()

    monkeypatch.setattr("jointdiff.data.labelled_split.MIN_HELDOUT", 2)
    monkeypatch.setattr("jointdiff.data.checks.MIN_HELDOUT", 2)
    forget()
    yield
    forget()


@pytest.fixture
def quick_referee(monkeypatch: pytest.MonkeyPatch) -> None:
    """The referee of explanations and samples is trained for two steps: its word is worth nothing, but it is quick."""
    from jointdiff.referee import train_referee

    def train(_home: Path, train: Any, num_outputs: int, task: str, **_: Any) -> Any:
        return train_referee(train, num_outputs, task, steps=2)

    monkeypatch.setattr("jointdiff.appointed_referee.cached_referee", train)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot do; `-m` chooses before that."""
    for item in items:
        if "gpu" in item.keywords and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="no CUDA here"))
        if "browser" in item.keywords and not (shutil.which("chromium") or shutil.which("chromium-browser")):
            item.add_marker(pytest.mark.skip(reason="no chromium here: make setup-system"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def ramps(train: int, val: int, test: int, *, size: int = 16) -> dict[str, np.ndarray]:
    """Return pictures that a tiny autoencoder can give back: brightness along a direction of each one's own."""
    rng, arrays = np.random.default_rng(0), {}
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    for split, count in (("train", train), ("val", val), ("test", test)):
        angle, centre = rng.uniform(0, 2 * np.pi, (count, 1, 1)), rng.uniform(110, 140, (count, 1, 1))
        arrays[f"{split}_images"] = (centre + 160 * (x * np.cos(angle) + y * np.sin(angle))).astype(np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 2
    return arrays
