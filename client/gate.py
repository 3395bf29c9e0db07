"""The gate around the whole ClientApp: every reply passes it last, whoever made it, and nothing leaves that it stops.

Instructions are read before the work can touch them, and the reply is made anew of what the allow-list lets through,
so that neither records, names, headers, metadata, nor an error of Flower's can carry anything else. Order: work (its
output goes to site.log) -> allow-list -> manifest on disk -> reply.
"""

from __future__ import annotations

import copy
import json
import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client import border, egress, manifest, site_config, site_log
from client.egress import StoppedError
from client.safe_text import safe_reason
from jointdiff import parcels
from jointdiff.errors import JointDiffError
from jointdiff.protocol import RoundInstructions, RoundReport

MAX_REPORT_CHARACTERS = 100_000
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_UNREADABLE = RoundReport(
    "", status="failed", code="instructions", reason="The instructions cannot be read, so nothing was done."
)
_NO_MANIFEST = "The manifest of what leaves this site cannot be written, so nothing leaves it."


class GatedApp(ClientApp):
    """A Flower ClientApp whose every reply passes the gate."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Do what the message asks, and let out what may leave."""
        return guard(message, lambda: super(GatedApp, self).__call__(message, context))


def guard(message: Message, work: Callable[[], Message]) -> Message:
    """Return the reply to `message` that may leave the site.

    Args:
        message: What came from the server.
        work: Makes the reply; called once, with everything it prints and logs going to site.log.

    Raises:
        KeyboardInterrupt: The process is being stopped.
    """
    envelope = Message(RecordDict(), metadata=copy.copy(message.metadata))  # type: ignore[call-overload]
    ask = _read_instructions(message)
    if ask is None:
        return Message(_pack(_UNREADABLE, {}), reply_to=envelope)
    try:
        folder = site_config.folder_of(ask)
    except JointDiffError as error:
        return Message(_pack(border.refusal(ask, error), {}), reply_to=envelope)
    with site_log.captured(folder):
        report, arrays, stopped = _let_through(ask, folder, work)
        content = _pack(report, arrays)
        try:
            manifest.append(folder, ask.run_name, ask.round, ask.hospital, _entry(ask.kind, content, stopped))
        except Exception:
            traceback.print_exc()
            report = RoundReport(ask.hospital, status="refused", code="manifest", reason=_NO_MANIFEST)
            content = _pack(report, {})
    return Message(content, reply_to=envelope)


def _let_through(
    ask: RoundInstructions, folder: Path, work: Callable[[], Message]
) -> tuple[RoundReport, dict[str, np.ndarray], str]:
    """Return what may leave of the work's reply, and what was stopped, by its name, for the site alone."""
    try:
        policy = site_config.policy_of(ask)
        reply = work()
        report, arrays = egress.check(ask, *_unpack(reply), policy)
        return report, arrays, ""
    except StoppedError as error:
        border.write_log(ask, folder, error, f"{error.what}: {error.detail}")
        return egress.stopped_report(ask.hospital, error), {}, f"{error.what}: {site_log.one_line(error.detail)}"
    except KeyboardInterrupt:
        raise KeyboardInterrupt from None  # without what a work function may have put into it
    except BaseException as error:  # SystemExit too: its text would be printed by whoever ends the process
        border.write_log(ask, folder, error, safe_reason(error))
        return border.refusal(ask, error), {}, ""


def _read_instructions(message: Message) -> RoundInstructions | None:
    """Return the instructions of a message, or None where they are not what the protocol says."""
    try:
        ask = RoundInstructions.from_json(str(message.content.config_records["instructions"]["json"]))
    except Exception:
        return None
    plain = (ask.run_name, ask.hospital, ask.kind)
    sane = (
        all(isinstance(text, str) and _PLAIN_NAME.fullmatch(text) for text in plain)
        and type(ask.round) is int
        and 0 <= ask.round < 10**6
        and isinstance(ask.site_folder, str)
        and isinstance(ask.config, Mapping)
    )
    return ask if sane else None


def _unpack(reply: Any) -> tuple[RoundReport, dict[str, np.ndarray]]:
    """Read a reply strictly: the two declared records, a report of known fields, arrays that are what they say.

    Raises:
        StoppedError: There is anything else in it.
    """
    if not isinstance(reply, Message):
        raise StoppedError("a reply that is no message", type(reply).__name__)
    if reply.has_error():
        raise StoppedError("an error message", repr(reply.error.reason))
    records = dict(reply.content)
    unknown = records.keys() - {"report", "arrays"}
    if unknown:
        raise StoppedError("an undeclared record", repr(sorted(unknown)))
    report, arrays = records.get("report"), records.get("arrays")
    if not isinstance(report, ConfigRecord) or not isinstance(arrays, ArrayRecord):
        raise StoppedError("a record of another type than declared", f"{type(report)}, {type(arrays)}")
    if report.keys() != {"json"}:
        raise StoppedError("an undeclared configuration value", repr(sorted(report.keys() - {"json"})))
    return _read_report(report["json"]), {name: _read_array(name, array) for name, array in arrays.items()}


def _read_report(text: Any) -> RoundReport:
    if not isinstance(text, str) or len(text) > MAX_REPORT_CHARACTERS:
        raise StoppedError("a report that is no text of a sane size", type(text).__name__)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise StoppedError("a report that is no JSON", text) from None
    known = {f.name: type(getattr(RoundReport(""), f.name)) for f in fields(RoundReport)}
    if not isinstance(values, dict) or not values.keys() <= known.keys():
        unknown = sorted(values.keys() - known.keys()) if isinstance(values, dict) else type(values).__name__
        raise StoppedError("an undeclared field of the report", repr(unknown))
    for name, value in values.items():
        wanted = (int, float) if known[name] is float else known[name]
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise StoppedError("a field of the report of another type than declared", f"{name}: {value!r}"[:2000])
    if not all(isinstance(name, str) for name in values.get("withheld", [])):
        raise StoppedError("a field of the report of another type than declared", "withheld")
    return RoundReport(**{"hospital": "", **values})


def _read_array(name: str, array: Array) -> np.ndarray:
    try:
        return array.numpy()
    except Exception:
        raise StoppedError("a tensor that cannot be read", repr(name)) from None


def _pack(report: RoundReport, arrays: Mapping[str, np.ndarray]) -> RecordDict:
    """Return the content of a reply: the arrays are written anew, so that no byte beside their numbers travels."""
    packed = ArrayRecord({name: Array(parcel) for name, parcel in parcels.pack(arrays).items()})
    return RecordDict({"report": ConfigRecord({"json": report.to_json()}), "arrays": packed})


def _entry(kind: str, content: RecordDict, stopped: str) -> dict[str, Any]:
    """Return the manifest's entry of a reply, from the very records that are about to leave."""
    text = str(content["report"]["json"])
    arrays = content.array_records["arrays"]
    tensors = [
        manifest.Tensor(name, tensor.shape, str(tensor.dtype), tensor.tobytes())
        for array in arrays.values()
        for name, tensor in sorted(parcels.unpack(array.numpy()).items())
    ]
    around = arrays.count_bytes() - sum(len(tensor.data) + len(tensor.name) for tensor in tensors)
    entry = manifest.entry_of(kind, text, tensors, envelope_bytes=len("json") + around)
    return entry | ({"stopped": stopped} if stopped else {})
