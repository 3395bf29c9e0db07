"""Sums of the hospitals' tensors that the server learns without learning any hospital's: see jointdiff/secure_sum.py.

One sum is one session of four questions: KEYS, SHARES, then TRAIN or HEAD with masked answers, UNMASK. A hospital that
fails at one of them drops out and is named; as long as enough are left the sum is that of those that sent masked
tensors. Else everything is forgotten and a new session begins.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from jointdiff import fixed_point, protocol, quorum, secure_sum
from jointdiff.config import Config, RunConfig
from jointdiff.fixed_point import FixedPoint
from jointdiff.record import RunRecord
from jointdiff.secure_sum import PublicKeys, Session, to_bytes
from server.exchange import Sent
from server.merging import NORM_FACTOR
from server.questions import Answers, Check, Questions, TooFewError
from server.replies import Reply, check_update
from server.slices import Tensors

Payloads = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class _Sum:
    """What came out of one session."""

    values: Tensors  # float64
    included: list[Reply]  # those whose tensors are in the sum, in the hospitals' order
    largest: int  # the count that had weight 1; 0 = all had


class SecureSums:
    """Makes the secure sums of a run, and says in the events who is in each."""

    def __init__(self, questions: Questions, names: Sequence[str], config: Config, record: RunRecord) -> None:
        """Remember who takes part.

        Args:
            names: Of all hospitals.
        """
        self._questions = questions
        self._names = tuple(names)
        self._config = config
        self._run = config.run
        self._record = record
        self._usual_norm = 0.0  # of the mean change of the round before; 0 = not known

    def mean_weights(self, number: int, weights: Mapping[str, np.ndarray], sent: Sent) -> tuple[list[Reply], Tensors]:
        """Let the hospitals train; return the replies that count and the weighted mean of their weights, as `weights`.

        mean = w + (sum_k c_k / c_max * (w_k - w)) / (sum_k c_k / c_max), off from the plain weighted mean by at most
        n * step / 2 / (sum_k c_k / c_max) and float32's rounding, n hospitals being in the sum.

        Args:
            weights: What the hospitals have after decoding.
            sent: What travels.

        Raises:
            RunError: Too few hospitals were left, repetitions included.
        """
        encoding = fixed_point.for_updates(len(self._names))
        # A hospital's change may be larger than the mean of several that point in different directions.
        limit = NORM_FACTOR * math.sqrt(len(self._names)) * self._usual_norm

        def mean_of(found: _Sum) -> Tensors:
            total = sum(
                secure_sum.relative_weight(count(reply, self._run.weighting), found.largest) for reply in found.included
            )
            if not total:
                raise ValueError("the hospitals that are left have no weight: none of them counts a label")
            return {name: value / total for name, value in found.values.items()}

        found, mean = self._repeated(
            protocol.TRAIN, number, sent, encoding, like=weights, extra={"norm_limit": limit}, finish=mean_of
        )
        self._usual_norm = math.sqrt(sum(float((change**2).sum()) for change in mean.values()))
        return found.included, {name: (old + mean[name]).astype(old.dtype) for name, old in weights.items()}

    def head_sums(self, number: int, sent: Sent, like: Mapping[str, np.ndarray], told: Mapping[str, Any]) -> Tensors:
        """Return the sums of the hospitals' statistics for the head, in float64, each off by at most n * step / 2.

        Args:
            sent: What travels with the question.
            like: Gives names and shapes of the sums.
            told: More for the payload: over which images.

        Raises:
            RunError: Too few hospitals were left, repetitions included.
        """
        encoding = fixed_point.for_sums(len(self._names))
        return self._repeated(
            protocol.HEAD, number, sent, encoding, like=like, extra=told, finish=lambda found: found.values
        )[1]

    def _repeated(
        self,
        kind: str,
        number: int,
        tensors: Sent,
        encoding: FixedPoint,
        *,
        like: Mapping[str, np.ndarray],
        extra: Mapping[str, Any],
        finish: Callable[[_Sum], Tensors],
    ) -> tuple[_Sum, Tensors]:
        """Make sessions until one of them comes to its end."""
        for attempt in range(self._run.round_retries + 1):
            started = time.monotonic()
            session = _Attempt(self._questions, self._run, kind, number, self._names)
            try:
                session.show_keys()
                session.deal_shares()
                session.collect(tensors, encoding, like=like, extra=extra)
                found = session.unmask(encoding)
                finished = finish(found)
            except TooFewError as error:
                failed = error
            except ValueError as error:
                at = number + self._config.rounds_before
                text = f"In round {at} the secure sum came to nothing, so the run stops: {error}."
                failed = TooFewError(text, kind=kind, num_good=0, minimum=session.minimum)
            else:
                self._record.event(
                    "securely_summed", round=number, kind=kind, included=[r.hospital for r in found.included],
                    dropped=session.dropped, threshold=session.threshold, step=encoding.step,
                    duration_s=time.monotonic() - started,
                )  # fmt: skip
                return found, finished
            if attempt < self._run.round_retries:
                self._questions.before_repeating(number, failed, attempt)
        raise failed


class _Attempt:
    """One session on the server's side: its four questions in their order, and what each of them found.

    Each may raise TooFewError; a ValueError says that the answers do not fit together.
    """

    def __init__(self, questions: Questions, run: RunConfig, kind: str, number: int, names: Sequence[str]) -> None:
        self.threshold = quorum.threshold(len(names))
        self.minimum = quorum.least_summands(len(names), run.min_hospitals)
        self.dropped: dict[str, str] = {}  # hospital -> the question that it gave no good answer to
        self._questions = questions
        self._weighting = run.weighting
        self._kind = kind
        self._number = number
        self._names = names
        self._nonce = secrets.token_hex(16)

    @contextmanager
    def _ask(
        self, kind: str, payloads: Payloads, minimum: int, tensors: Mapping[str, np.ndarray] | Sent, check: Check
    ) -> Iterator[Answers]:
        payloads = {name: {"session": self._nonce, **payload} for name, payload in payloads.items()}
        with self._questions.ask(
            kind, self._number, tensors, minimum=minimum, payloads=payloads, check=check, repeat=False
        ) as answers:
            good = {reply.hospital for reply in answers.good}
            self.dropped |= {name: kind for name in payloads if name not in good}
            yield answers

    def show_keys(self) -> None:
        """Ask for public keys, and for the counts that weights are made of."""
        with self._ask(protocol.KEYS, {name: {} for name in self._names}, self.minimum, {}, _check_keys) as answers:
            shown = {reply.hospital: reply for reply in answers.good}
        roster = {name: PublicKeys.from_json(reply.report.payload["keys"]) for name, reply in shown.items()}
        self._session = Session(self._nonce, self._kind, self.threshold, roster)
        self._session.check(self.minimum)
        self._counts = {name: count(reply, self._weighting) for name, reply in shown.items()}
        self._largest = max(self._counts.values()) if self._kind == protocol.TRAIN else 0

    def deal_shares(self) -> None:
        """Show everybody's public keys to all, and ask for sealed shares of their secrets."""
        roster = self._session.roster
        told = {"of": self._kind, "roster": {name: keys.to_json() for name, keys in roster.items()}}
        check = _check_sealed(roster)
        with self._ask(protocol.SHARES, dict.fromkeys(roster, told), self.minimum, {}, check) as answers:
            self._sealed = {reply.hospital: reply.report.payload["sealed"] for reply in answers.good}

    def collect(
        self,
        tensors: Sent,
        encoding: FixedPoint,
        *,
        like: Mapping[str, np.ndarray],
        extra: Mapping[str, Any],
    ) -> None:
        """Hand on the sealed shares, ask for masked tensors, and add these up.

        Args:
            tensors: What travels with the question.
            like: Gives names and shapes of what is summed.
            extra: More for the payload.
        """
        wanted = {name: np.broadcast_to(encoding.dtype.type(0), array.shape) for name, array in like.items()}

        def check(reply: Reply, masked: Mapping[str, np.ndarray]) -> None:
            if count(reply, self._weighting) != self._counts[reply.hospital]:
                raise ValueError("its counts are not those that it named when it showed its keys")
            check_update(masked, like=wanted)

        payloads = {
            receiver: {
                "sealed": {sender: sealed[receiver] for sender, sealed in self._sealed.items() if sender != receiver},
                "largest": self._largest,
                **extra,
            }
            for receiver in self._sealed
        }
        self._total = {name: np.zeros(array.shape, encoding.dtype) for name, array in like.items()}
        with self._ask(self._kind, payloads, self.minimum, tensors, check) as answers:
            self._included = answers.good
            for _, masked in answers.tensors():
                for name, array in masked.items():
                    np.add(self._total[name], array, out=self._total[name])  # whole numbers, modulo 2^bits

    def unmask(self, encoding: FixedPoint) -> _Sum:
        """Ask the survivors for the shares that open the sum, and open it."""
        survivors = [reply.hospital for reply in self._included]
        missing = [name for name in self._sealed if name not in survivors]
        told, check = {"survivors": survivors}, _check_shares(survivors, missing)
        with self._ask(protocol.UNMASK, dict.fromkeys(survivors, told), self.threshold, {}, check) as answers:
            revealed = {self._session.position(reply.hospital): reply.report.payload for reply in answers.good}

        def secret(part: str, name: str) -> bytes:
            shares = {position: to_bytes(payload[part][name]) for position, payload in revealed.items()}
            return secure_sum.combine(shares, self.threshold)

        unmasked = secure_sum.unmask(
            self._total,
            self._session,
            participants=list(self._sealed),
            largest=self._largest,
            seeds={name: secret("seeds", name) for name in survivors},
            keys={name: secret("keys", name) for name in missing},
        )
        return _Sum(encoding.decode(unmasked, len(survivors)), self._included, self._largest)


def count(reply: Reply, weighting: str) -> int:
    """Return what a hospital's weight is made of, as it says itself."""
    return secure_sum.counted(weighting, num_images=reply.report.num_images, num_labels=reply.report.num_labels)


def _check_keys(reply: Reply, _tensors: Mapping[str, np.ndarray]) -> None:
    if not reply.report.num_images:
        raise ValueError("it says that it has no image to train on; a weight in the mean must be positive")
    PublicKeys.from_json(reply.report.payload.get("keys"))


def _check_sealed(roster: Mapping[str, PublicKeys]) -> Check:
    def check(reply: Reply, _tensors: Mapping[str, np.ndarray]) -> None:
        sealed = reply.report.payload.get("sealed")
        if not isinstance(sealed, dict) or sealed.keys() != roster.keys() - {reply.hospital}:
            raise ValueError("it must deal shares to every other hospital, and to no one else")

    return check


def _check_shares(survivors: Sequence[str], missing: Sequence[str]) -> Check:
    def check(reply: Reply, _tensors: Mapping[str, np.ndarray]) -> None:
        for part, names in (("seeds", survivors), ("keys", missing)):
            shares = reply.report.payload.get(part)
            if not isinstance(shares, dict) or shares.keys() != set(names):
                raise ValueError(f"its shares of {part} are not those that were asked for")
            for share in shares.values():
                to_bytes(share)

    return check
