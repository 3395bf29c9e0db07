"""MedMNIST's larger files: `dataset=NAME image-size=SIZE latent=true` is the same command at 64, 128 and 224 pixels."""

from __future__ import annotations

import medmnist
import numpy as np
import pytest

from jointdiff import checkpoint
from jointdiff.data import load_dataset
from jointdiff.data import medmnist as adapter
from jointdiff.storage import read_json
from simulations.local import run_local
from tests.conftest import ramps

_PRESET = "learning-rate: 0.01\nema-decay: 0.0\ndiffusion-weight: 0.0\nfeature-weight: 0.0\n"


@pytest.mark.parametrize(
    "name, size, halvings", [("pneumoniamnist", 64, 2), ("bloodmnist", 128, 3), ("pneumoniamnist", 224, 4)]
)
def test_both_phases_run_on_the_larger_files(tiny_run, tmp_path, monkeypatch, request, name, size, halvings) -> None:
    entry, path = medmnist.INFO[name], tmp_path / f"{name}_{size}.npz"
    arrays = ramps(32, 8, 12, size=size)
    for key, array in list(arrays.items()):
        if key.endswith("labels"):
            arrays[key] = (np.arange(len(array)) % len(entry["label"])).astype(np.uint8)[:, None]
        elif entry["n_channels"] == 3:
            arrays[key] = np.stack([array, array, 255 - array], axis=-1)
    np.savez(path, **arrays)
    monkeypatch.setitem(entry, f"MD5_{size}", adapter.md5_of(path))
    request.addfinalizer(load_dataset.cache_clear)
    (tmp_path / "kl.yaml").write_text(f"widths: {[4] * (halvings - 1) + [8]}\nnum-blocks: 0\n")
    (tmp_path / "encoder.yaml").write_text(_PRESET)
    folder = run_local(
        tiny_run(
            dataset=name, data_root=str(tmp_path), image_size=size, num_hospitals=2, num_labels=16, latent=True,
            autoencoder_rounds=2, autoencoder_model=str(tmp_path / "kl.yaml"),
            autoencoder_preset=str(tmp_path / "encoder.yaml"), num_rounds=1, local_steps=12,
        )
    )  # fmt: skip
    saved = checkpoint.load(folder / "checkpoints" / "last.safetensors")
    assert saved.autoencoder is not None and saved.config.model.latent and saved.config.run.image_size == size
    assert read_json(folder / "metrics.json")["final"]["pooled"]["num_images"] == 12
