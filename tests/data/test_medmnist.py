"""The MedMNIST adapter: what it says of each set, checksums, and what it does without network."""

from __future__ import annotations

from pathlib import Path

import medmnist
import numpy as np
import pytest

from jointdiff.data import MULTI_CLASS, MULTI_LABEL, dataset_info, load_dataset
from jointdiff.data import medmnist as adapter
from jointdiff.errors import ConfigError, DataError


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that writes a small file in a set's format and lists its checksum in the package's table."""

    def write(name: str, size: int = 28) -> Path:
        entry = medmnist.INFO[name]
        flag = "" if size == 28 else f"_{size}"
        rng = np.random.default_rng(0)
        arrays = {}
        for split in ("train", "val", "test"):
            shape = (12, size, size) + ((3,) if entry["n_channels"] == 3 else ())
            arrays[f"{split}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
            multi_label = entry["task"].startswith("multi-label")
            top, columns = (2, len(entry["label"])) if multi_label else (len(entry["label"]), 1)
            arrays[f"{split}_labels"] = rng.integers(0, top, (12, columns)).astype(np.uint8)
        path = tmp_path / f"{name}{flag}.npz"
        np.savez(path, **arrays)
        monkeypatch.setitem(entry, f"MD5{flag}", adapter.md5_of(path))
        return path

    yield write
    load_dataset.cache_clear()  # what lies in the cache holds for the stand-in's folder only


@pytest.mark.parametrize("name", adapter.medmnist_names())
@pytest.mark.parametrize("size", [28, 64])
def test_every_2d_set_loads_at_its_sizes(stand_in, name: str, size: int) -> None:
    path = stand_in(name, size)
    data = load_dataset(name, data_root=str(path.parent), image_size=size)
    channels = medmnist.INFO[name]["n_channels"]
    assert data.train.images.shape == (12, size, size, channels)
    width = () if data.info.task == MULTI_CLASS else (data.info.num_outputs,)
    assert data.train.labels.shape == (12, *width)


def test_tasks() -> None:
    assert dataset_info("chestmnist").task == MULTI_LABEL and dataset_info("chestmnist").num_outputs == 14
    assert dataset_info("retinamnist").task == MULTI_CLASS and dataset_info("retinamnist").num_outputs == 5
    assert dataset_info("pneumoniamnist").class_names == ("normal", "pneumonia")
    assert dataset_info("bloodmnist").channels == 3


def test_a_size_that_medmnist_has_not() -> None:
    with pytest.raises(ConfigError, match=r"image-size 32 does not exist for breastmnist.*28, 64, 128, 224"):
        dataset_info("breastmnist", image_size=32)


@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_a_damaged_file_is_refused_before_it_is_read(stand_in, damage: str) -> None:
    path = stand_in("breastmnist")
    content = path.read_bytes()
    path.write_bytes(content[:-100] if damage == "truncated" else content[:-100] + bytes(100))
    with pytest.raises(DataError, match=r"damaged.*MD5 sum is \w{32}, MedMNIST lists \w{32}\. Delete the file"):
        load_dataset("breastmnist", data_root=str(path.parent))


def test_without_network_the_steps_by_hand_are_given_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half_a_download(self: object) -> None:
        (Path(self.root) / "breastmnist.npz").write_bytes(b"half")  # type: ignore[attr-defined]
        raise RuntimeError("Automatic download failed!")

    monkeypatch.setattr(medmnist.BreastMNIST, "download", half_a_download)
    folder = tmp_path / "new" / "folder"
    with pytest.raises(DataError) as caught:
        load_dataset("breastmnist", data_root=str(folder))
    text, entry = str(caught.value), medmnist.INFO["breastmnist"]
    for part in ("1. ", "2. ", "3. ", "4. ", entry["url"], entry["MD5"], str(folder), "Automatic download failed!"):
        assert part in text
    assert not folder.exists()


def test_a_download_takes_its_place_only_when_it_is_whole(
    stand_in, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = stand_in("breastmnist").rename(tmp_path / "elsewhere.npz")

    def download(self: object) -> None:
        (Path(self.root) / "breastmnist.npz").write_bytes(source.read_bytes())  # type: ignore[attr-defined]

    monkeypatch.setattr(medmnist.BreastMNIST, "download", download)
    folder = tmp_path / "root"
    assert len(load_dataset("breastmnist", data_root=str(folder)).train) == 12
    assert [path.name for path in folder.iterdir()] == ["breastmnist.npz"]
