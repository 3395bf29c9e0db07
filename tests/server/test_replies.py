from __future__ import annotations

import io
import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from jointdiff.protocol import RoundReport
from server.replies import check_update, read_reply, to_arrays
from simulations.local import LocalGrid


def _message(report: str | None, arrays: ArrayRecord | None = None) -> Message:
    LocalGrid()  # sets the identity that Flower's messages need
    content = RecordDict({"arrays": arrays or ArrayRecord()})
    if report is not None:
        content["report"] = ConfigRecord({"json": report})
    return Message(content, dst_node_id=1, message_type="train")


def _report(**changes) -> str:
    return json.dumps(json.loads(RoundReport("hospital-1", num_images=5).to_json()) | changes)


def test_a_good_reply_is_read():
    arrays = to_arrays({"w": np.ones((2, 3), np.float32)})
    reply = read_reply("hospital-1", _message(_report(metrics={"loss": 1}), arrays), bytes_in=7)
    assert reply.ok and reply.report.num_images == 5 and reply.report.metrics == {"loss": 1.0}
    assert np.array_equal(reply.tensors["w"], np.ones((2, 3), np.float32))
    assert reply.bytes_in == 7 and reply.bytes_out > 24


@pytest.mark.parametrize(
    "report, text",
    [
        (None, "cannot be read"),
        ("no json", "cannot be read"),
        ("[]", "unknown fields"),
        (_report(surprise=1), "unknown fields"),
        (_report(hospital="hospital-2"), "another hospital"),
        (_report(status="fine"), "status"),
        (_report(num_images=-1), "out of range"),
        (_report(num_images=10**300), "out of range"),
        (_report(num_images=True), "num_images is a bool"),
        (_report(num_images=1.5), "num_images is a float"),
        (_report(duration_s=float("nan")), "out of range"),
        (_report(reason=["x"]), "reason is a list"),
        (_report(metrics=[1]), "metrics is a list"),
        (_report(table={"x": "y" * 2_000_000}), "characters"),
    ],
)
def test_nonsense_is_a_failed_reply_with_the_reason(report, text):
    reply = read_reply("hospital-1", _message(report))
    assert not reply.ok and reply.report.status == "failed"
    assert text in reply.report.reason
    assert reply.hospital == "hospital-1" and reply.tensors == {}


def test_a_dead_process_is_a_failed_reply_without_its_text():
    question = _message(_report())
    reply = read_reply("hospital-1", Message(Error(2, "Traceback ... /data/patients/doe.npz"), reply_to=question))
    assert not reply.ok and "code 2" in reply.report.reason and "doe" not in reply.report.reason


def test_an_array_that_is_no_array_is_a_failed_reply():
    broken = ArrayRecord({"w": Array("float32", (2,), "numpy.ndarray", b"not numpy")})
    assert "cannot be read" in read_reply("hospital-1", _message(_report(), broken)).report.reason


def test_pickles_are_never_read():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    pickled = ArrayRecord({"w": Array("object", (1,), "numpy.ndarray", buffer.getvalue())})
    assert not read_reply("hospital-1", _message(_report(), pickled)).ok


def test_metrics_that_are_no_numbers_are_dropped_and_texts_cannot_move_the_cursor():
    text = _report(metrics={"loss": float("inf"), "ok": 2, "bad": "x"}, device="cpu\x1b[2J", reason="a\nb" * 999)
    report = read_reply("hospital-1", _message(text)).report
    assert report.metrics == {"ok": 2.0}
    assert report.device == "cpu [2J" and "\n" not in report.reason and len(report.reason) <= 500


def test_tensors_of_a_failed_report_are_not_used():
    arrays = to_arrays({"w": np.ones(2, np.float32)})
    assert read_reply("hospital-1", _message(_report(status="failed"), arrays)).tensors == {}


LIKE = {"a": np.zeros((2, 2), np.float32), "b": np.zeros(3, np.float32)}


@pytest.mark.parametrize(
    "change, text",
    [
        ({"a": np.zeros((2, 3), np.float32)}, r"a is float32 \[2, 3\]"),
        ({"a": np.zeros((2, 2), np.float64)}, "a is float64"),
        ({"b": np.array([0, np.nan, 0], np.float32)}, "b holds NaN"),
        ({"b": np.array([0, np.inf, 0], np.float32)}, "b holds NaN or infinite"),
        ({"c": np.zeros(1, np.float32)}, "unknown"),
    ],
)
def test_updates_that_do_not_fit_are_named(change, text):
    check_update(LIKE, like=LIKE)
    with pytest.raises(ValueError, match=text):
        check_update({**LIKE, **change}, like=LIKE)


def test_a_missing_tensor_is_named():
    with pytest.raises(ValueError, match=r"missing \['b'\]"):
        check_update({"a": LIKE["a"]}, like=LIKE)
