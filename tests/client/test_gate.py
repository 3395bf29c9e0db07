"""Hostile and broken branches of the ClientApp: what they try to send is stopped, and named at the site."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import io
import json
import logging
import logging.handlers
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from client import app as client_app
from client import manifest
from client.gate import GatedApp
from jointdiff import identity, parcels, protocol
from jointdiff.data import hospital_data
from jointdiff.errors import DataError, RefusedError
from jointdiff.events import read_events
from jointdiff.preparation import initial_weights, prepare
from jointdiff.protocol import RoundInstructions, RoundReport
from server.rounds import run_federation
from simulations.local import LocalGrid

NAME = "doe-1956"  # of the patient, and of every channel: names carry data too
_OTHERS = ("query.describe", "query.head", "query.explain", "evaluate.default")


class Tap(LocalGrid):
    """Keeps every byte that comes to the server, as Flower would write it on the wire."""

    def __init__(self, app, **rest) -> None:
        super().__init__(app, **rest)
        self.seen: list[bytes] = []

    def pull_messages(self, message_ids):
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            parts = [repr(reply.metadata), repr(reply.error) if reply.has_error() else ""]
            if reply.has_content():
                for name, record in reply.content.items():
                    parts += [name, *record.keys()]
                    parts += [repr(value) for value in record.values() if not isinstance(value, Array)]
                    self.seen += [array.data for array in record.values() if isinstance(array, Array)]
            self.seen.append("\n".join(parts).encode())
        return replies


def ways_to_write(image: np.ndarray) -> list[bytes]:
    """Return what a search for an image looks for: its middle rows, however they are written down."""
    rows = image[5:8].ravel()
    return [
        rows.tobytes(), rows.astype(np.float32).tobytes(), rows.astype(np.float64).tobytes(),
        rows.astype(np.int64).tobytes(), rows.tobytes().hex().encode(), str(rows.tolist()).encode(),
        " ".join(map(str, rows)).encode(), NAME.encode(),
    ]  # fmt: skip


def found_in(seen: list[bytes], image: np.ndarray) -> list[bytes]:
    return [text for text in ways_to_write(image) if any(text in part for part in seen)]


@pytest.fixture
def config(tiny_run):
    return prepare(tiny_run(num_hospitals=2))[0]


@pytest.fixture
def image(config) -> np.ndarray:
    return hospital_data(config.run, 1).train.images[0]


@pytest.fixture
def ask(config, tmp_path):
    asked = RoundInstructions(
        kind=protocol.TRAIN, run_name="tiny", hospital="hospital-2", hospital_index=1, round=3, config=config.to_dict(),
        site_folder=str(tmp_path / "site"), code_version=identity.code_version(), code_hash=identity.code_hash(),
    )  # fmt: skip
    return lambda **changes: dataclasses.replace(asked, **changes)


@pytest.fixture
def send(config, ask, tmp_path):
    """A function that sends TRAIN to an app whose train function is hostile; gives the report, all bytes, the log."""
    weights = initial_weights(config)

    def go(train: Callable[[Message, RecordDict], Any], **changes) -> tuple[RoundReport, Tap, str]:
        app = GatedApp()

        @app.train()
        def hostile(message: Message, _context) -> Any:
            report = RoundReport("hospital-2", num_images=16, device="cpu", metrics={"loss": 0.5}, duration_s=1.0)
            arrays = ArrayRecord({name: Array(array.copy()) for name, array in weights.items()})
            content = RecordDict({"report": ConfigRecord({"json": report.to_json()}), "arrays": arrays})
            given = train(message, content)
            return Message(content, reply_to=message) if given is None else given

        grid = Tap(app)
        arrays = ArrayRecord({name: Array(array) for name, array in weights.items()})
        content = RecordDict({"instructions": ConfigRecord({"json": ask(**changes).to_json()}), "arrays": arrays})
        (reply,) = grid.send_and_receive([Message(content, dst_node_id=2, message_type="train", group_id="3")])
        assert not reply.has_error() and set(reply.content) == {"report", "arrays"}
        report = RoundReport.from_json(str(reply.content["report"]["json"]))
        if report.status != "ok":
            assert not reply.content["arrays"]
        log = tmp_path / "site" / "site.log"
        return report, grid, log.read_text() if log.is_file() else ""

    return go


def in_report(**changes) -> Callable[[Message, RecordDict, np.ndarray], None]:
    def change(_message, content, _image):
        content["report"]["json"] = json.dumps(json.loads(content["report"]["json"]) | changes)

    return change


def report_with(field: str, make: Callable[[np.ndarray], Any]) -> Callable[[Message, RecordDict, np.ndarray], None]:
    return lambda message, content, image: in_report(**{field: make(image)})(message, content, image)


def pixels(image: np.ndarray) -> str:
    return f"{NAME} " + " ".join(map(str, image.ravel()))


def extra_tensor(_message, content, image):
    content["arrays"][NAME] = Array(image)


def extra_record(_message, content, image):
    content[NAME] = ArrayRecord({"x": Array(image)})


def metric_record(_message, content, image):
    content[NAME] = MetricRecord({"pixels": image.ravel().astype(int).tolist()})


def config_value(_message, content, image):
    content["report"][NAME] = image.tobytes()


def config_record(_message, content, image):
    content["instructions"] = ConfigRecord({NAME: image.tobytes()})


def other_type(_message, content, image):
    content["report"] = MetricRecord({NAME: image.ravel().astype(int).tolist()})


def no_json(_message, content, image):
    content["report"]["json"] = f"{NAME} {image.tobytes().hex()}"


def wrong_shape(_message, content, image):
    name = next(iter(content["arrays"]))
    content["arrays"][name] = Array(image.astype(np.float32))


def wrong_dtype(_message, content, image):
    name = next(iter(content["arrays"]))
    old = content["arrays"][name].numpy().astype(np.float64)
    old.ravel()[: image.size] = image.ravel()[: old.size]
    content["arrays"][name] = Array(old)


def no_array(_message, content, image):
    name = next(iter(content["arrays"]))
    content["arrays"][name] = Array("float32", (1,), "numpy.ndarray", NAME.encode() + image.tobytes())


def missing_tensor(_message, content, _image):
    del content["arrays"][next(iter(content["arrays"]))]


def tensors_of_a_failure(message, content, image):
    extra_tensor(message, content, image)
    in_report(status="failed", code="data", reason="Something is wrong.")(message, content, image)


def flower_error(message, _content, image):
    return Message(Error(0, pixels(image)), reply_to=message)


def no_message(_message, _content, image):
    return {NAME: image}


ATTACKS: dict[str, tuple[Callable, str]] = {
    "an image as an extra tensor": (extra_tensor, "an undeclared tensor: 'doe-1956'"),
    "an extra array record": (extra_record, "an undeclared record: ['doe-1956']"),
    "a metric record": (metric_record, "an undeclared record: ['doe-1956']"),
    "a configuration value": (config_value, "an undeclared configuration value: ['doe-1956']"),
    "a configuration record": (config_record, "an undeclared record: ['instructions']"),
    "another type of record": (other_type, "a record of another type"),
    "a report that is no JSON": (no_json, "a report that is no JSON: doe-1956"),
    "a tensor of another shape": (wrong_shape, "a tensor of another shape or type"),
    "a tensor of another type": (wrong_dtype, "a tensor of another shape or type"),
    "bytes that are no tensor": (no_array, "a tensor that cannot be read"),
    "fewer tensors": (missing_tensor, "a reply without all of its declared tensors"),
    "tensors of a failure": (tensors_of_a_failure, "a tensor beside a report that is not ok"),
    "an error message of Flower's": (flower_error, "an error message"),
    "no message at all": (no_message, "a reply that is no message: dict"),
    "a metric": (report_with("metrics", lambda i: {f"{NAME}-{k}": int(v) for k, v in enumerate(i.ravel())}),
                 "an undeclared scalar: 'doe-1956"),
    "a number without end": (report_with("metrics", lambda i: {"loss": int.from_bytes(i.tobytes(), "big")}),
                             "a scalar that is no finite number of a sane size: loss"),
    "a metric that is no number": (report_with("metrics", lambda i: {"loss": pixels(i)}),
                                   "a scalar that is no finite number of a sane size: loss"),
    "infinity": (report_with("metrics", lambda _: {"loss": float("inf")}), "a scalar that is no finite number"),
    "NaN": (report_with("metrics", lambda _: {"loss": float("nan")}), "a scalar that is no finite number"),
    "a count": (report_with("num_images", lambda i: int.from_bytes(i.tobytes(), "big")), "a count that is none"),
    "an undeclared field": (report_with(NAME, lambda i: i.tolist()), "an undeclared field of the report: ['doe-1956']"),
    "a table": (report_with("table", lambda i: {NAME: i.tolist()}), "an undeclared table: 'doe-1956'"),
    "a device": (report_with("device", pixels), "a device that is not one of this machine"),
    "another hospital's name": (report_with("hospital", pixels), "another hospital's name"),
    "a status": (report_with("status", pixels), "a status that is not declared"),
    "a code": (report_with("code", pixels), "a code that is not declared"),
    "a reason in a good report": (report_with("reason", pixels), "a reason in a report that is ok"),
    "names of what is withheld": (report_with("withheld", lambda i: [NAME, *map(str, i.ravel())]), "withheld"),
    "a reason of numbers": (
        lambda m, c, i: in_report(status="failed", reason=pixels(i), metrics={}, num_images=0, duration_s=0)(m, c, i),
        "a reason that is no safe text",
    ),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_not_declared_is_stopped_and_named_at_the_site_alone(attack, send, image, tmp_path):
    spoil, named = ATTACKS[attack]
    report, grid, log = send(lambda message, content: spoil(message, content, image))
    assert (report.status, report.code) == ("refused", "egress"), report
    assert re.fullmatch(r"egress: .* was stopped; its name is in the log of the site", report.reason)
    assert not found_in(grid.seen, image)
    assert named in log
    found = manifest.read(tmp_path / "site", "tiny")
    ((number, entry),) = found.entries
    assert number == 3 and entry["status"] == "refused" and named.split(":")[0] in entry["stopped"]
    assert not found.problems


RAISED: dict[str, tuple[Callable[[np.ndarray], BaseException], str, str]] = {
    "a plain exception": (lambda i: ValueError(pixels(i)), "internal", "ValueError"),
    "one of our own": (lambda i: DataError(pixels(i)), "data", "DataError"),
    "a refusal": (lambda i: RefusedError(i.tobytes().hex() + NAME + "_1"), "refused", "RefusedError"),
    "a class of that name": (lambda i: type(NAME.replace("-", "_"), (ValueError,), {})(), "internal", "an error"),
    "the end of the process": (lambda i: SystemExit(pixels(i)), "internal", "SystemExit"),
}


@pytest.mark.parametrize("case", RAISED)
def test_the_text_of_an_exception_stays(case, send, image):
    make, code, name = RAISED[case]

    def train(_message, _content):
        raise make(image)

    report, grid, log = send(train)
    assert (report.code, report.reason) == (code, f"{name} (the details are in the log of the site)")
    assert report.status == ("refused" if code == "refused" else "failed")
    assert not found_in(grid.seen, image) and not found_in(grid.seen, image[:, ::-1])
    assert NAME.replace("-", "") in log.replace("-", "").replace("_", "") and "Traceback" in log


def test_an_interrupt_still_ends_the_process_and_carries_nothing(send):
    def train(_message, _content):
        raise KeyboardInterrupt(NAME)

    with pytest.raises(KeyboardInterrupt) as caught:
        send(train)
    assert not caught.value.args


def test_what_is_printed_or_logged_goes_to_the_site_s_log_alone(send, capfd, caplog, monkeypatch):
    logger = logging.getLogger("hostile")
    flower = logging.getLogger("flwr")
    kept: list[logging.LogRecord] = []
    shipper = logging.getLogger("shipper")  # a logger with a handler of its own, that would send its records away
    shipper.propagate = False
    shipper.handlers = [logging.handlers.BufferingHandler(1)]
    monkeypatch.setattr(shipper.handlers[0], "emit", kept.append)

    def train(_message, _content):
        shipper.error("shipped %s", NAME)
        logging.getLogger().error("root %s", NAME)
        logger.error("logger %s", NAME)
        flower.error("flower %s", NAME)
        print("printed", NAME)  # noqa: T201
        print("printed to stderr", NAME, file=sys.stderr)  # noqa: T201
        warnings.warn(f"warned {NAME}", stacklevel=1)
        os.write(1, f"by descriptor {NAME}\n".encode())
        os.write(2, f"by error descriptor {NAME}\n".encode())
        ctypes.CDLL(None).puts(f"by C {NAME}".encode())
        os.system(f"echo by a child {NAME}")

    before = (sys.stdout, sys.stderr, logging.root.handlers[:], flower.handlers[:])
    report, _, log = send(train)
    assert report.status == "ok"
    assert (sys.stdout, sys.stderr, logging.root.handlers, flower.handlers) == before
    outside = capfd.readouterr()
    assert NAME not in outside.out + outside.err and NAME not in caplog.text and not kept
    for way in ("shipped", "root", "logger", "flower", "printed", "printed to stderr", "warned", "by descriptor",
                "by error descriptor", "by C", "by a child"):  # fmt: skip
        assert f"{way} {NAME}" in log, way
    print("afterwards")  # noqa: T201
    assert capfd.readouterr().out == "afterwards\n"


def test_bytes_behind_the_numbers_and_metadata_do_not_travel(send, image):
    """An honest form with something hidden beside it: the reply is made anew, so that only the numbers leave."""

    def train(message, content):
        name = next(iter(content["arrays"]))
        old = content["arrays"][name]
        content["arrays"][name] = Array(NAME, (1956, *old.shape), old.stype, old.data + image.tobytes())
        message.metadata.group_id = f"{NAME}{image.tobytes().hex()}"
        message.metadata.__dict__["_src_node_id"] = int.from_bytes(image.tobytes()[:8], "big")

    report, grid, _ = send(train)
    assert report.status == "ok"
    assert not found_in(grid.seen, image)


def test_the_instructions_are_read_before_the_work_can_change_them(send, tmp_path):
    def train(message, _content):
        changed = json.loads(message.content["instructions"]["json"]) | {"site_folder": str(tmp_path / "elsewhere")}
        message.content["instructions"]["json"] = json.dumps(changed)

    send(train)
    assert (tmp_path / "site" / "egress" / "tiny" / "round-0003.json").is_file()
    assert not (tmp_path / "elsewhere").exists()


def test_without_a_manifest_nothing_leaves(send, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifest.storage, "write_json", full)
    report, grid, log = send(lambda *_: None)
    assert (report.status, report.code) == ("refused", "manifest") and "cannot be written" in report.reason
    assert max(map(len, grid.seen)) < 2000 and "No space left" in log


def test_without_a_log_nothing_leaves_either(send, tmp_path, capfd):
    (tmp_path / "site" / "site.log").mkdir(parents=True)
    report, grid, _ = send(lambda *_: os.write(1, NAME.encode()) and None)
    assert (report.status, report.code) == ("refused", "manifest")
    assert max(map(len, grid.seen)) < 2000 and NAME not in capfd.readouterr().out


@pytest.mark.parametrize(
    "changes", [{"run_name": "../../etc"}, {"hospital": "a/b"}, {"round": -1}, {"round": 1.5}, {"config": []},
                {"site_folder": 7}, {"kind": {"a": 1}}]
)  # fmt: skip
def test_instructions_of_another_form_are_not_followed(changes, send, tmp_path):
    ran = []
    report, _, _ = send(lambda *_: ran.append(1), **changes)
    assert (report.status, report.code, report.hospital) == ("failed", "instructions", "") and not ran
    assert not (tmp_path / "site").exists()


def test_data_inside_an_allowed_tensor_is_not_seen(send, image):
    """What the gate cannot do, kept as a test: the form of a tensor is checked, never what its numbers mean."""

    def train(_message, content):
        name, old = next((n, a) for n, a in content["arrays"].items() if np.prod(a.shape) >= image.size)
        hidden = old.numpy().copy()
        hidden.ravel()[: image.size] = image.ravel()
        content["arrays"][name] = Array(hidden)

    report, grid, _ = send(train)
    assert report.status == "ok" and found_in(grid.seen, image)


def test_a_run_goes_on_without_the_replies_that_are_stopped(tiny_run, monkeypatch):
    """The five channels of a hostile branch, one a round, in a whole federation; the server gets none of the image."""
    run = tiny_run(num_hospitals=2, num_rounds=5, local_steps=1)
    image = hospital_data(run, 1).train.images[0]

    def by_exception(*_):
        raise DataError(pixels(image))

    def by_log(*_):
        logging.getLogger("hostile").error(pixels(image))
        print(pixels(image))  # noqa: T201
        raise ValueError(pixels(image))

    attacks = [extra_tensor, ATTACKS["a metric"][0], config_value, by_log, by_exception]
    app = GatedApp()
    for name in _OTHERS:
        app._registered_funcs[name] = client_app.app._registered_funcs[name]

    @app.train()
    def train(message, context):
        ask = RoundInstructions.from_json(str(message.content["instructions"]["json"]))
        reply = client_app.train(message, context)
        if ask.hospital == "hospital-2":
            attacks[ask.round - 1](message, reply.content, image)
        return reply

    grid = Tap(app)
    folder = run_federation(grid, run)
    events = read_events(folder / "events.jsonl")
    assert events[-1]["event"] == "run_finished"
    lost = [(e["round"], e["hospital"], e["event"], e["code"]) for e in events if e["event"] in
            ("hospital_failed", "hospital_refused")]  # fmt: skip
    assert lost == [(n, "hospital-2", "hospital_refused", "egress") for n in (1, 2, 3)] + [
        (4, "hospital-2", "hospital_failed", "internal"), (5, "hospital-2", "hospital_failed", "data")
    ]  # fmt: skip
    assert [e["num_replies"] for e in events if e["event"] == "round_aggregated"] == [1] * 5
    assert not found_in(grid.seen, image)
    assert not found_in([(folder / "events.jsonl").read_bytes(), (folder / "report.html").read_bytes()], image)
    log = (folder / "sites" / "hospital-2" / "site.log").read_text()
    named_there = (
        "an undeclared tensor: 'doe-1956'",
        "an undeclared scalar: 'doe-1956-",
        "an undeclared configuration value: ['doe-1956']",
        f"hostile: {NAME} ",
        f"DataError: {NAME} ",
    )
    for named in named_there:
        assert named in log, named


def test_every_kind_of_honest_reply_passes_and_the_manifest_counts_what_the_server_got(tiny_run, quick_referee):
    run = tiny_run(num_hospitals=2, num_rounds=1, local_steps=1, explain=2)
    grid = Tap(client_app.app)
    folder = run_federation(grid, run)
    events = read_events(folder / "events.jsonl")
    assert not [e for e in events if e["event"] in ("hospital_failed", "hospital_refused", "update_rejected")]
    arrived = [np.load(io.BytesIO(part)) for part in grid.seen if part.startswith(b"\x93NUMPY")]
    sent = {hashlib.sha256(t.tobytes()).hexdigest() for parcel in arrived for t in parcels.unpack(parcel).values()}
    for hospital in ("hospital-1", "hospital-2"):
        got = [(e["round"], e["kind"], e["bytes_out"]) for e in events if e["event"] == "hospital_replied" and
               e["hospital"] == hospital]  # fmt: skip
        found = manifest.read(folder / "sites" / hospital, "tiny")
        assert not found.problems
        assert [(n, e["kind"], e["num_bytes"]) for n, e in found.entries] == got
        assert {kind for _, kind, _ in got} == {"describe", "train", "head", "evaluate", "explain"}
        listed = {t["sha256"] for _, e in found.entries for t in e["tensors"]}
        assert listed and listed <= sent
