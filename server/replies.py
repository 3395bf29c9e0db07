"""What comes from a hospital is checked before anything is done with it: the envelope, the report, the tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode

from jointdiff import parcels
from jointdiff.protocol import CODES, RoundInstructions, RoundReport

MAX_REPORT_CHARACTERS = 1_000_000
MAX_REASON_CHARACTERS = 500
MAX_WITHHELD = 10_000  # names of statistics that a site withholds
MAX_COUNT = 2**29  # images; below it a float32 times a count is exact in float64


@dataclass(frozen=True)
class Reply:
    """One hospital's answer to one question, or the reason why there is none."""

    hospital: str
    report: RoundReport
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)
    bytes_in: int = 0  # server -> site
    bytes_out: int = 0  # site -> server
    unreachable: bool = False  # nothing came, and soon: worth asking again
    surplus: bool = False  # a second reply to one question
    damage: str = ""  # why its tensors cannot be decoded

    @property
    def ok(self) -> bool:
        """Whether the hospital did what it was asked."""
        return self.report.status == "ok"


def failure(hospital: str, reason: str, *, bytes_in: int = 0, unreachable: bool = False) -> Reply:
    """Return the reply of a hospital that gave none."""
    report = RoundReport(hospital, status="failed", reason=one_line(reason))
    return Reply(hospital, report, bytes_in=bytes_in, unreachable=unreachable)


def pack(instructions: RoundInstructions, arrays: ArrayRecord) -> RecordDict:
    """Return the content of a message to a hospital; `arrays` may be shared by several messages."""
    return RecordDict({"instructions": ConfigRecord({"json": instructions.to_json()}), "arrays": arrays})


def to_arrays(tensors: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Return tensors as Flower's record of parcels."""
    return ArrayRecord({name: Array(parcel) for name, parcel in parcels.pack(tensors).items()})


def from_arrays(arrays: ArrayRecord) -> dict[str, np.ndarray]:
    """Return the tensors of a record of parcels, which is emptied: Flower's records hold each other in cycles.

    Raises:
        ValueError: It holds something else.
    """
    return parcels.unpack_all(arrays.pop(name).numpy() for name in list(arrays))  # no model is in memory twice


def num_bytes(content: RecordDict) -> int:
    """Return about how many bytes the records of a message take on the wire."""
    return sum(record.count_bytes() for record in content.values())


def read_reply(hospital: str, message: Message, *, bytes_in: int = 0) -> Reply:
    """Read what came back for `hospital`; whatever is wrong with it becomes a failed reply with the reason."""
    if message.has_error():
        gone = message.error.code == ErrorCode.NODE_UNAVAILABLE
        what = "its SuperNode is not connected" if gone else "its process ended without an answer"
        reason = f"{what} (Flower's code {message.error.code})"
        return failure(hospital, reason, bytes_in=bytes_in, unreachable=True)
    bytes_out = num_bytes(message.content)
    try:
        report = _read_report(str(message.content.config_records["report"]["json"]), hospital)
        tensors = from_arrays(message.content.array_records["arrays"])
    except Exception as error:  # the sender is not trusted: any error here is its fault, not ours
        reason = f"its reply cannot be read ({error})" if isinstance(error, _BadReportError) else (
            f"its reply cannot be read ({type(error).__name__})")  # fmt: skip
        return failure(hospital, reason, bytes_in=bytes_in)
    return Reply(hospital, report, tensors if report.status == "ok" else {}, bytes_in, bytes_out)


class _BadReportError(Exception):
    """The report is not what the protocol says."""


def _read_report(text: str, hospital: str) -> RoundReport:
    """Read a report strictly: known fields, right types, counts not negative, and the hospital that was asked."""
    if len(text) > MAX_REPORT_CHARACTERS:
        raise _BadReportError(f"the report has {len(text)} characters, more than {MAX_REPORT_CHARACTERS}")
    values = json.loads(text)
    known = {f.name: type(getattr(RoundReport(hospital), f.name)) for f in fields(RoundReport)}
    if not isinstance(values, dict) or not values.keys() <= known.keys():
        raise _BadReportError("the report has unknown fields")
    for name, value in values.items():
        wanted = (int, float) if known[name] is float else known[name]
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise _BadReportError(f"{name} is a {type(value).__name__}, not a {known[name].__name__}")
    report = RoundReport.from_json(text)
    if report.hospital != hospital:
        raise _BadReportError("it names another hospital than the one that was asked")
    if report.status not in ("ok", "refused", "failed"):
        raise _BadReportError("its status is unknown")
    if not (0 <= report.num_images < MAX_COUNT and 0 <= report.num_labels < MAX_COUNT and report.duration_s >= 0):
        raise _BadReportError("a count or a duration is out of range")
    metrics = {str(name): float(v) for name, v in report.metrics.items() if isinstance(v, int | float)}
    return RoundReport(
        hospital,
        status=report.status,
        code=report.code if report.code in CODES else "",
        reason=one_line(report.reason),
        num_images=report.num_images,
        num_labels=report.num_labels,
        duration_s=report.duration_s,
        device=one_line(report.device)[:100],
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        table=report.table,
        withheld=[one_line(name)[:100] for name in report.withheld[:MAX_WITHHELD] if isinstance(name, str)],
        payload=report.payload,
    )


def check_update(tensors: Mapping[str, np.ndarray], *, like: Mapping[str, np.ndarray]) -> None:
    """Check that tensors can be merged into the model `like`: one NaN in one hospital's weights would be everyone's.

    Raises:
        ValueError: Names, shapes or types differ, or a value is not finite; says which.
    """
    if tensors.keys() != like.keys():
        missing, unknown = sorted(like.keys() - tensors.keys()), sorted(tensors.keys() - like.keys())
        raise ValueError(f"the names of the tensors differ: missing {missing[:2]}, unknown {unknown[:2]}")
    for name, array in tensors.items():
        wanted = like[name]
        if array.shape != wanted.shape or array.dtype != wanted.dtype:
            raise ValueError(f"{name} is {array.dtype} {list(array.shape)}, not {wanted.dtype} {list(wanted.shape)}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinite values")


def one_line(text: str) -> str:
    """Return at most MAX_REASON_CHARACTERS printable characters: the text goes into logs and onto pages."""
    return "".join(c if c.isprintable() else " " for c in text)[:MAX_REASON_CHARACTERS]
