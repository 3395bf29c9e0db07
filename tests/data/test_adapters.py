"""A common battery over every kind of data set, and real scans where they are at hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jointdiff.data import MULTI_LABEL, Dataset, dataset_info, known_names, load_dataset, phantom
from jointdiff.data import medmnist as adapter
from jointdiff.errors import ConfigError

KINDS = ["phantom", "phantom:rgb", "phantom:3-classes", "phantom:multi-label", "npz", "pneumoniamnist"]


def real_scans() -> Path:
    """Return the folder that holds pneumoniamnist.npz, or skip the test."""
    places = [os.environ.get("JOINTDIFF_TEST_DATA", ""), Path(__file__).parents[3] / "shared" / "data"]
    for place in filter(None, places):
        if (Path(place) / "pneumoniamnist.npz").is_file():
            return Path(place)
    pytest.skip("no real scans: JOINTDIFF_TEST_DATA names no folder that holds pneumoniamnist.npz")


@pytest.fixture(params=KINDS)
def keys(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict]:
    """The run-config keys that name one data set of each kind; phantoms in small numbers."""
    for split in phantom.SPLIT_SIZES:
        monkeypatch.setitem(phantom.SPLIT_SIZES, split, 40)
    load_dataset.cache_clear()
    if request.param == "npz":
        path = request.getfixturevalue("write_arrays")()
        yield {"name": f"npz:{path}", "image_size": 12}
    elif request.param == "pneumoniamnist":
        yield {"name": request.param, "data_root": str(real_scans())}
    else:
        yield {"name": request.param}
    load_dataset.cache_clear()


def test_arrays_are_what_the_description_says(keys: dict) -> None:
    info, data = dataset_info(**keys), load_dataset(**keys)
    assert isinstance(data, Dataset) and data.info == info
    assert info.name == keys["name"] and info.num_outputs >= 2 and info.description and info.licence
    for split in (data.train, data.test):
        assert split.images.shape == (len(split), info.image_size, info.image_size, info.channels)
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int64
        assert split.num_labelled == len(split) > 0
        if info.task == MULTI_LABEL:
            assert split.labels.shape == (len(split), info.num_outputs)
            assert set(np.unique(split.labels)) == {0, 1}
        else:
            assert set(np.unique(split.labels)) == set(range(info.num_outputs))


def test_loading_twice_gives_the_same(keys: dict) -> None:
    first = load_dataset(**keys)
    load_dataset.cache_clear()
    again = load_dataset(**keys)
    assert first is not again
    for split in ("train", "val", "test"):
        np.testing.assert_array_equal(getattr(first, split).images, getattr(again, split).images)
        np.testing.assert_array_equal(getattr(first, split).labels, getattr(again, split).labels)


def test_only_phantoms_know_their_truth_and_say_that_they_are_synthetic(keys: dict) -> None:
    data = load_dataset(**keys)
    synthetic = keys["name"].startswith("phantom")
    assert data.info.real is not synthetic
    assert (data.train.twins is not None) is synthetic


def test_real_scans_have_the_published_counts() -> None:
    data = load_dataset("pneumoniamnist", data_root=str(real_scans()))
    assert [np.bincount(split.labels).tolist() for split in (data.train, data.val, data.test)] == [
        [1214, 3494],
        [135, 389],
        [234, 390],
    ]


@pytest.mark.parametrize(
    ("typo", "meant"), [("fantom", "phantom"), ("pneumonia-mnist", "pneumoniamnist"), ("phantm:rgb", "phantom:rgb")]
)
def test_unknown_name_is_answered_with_the_nearest(typo: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"Unknown dataset '{typo}': did you mean '{meant}'"):
        load_dataset(typo)


def test_every_2d_set_of_medmnist_can_be_named() -> None:
    assert len(adapter.medmnist_names()) == 12
    assert {"chestmnist", "pathmnist", "retinamnist"} <= set(known_names())
    assert not any(name.endswith("3d") for name in known_names())
