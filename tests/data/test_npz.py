"""The user's own arrays: what is accepted, and one clear error for everything else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jointdiff.data import MULTI_CLASS, MULTI_LABEL, npz
from jointdiff.errors import ConfigError, DataError


def load(path: Path, **keys):
    return npz.load_npz(str(path), **{"image_size": 12, **keys})


def test_grey_images_and_plain_labels(write_arrays) -> None:
    data = load(write_arrays(train_source=np.arange(40) // 20))
    assert data.info.task == MULTI_CLASS and data.info.class_names == ("class 0", "class 1")
    assert data.train.images.shape == (40, 12, 12, 1) and len(data.test) == 10 and len(data.val) == 0
    assert data.train.sources is not None and data.train.sources.tolist() == [0] * 20 + [1] * 20


def test_rgb_multi_label_with_names(write_arrays) -> None:
    labels = np.stack([np.arange(40) % 2, np.arange(40) % 3 == 0, np.arange(40) % 5 == 0], axis=1)
    data = load(
        write_arrays(
            train_images=np.zeros((40, 12, 12, 3), dtype=np.uint8),
            train_labels=labels,
            test_images=None,
            test_labels=None,
            class_names=np.array(["a", "b", "c"]),
        )
    )
    assert data.info.task == MULTI_LABEL and data.info.class_names == ("a", "b", "c") and data.info.channels == 3


def test_without_a_test_split_a_fifth_of_the_labelled_images_becomes_it(write_arrays) -> None:
    images = np.zeros((40, 12, 12), dtype=np.uint8)
    images[:, 0, 0] = np.arange(40)
    labels = np.where(np.arange(40) < 30, np.arange(40) % 2, -1)
    path = write_arrays(train_images=images, train_labels=labels, test_images=None, test_labels=None)
    data, again, other = load(path), load(path), load(path, seed=1)
    numbers = [split.images[:, 0, 0, 0].tolist() for split in (data.train, data.test)]
    assert len(data.test) == 6 and np.bincount(data.test.labels).tolist() == [3, 3]
    assert sorted(numbers[0] + numbers[1]) == list(range(40))
    np.testing.assert_array_equal(data.test.images, again.test.images)
    assert data.test.images[:, 0, 0, 0].tolist() != other.test.images[:, 0, 0, 0].tolist()


def test_a_relative_path_starts_at_the_data_root(write_arrays) -> None:
    path = write_arrays()
    assert len(npz.load_npz(path.name, data_root=str(path.parent), image_size=12).train) == 40


BAD = {
    "float images": ({"train_images": np.zeros((40, 12, 12))}, "train_images .*must be uint8 .*not float64"),
    "not square": ({"train_images": np.zeros((40, 12, 10), dtype=np.uint8)}, r"H = W, not \(40, 12, 10\)"),
    "four channels": ({"train_images": np.zeros((40, 12, 12, 4), dtype=np.uint8)}, r"not \(40, 12, 12, 4\)"),
    "flat images": ({"train_images": np.zeros((40, 144), dtype=np.uint8)}, r"not \(40, 144\)"),
    "no images": ({"train_images": np.zeros((0, 12, 12), dtype=np.uint8)}, r"not \(0, 12, 12\)"),
    "fewer labels": ({"train_labels": np.arange(39) % 2}, r"N = 40 images, not \(39,\)"),
    "float labels": ({"train_labels": np.zeros(40)}, "train_labels .*must be integers, not float64"),
    "text labels": ({"train_labels": np.array(["a"] * 40)}, "must be integers"),
    "negative labels": ({"train_labels": np.arange(40) % 2 - 2}, "holds -2"),
    "one class": ({"train_labels": np.zeros(40, dtype=int)}, "one class only"),
    "counts as findings": ({"train_labels": np.tile([[0, 3]], (40, 1))}, "all values must be 0, 1 or -1"),
    "no labels": ({"train_labels": None}, "no array 'train_labels'; it holds: train_images"),
    "test without labels": ({"test_labels": None}, "no array 'test_labels'"),
    "unknown test label": ({"test_labels": np.array([-1] + [0] * 9)}, "test_labels .*holds -1"),
    "new class in test": ({"test_labels": np.arange(10) % 3}, "test_labels .*do not fit those of train"),
    "other size in test": ({"test_images": np.zeros((10, 14, 14), dtype=np.uint8)}, r"test_images .*\(14, 14, 1\)"),
    "source per patient": ({"train_source": np.zeros((40, 2), dtype=int)}, r"train_source .*shape \(40,\)"),
    "too few names": ({"class_names": np.array(["a"])}, "class_names .*has 1 entries"),
    "python objects": ({"train_labels": np.array([0, 1] * 20, dtype=object)}, "never unpickled"),
}


@pytest.mark.parametrize("case", BAD)
def test_arrays_that_do_not_fit(write_arrays, case: str) -> None:
    changes, message = BAD[case]
    with pytest.raises(DataError, match=message):
        load(write_arrays(**changes))


def test_truncated_file(write_arrays) -> None:
    path = write_arrays()
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"cannot be read .*truncated"):
        load(path)


def test_damaged_array_inside_a_whole_file(write_arrays) -> None:
    path = write_arrays()
    content = bytearray(path.read_bytes())
    content[1000:1100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        load(path)


def test_missing_file_and_missing_path() -> None:
    with pytest.raises(DataError, match=r"does not exist: .*no-such\.npz"):
        load(Path("/nowhere/no-such.npz"))
    with pytest.raises(ConfigError, match="needs a path"):
        npz.load_npz("")


def test_a_single_array_is_not_enough(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"single array"):
        load(tmp_path / "a.npy")


def test_another_image_size_is_offered(write_arrays) -> None:
    with pytest.raises(ConfigError, match="set image-size=12"):
        load(write_arrays(), image_size=28)
