"""Tensors as parcels of bytes: whole, few, the same each time, and nothing but tensors comes out of them."""

import numpy as np
import pytest

from jointdiff.parcels import PARCEL_BYTES, pack, unpack, unpack_all

TENSORS = {
    "scalar": np.array(3, np.int64),
    "mask": np.arange(5, dtype=np.uint64),
    "half": np.ones((3, 2), np.float16),
    "none": np.zeros((0, 4), np.float32),
    "turned": np.arange(6, dtype=np.int8).reshape(2, 3).T,
    "sum": np.linspace(0, 1, 7),
    "words": np.array([1, 65_535], np.uint16),
    "": np.array([True, False]),
}


def test_what_is_packed_comes_out():
    found = unpack_all(pack(TENSORS).values())
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert np.array_equal(found[name], tensor)


def test_a_hundred_tensors_are_one_array_and_the_order_changes_no_byte():
    tensors = {f"layer-{k}": np.full(100, k, np.float32) for k in range(100)}
    (parcel,) = pack(tensors).values()
    (other,) = pack(dict(reversed(tensors.items()))).values()
    assert parcel.dtype == np.uint8 and np.array_equal(parcel, other)


def test_a_large_model_is_packed_in_parts():
    tensors = {f"layer-{k}": np.zeros(PARCEL_BYTES // 10, np.float32) for k in range(10)}
    tensors["large"] = np.zeros(PARCEL_BYTES, np.float32)
    parcels = pack(tensors)
    assert len(parcels) == 6 and sum(parcel.nbytes > 1.01 * PARCEL_BYTES for parcel in parcels.values()) == 1
    assert unpack_all(parcels.values()).keys() == tensors.keys()


def test_no_tensor_is_no_parcel():
    assert pack({}) == {} and unpack_all([]) == {}


def test_memory_beside_a_view_stays_here():
    scans = np.full(1000, 77, np.uint8)
    (parcel,) = pack({"view": scans[10:20]}).values()
    assert parcel.tobytes().count(77) == 10


@pytest.mark.parametrize("bad", [b"", b"\0" * 8, b"\xff" * 20, b"nonsense " * 9])
def test_what_is_no_parcel_is_refused(bad):
    with pytest.raises(ValueError, match="cannot be opened"):
        unpack(np.frombuffer(bad, np.uint8))


def test_a_parcel_that_was_cut_or_is_no_row_of_bytes_is_refused():
    (parcel,) = pack({"w": np.ones(9, np.float32)}).values()
    with pytest.raises(ValueError, match="cannot be opened"):
        unpack(parcel[:-1])
    for bad in (parcel.astype(np.float32), parcel.reshape(1, -1)):
        with pytest.raises(ValueError, match="row of bytes"):
            unpack(bad)


def test_a_name_comes_once():
    parcel = pack({"w": np.ones(9, np.float32)})["parcel-0000"]
    with pytest.raises(ValueError, match="same name"):
        unpack_all([parcel, parcel])
