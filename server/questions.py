"""One question to the hospitals, from sending to a checked set of answers.

A hospital that cannot be reached is asked again; one that raises, hangs, refuses or answers nonsense costs its answer
and is named in the events with the reason. Too few good answers: the question is repeated, then the run stops.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from jointdiff import identity, protocol
from jointdiff.config import Config
from jointdiff.errors import RunError
from jointdiff.protocol import RoundInstructions
from jointdiff.record import RunRecord
from server.exchange import Sent
from server.hospitals import Hospitals
from server.replies import Reply, failure, one_line, to_arrays
from server.spool import Spool

Tensors = Mapping[str, np.ndarray]
Check = Callable[[Reply, Tensors], None]
CheckAll = Callable[[Sequence[Reply], Spool], Mapping[str, str]]
BACKOFF_S = 2.0  # before the first repetition; doubled for each further one
_ASKED = {
    protocol.AUTOENCODER: "keep the autoencoder",
    protocol.KEYS: "show keys",
    protocol.SHARES: "deal shares",
    protocol.UNMASK: "help to unmask the sum",
}
_DONE = {"ok": "hospital_replied", "failed": "hospital_failed", "refused": "hospital_refused"}


class TooFewError(RunError):
    """Fewer hospitals than are needed gave a good answer to one question."""

    def __init__(self, text: str, *, kind: str, num_good: int, minimum: int) -> None:
        """Remember what the event of a repetition says."""
        super().__init__(text)
        self.kind = kind
        self.num_good = num_good
        self.minimum = minimum


@dataclass
class Answers:
    """The good answers to one question, in the hospitals' order, without their tensors: these lie in the spool."""

    spool: Spool
    good: list[Reply] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)  # hospital -> reason

    def tensors(self) -> Iterator[tuple[Reply, dict[str, np.ndarray]]]:
        """Yield every good reply with its tensors, one in memory at a time."""
        for reply in self.good:
            yield reply, self.spool.read(reply.hospital)


class Questions:
    """Asks the hospitals of a run, and writes down what came of it."""

    def __init__(
        self, hospitals: Hospitals, config: Config, record: RunRecord, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._hospitals = hospitals
        self._config = config
        self._record = record
        self._sleep = sleep
        sites_home = config.run.sites_home
        self._sites = Path(sites_home) if sites_home else record.folder / "sites"

    @property
    def minimum(self) -> int:
        """How many good answers a question to all hospitals needs."""
        return self.minimum_of(len(self._hospitals.names))

    def minimum_of(self, num_asked: int) -> int:
        """How many good answers a question to so many hospitals needs."""
        return self._config.run.min_hospitals or num_asked // 2 + 1

    @contextmanager
    def ask(
        self,
        kind: str,
        number: int,
        tensors: Tensors | Sent,
        *,
        minimum: int,
        check: Check | None = None,
        check_all: CheckAll | None = None,
        only: Sequence[str] | None = None,
        payloads: Mapping[str, Mapping[str, Any]] | None = None,
        repeat: bool = True,
    ) -> Iterator[Answers]:
        """Send one question; give the good answers while the block lasts.

        Args:
            kind: One of protocol.KINDS.
            number: Of the round, counted within the phase; 0 before the first.
            tensors: What travels with the question; a Sent says too how the instructions name it and answers are read.
            minimum: Good answers wanted; with fewer the question is repeated.
            check: Called with each reply and its tensors; a ValueError rejects the reply.
            check_all: Called once with the replies that passed; names hospitals to reject, with reasons.
            only: The hospitals to ask; None = all.
            payloads: What the instructions of each hospital carry beside; those without are not asked. None = nothing.
            repeat: False = too few good answers end it at once: the caller repeats more than this question.

        Raises:
            TooFewError: Too few good answers, repetitions included. The run can be resumed.
        """
        sent = tensors if isinstance(tensors, Sent) else Sent(tensors)
        for attempt in range(self._config.run.round_retries + 1):
            with Spool(self._record.folder / "spool") as spool:
                answers = self._collect(kind, number, sent, spool, only, payloads)
                self._check(kind, number, answers, check, check_all)
                if len(answers.good) >= minimum:
                    yield answers
                    return
            error = self._too_few(kind, number, answers, minimum)
            if not repeat or attempt == self._config.run.round_retries:
                raise error
            self.before_repeating(number, error, attempt)

    def before_repeating(self, number: int, error: TooFewError, attempt: int) -> None:
        """Say in the events that a question is asked again, and wait: longer for each `attempt`, from 0.

        Real hospitals are waited for until enough are connected again.
        """
        self._record.event(
            "round_repeated", round=number, kind=error.kind, num_replies=error.num_good, min_hospitals=error.minimum
        )
        self._sleep(BACKOFF_S * 2**attempt)
        self._hospitals.wait_until_connected(error.minimum)

    def _collect(
        self,
        kind: str,
        number: int,
        sent: Sent,
        spool: Spool,
        only: Sequence[str] | None,
        payloads: Mapping[str, Mapping[str, Any]] | None,
    ) -> Answers:
        """Ask all once, and those that could not be reached again; spool every answer."""
        arrays = to_arrays(sent.arrays)
        transfer = sent.transfer.to_dict()
        names = self._hospitals.names
        waiting = [name for name in names if (only is None or name in only) and (payloads is None or name in payloads)]
        replies: dict[str, Reply] = {}
        for attempt in range(self._config.run.round_retries + 1):
            if attempt:
                self._sleep(BACKOFF_S * 2 ** (attempt - 1))
            questions = [
                replace(
                    self._question(kind, number, names.index(name)),
                    payload=(payloads or {}).get(name, {}),
                    transfer=transfer,
                )
                for name in waiting
            ]
            for reply in self._hospitals.ask(questions, arrays):
                kept = _spooled(reply, spool, sent.decode)
                del reply  # before the next one comes: two models would be in memory
                self._note(kind, number, kept)
                if not kept.surplus:
                    replies[kept.hospital] = kept
            waiting = [name for name in waiting if replies[name].unreachable]
            if not waiting:
                break
        arrays.clear()  # Flower's records hold each other in cycles: a model would wait until Python looks for them
        ordered = [replies[name] for name in names if name in replies]
        return Answers(spool, [r for r in ordered if r.ok], {r.hospital: r.report.reason for r in ordered if not r.ok})

    def _check(self, kind: str, number: int, answers: Answers, check: Check | None, check_all: CheckAll | None) -> None:
        """Move the answers that are no good from `good` to `lost`, and say so in the events."""
        reasons = {reply.hospital: reply.damage for reply in answers.good if reply.damage}
        answers.good = [reply for reply in answers.good if not reply.damage]
        for reply, tensors in answers.tensors() if check else ():
            try:
                check(reply, tensors)  # type: ignore[misc]
            except ValueError as error:
                reasons[reply.hospital] = one_line(str(error))
        passed = [reply for reply in answers.good if reply.hospital not in reasons]
        if check_all is not None:
            reasons |= check_all(passed, answers.spool)
        for hospital, reason in reasons.items():
            self._record.event("update_rejected", round=number, hospital=hospital, kind=kind, reason=reason)
        answers.lost |= reasons
        answers.good = [reply for reply in passed if reply.hospital not in reasons]

    def _too_few(self, kind: str, number: int, answers: Answers, minimum: int) -> TooFewError:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in answers.lost.items())
        logs = self._sites / "<hospital>" / "site.log"
        found = (
            f"only {len(answers.good)} of the {minimum} hospitals that are needed" if answers.good else "no hospital"
        )
        at = number + self._config.rounds_before
        text = (
            f"In round {at} {found} could {_ASKED.get(kind, kind)}, so the run stops. {reasons}. The details are "
            f"in each hospital's own log, in a simulation {logs}."
        )
        return TooFewError(text, kind=kind, num_good=len(answers.good), minimum=minimum)

    def _question(self, kind: str, number: int, index: int) -> RoundInstructions:
        run, hospital = self._config.run, self._hospitals.names[index]
        return RoundInstructions(
            kind=kind,
            run_name=run.run_name,
            hospital=hospital,
            hospital_index=index,
            round=number + self._config.rounds_before,
            config=self._config.to_dict(),
            site_folder="" if run.over_sites else str(self._sites / hospital),
            code_version=identity.code_version(),
            code_hash=identity.code_hash(),
        )

    def _note(self, kind: str, number: int, reply: Reply) -> None:
        """Write the event of one reply, as it comes."""
        report = reply.report
        fields: dict[str, Any] = {"round": number, "hospital": reply.hospital, "kind": kind}
        if reply.surplus:
            self._record.event("update_questioned", **fields, reason="a second reply to one question; the first counts")
            return
        if reply.ok:
            fields |= {
                "num_images": report.num_images,
                "num_labels": report.num_labels,
                "duration_s": report.duration_s,
                "device": report.device,
                "metrics": report.metrics,
                "bytes_in": reply.bytes_in,
                "bytes_out": reply.bytes_out,
            }
            fields |= {"table": report.table} if kind == protocol.DESCRIBE else {}
            fields |= {"withheld": report.withheld} if report.withheld else {}
        else:
            fields["reason"] = report.reason
            fields |= {"code": report.code} if report.code else {}
        self._record.event(_DONE[report.status], **fields)


def _spooled(reply: Reply, spool: Spool, decode: Callable[[Tensors], Tensors] | None) -> Reply:
    """Put a reply's tensors on disk, decoded, and return it without them.

    It comes back as failed where they are of no model's types, and with its damage where they cannot be decoded.
    """
    if reply.surplus:
        return reply
    try:
        tensors = decode(reply.tensors) if decode and reply.ok else reply.tensors
    except ValueError as error:
        return replace(reply, tensors={}, damage=one_line(f"its update cannot be decoded: {error}"))
    try:
        spool.write(reply.hospital, tensors)
    except ValueError as error:
        return failure(reply.hospital, one_line(str(error)), bytes_in=reply.bytes_in)
    return replace(reply, tensors={})
