"""Who takes part: n hospitals over however many SuperNodes Flower happens to have.

On a fresh home Flower's simulation has two SuperNodes, not three, and a strategy that waits for three waits for ever.
So hospitals are addressed, not nodes: the message says which hospital it is for, and a node is given its next message
when it has answered the last. Replies are told apart by the message that they answer, never by what they say or by
their node. Where there are as many nodes as hospitals, the first hospital goes to the first node, and so on.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import ArrayRecord, Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from jointdiff import protocol
from jointdiff.errors import RunError
from jointdiff.protocol import RoundInstructions, RoundReport
from server.patience import patiently
from server.replies import Reply, failure, num_bytes, pack, read_reply

MESSAGE_TYPES = {
    protocol.AUTOENCODER: "query.autoencoder",
    protocol.DESCRIBE: "query.describe",
    protocol.TRAIN: "train",
    protocol.HEAD: "query.head",
    protocol.EVALUATE: "evaluate",
    protocol.EXPLAIN: "query.explain",
    protocol.KEYS: "query.keys",
    protocol.SHARES: "query.shares",
    protocol.UNMASK: "query.unmask",
}
# A message's time to live is the hospital's time to answer: Flower may notice that it is over before we do.
_EXPIRED = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
_POLL_S = (0.02, 0.5)  # shortest and longest pause between two looks for replies
_REMOTE_POLL_S = 3.0  # longest where the hospitals are real: each look writes into the SuperLink's database
_POLL_SHARE = 0.05  # of the time since the last reply: so late at most is a reply noticed
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Sent:
    hospital: str
    node_id: int
    num_bytes: int
    deadline: float


class Hospitals:
    """Sends one question to every hospital and yields the replies one by one, as they come."""

    def __init__(
        self,
        grid: Grid,
        names: Sequence[str],
        *,
        one_each: bool = False,
        nodes: Mapping[str, int] | None = None,
        reply_timeout_s: float = 3600.0,
        node_timeout_s: float = 180.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Remember who takes part.

        Args:
            one_each: Every hospital has a SuperNode of its own for the whole run: two on one would be one party.
            nodes: The SuperNode of each hospital, where it is known from its admission; implies one_each.
            reply_timeout_s: For one hospital's one answer, the start of its process included.
            node_timeout_s: For the first SuperNode to connect; with one_each for all of them. With `nodes` not less
                than `reply_timeout_s`.
        """
        self.names = tuple(names)
        self._one_each = one_each or nodes is not None
        self._own_node = dict(nodes or {})  # with one_each
        self._longest_poll_s = _POLL_S[1] if nodes is None else _REMOTE_POLL_S
        self._grid = grid
        self._reply_timeout_s = reply_timeout_s
        # Real hospitals may all be away for a while: a line that is cut ends no run sooner than a hospital that hangs.
        self._node_timeout_s = node_timeout_s if nodes is None else max(node_timeout_s, reply_timeout_s)
        self._clock = clock
        self._sleep = sleep

    def wait_for_nodes(self) -> list[int]:
        """Return the ids of the SuperNodes that are there, in order, and wait for the first one.

        Raises:
            RunError: None came within the time limit.
        """
        end = self._clock() + self._node_timeout_s
        while True:
            if node_ids := self._connected():
                return node_ids
            if self._clock() >= end:
                raise RunError(
                    f"No SuperNode connected within {self._node_timeout_s:.0f} s, so no hospital can take part. In a "
                    "simulation look at the log of Flower's SuperLink; in a deployment start the hospitals' SuperNodes."
                )
            self._sleep(1.0)

    def wait_until_connected(self, minimum: int) -> None:
        """Wait until so many of the hospitals are connected, or the time limit is over: whoever asks next will see.

        Only where their SuperNodes are known from their admission; else return at once.
        """
        if not self._own_node:
            return
        end = self._clock() + self._node_timeout_s
        while len(set(self._own_node.values()).intersection(self._connected())) < minimum and self._clock() < end:
            self._sleep(self._longest_poll_s)

    def _find_own_nodes(self) -> set[int]:
        """Give every hospital its SuperNode, once, and return the ids of those that are connected now.

        Raises:
            RunError: There are fewer SuperNodes than hospitals.
        """
        node_ids = self.wait_for_nodes()
        end = self._clock() + self._node_timeout_s
        while not self._own_node:
            if len(node_ids) >= len(self.names):
                self._own_node = dict(zip(self.names, node_ids, strict=False))
            elif self._clock() >= end:
                raise RunError(
                    f"secure-aggregation needs a SuperNode for each hospital, but {len(node_ids)} connected within "
                    f"{self._node_timeout_s:.0f} s for {len(self.names)} hospitals: two on one would see each "
                    "other's secrets. In a simulation use `make simulate`, or give flwr run --federation-config "
                    f"num-supernodes={len(self.names)}; in a deployment start every hospital's SuperNode, or set "
                    "num-hospitals to their number."
                )
            else:
                self._sleep(1.0)
                node_ids = self._connected()
        return set(node_ids)

    def ask(self, questions: Sequence[RoundInstructions], arrays: ArrayRecord) -> Iterator[Reply]:
        """Send each question to its hospital, at most one per SuperNode at a time; yield a reply for every question.

        A hospital that does not answer in time, or cannot be reached, yields a failed reply that says so.

        Args:
            questions: One per hospital, all of one kind.
            arrays: What travels with every question; one copy serves all.
        """
        waiting = deque(questions)
        if self._one_each:
            connected = self._find_own_nodes()
            for question in questions:
                if self._own_node[question.hospital] not in connected:
                    waiting.remove(question)
                    yield failure(question.hospital, "its SuperNode is not connected", unreachable=True)
            idle = deque(self._own_node[question.hospital] for question in waiting)  # in step with `waiting`
        else:
            idle = deque(self.wait_for_nodes())
        sent: dict[str, _Sent] = {}
        quiet_since = self._clock()
        while waiting or sent:
            while waiting and idle:
                question = waiting.popleft()
                node_id = idle.popleft()
                message_id, note = self._send(question, arrays, node_id)
                if message_id:
                    sent[message_id] = note
                else:
                    idle.append(node_id)
                    yield failure(
                        question.hospital, "the message to it could not be sent: is it too large?", unreachable=True
                    )
            if not sent:  # every node is lost
                for question in waiting:
                    reason = "no SuperNode was free: others did not answer in time"
                    yield failure(question.hospital, reason, unreachable=True)
                return
            answered = False
            for message_id, note in list(sent.items()):  # singly: one model in memory at a time
                for message in self._pull(message_id):
                    if message.metadata.reply_to_message_id != message_id:
                        _log.warning("A message that answers nothing that was asked is dropped.")
                        continue
                    if message_id not in sent:
                        yield Reply(note.hospital, RoundReport(note.hospital), surplus=True)
                        continue
                    answered = True
                    del sent[message_id]
                    idle.append(note.node_id)
                    if message.has_error() and message.error.code in _EXPIRED:
                        yield self._too_late(note)
                    else:
                        yield read_reply(note.hospital, message, bytes_in=note.num_bytes)
                if message_id in sent and self._clock() >= note.deadline:
                    del sent[message_id]  # and its node stays out of this question: it is still at work, or dead
                    yield self._too_late(note)
            now = self._clock()
            if answered:
                quiet_since = now
            elif sent:
                self._sleep(min(max(_POLL_SHARE * (now - quiet_since), _POLL_S[0]), self._longest_poll_s))

    def _connected(self) -> list[int]:
        return patiently(lambda: sorted(self._grid.get_node_ids()), sleep=self._sleep)

    def _pull(self, message_id: str) -> list[Message]:
        return patiently(lambda: list(self._grid.pull_messages([message_id])), sleep=self._sleep)

    def _too_late(self, note: _Sent) -> Reply:
        return failure(note.hospital, f"no reply within {self._reply_timeout_s:.0f} s", bytes_in=note.num_bytes)

    def _send(self, question: RoundInstructions, arrays: ArrayRecord, node_id: int) -> tuple[str, _Sent]:
        content = pack(question, arrays)
        note = _Sent(question.hospital, node_id, num_bytes(content), self._clock() + self._reply_timeout_s)

        def push() -> list[str]:
            message = Message(
                content,
                dst_node_id=node_id,
                message_type=MESSAGE_TYPES[question.kind],
                ttl=self._reply_timeout_s,
                group_id=str(question.round),
            )
            return list(self._grid.push_messages([message]))

        message_ids = patiently(push, sleep=self._sleep)
        return (message_ids[0] or "" if message_ids else ""), note
