"""Hospitals over nodes: who is asked when, whose reply is whose, and who is late."""

from __future__ import annotations

from collections import Counter

import httpx
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from jointdiff import protocol
from jointdiff.errors import RunError
from jointdiff.protocol import RoundInstructions, RoundReport
from server.hospitals import Hospitals
from simulations.local import SERVER_NODE_ID, LocalGrid


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def echo(message: Message, _context) -> Message:
    """Answer as the hospital that the message names."""
    asked = RoundInstructions.from_json(str(message.content["instructions"]["json"]))
    report = RoundReport(asked.hospital, num_images=asked.hospital_index + 1).to_json()
    content = RecordDict({"report": ConfigRecord({"json": report}), "arrays": ArrayRecord()})
    return Message(content, reply_to=message)


class ScriptedGrid(LocalGrid):
    """Answers in any order, loses messages, and watches that no node has two at once."""

    def __init__(self, app=echo, *, num_nodes=2, lost_nodes=(), order=lambda ids: ids) -> None:
        super().__init__(app, num_nodes=num_nodes)
        self.lost_nodes = lost_nodes
        self.order = order
        self.pushed: list[tuple[str, int]] = []
        self.open: dict[str, int] = {}

    def push_messages(self, messages):
        messages = list(messages)
        ids = super().push_messages(messages)
        for message_id, message in zip(ids, messages, strict=True):
            node_id = message.metadata.dst_node_id
            self.pushed.append((message_id, node_id))
            self.open[message_id] = node_id
            assert max(Counter(self.open.values()).values()) == 1, "a node was given two messages at once"
        return ids

    def pull_messages(self, message_ids):
        ready = [i for i in self.open if self.open[i] not in self.lost_nodes]
        turn = self.order(ready)[:1]
        wanted = [i for i in message_ids if i in turn]
        for message_id in wanted:
            del self.open[message_id]
        return super().pull_messages(wanted)


def questions(count: int) -> list[RoundInstructions]:
    return [RoundInstructions(protocol.TRAIN, "run", f"hospital-{k + 1}", k, 1, {}, "", "v", "h") for k in range(count)]


def ask(grid, count: int, **settings) -> dict[str, RoundReport]:
    clock = Clock()
    names = [f"hospital-{k + 1}" for k in range(count)]
    hospitals = Hospitals(grid, names, clock=clock, sleep=clock.sleep, **settings)
    replies = list(hospitals.ask(questions(count), ArrayRecord()))
    assert sorted(reply.hospital for reply in replies) == sorted(names), "one reply for each question, no more"
    return {reply.hospital: reply.report for reply in replies}


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 5])
@pytest.mark.parametrize("order", [lambda ids: ids, lambda ids: ids[::-1]], ids=["first first", "last first"])
def test_every_hospital_gets_its_own_reply_whatever_the_number_of_nodes(num_nodes, order):
    reports = ask(ScriptedGrid(num_nodes=num_nodes, order=order), 5)
    for k in range(5):
        report = reports[f"hospital-{k + 1}"]
        assert (report.hospital, report.status, report.num_images) == (f"hospital-{k + 1}", "ok", k + 1)


def test_with_as_many_nodes_as_hospitals_each_has_its_own():
    grid = ScriptedGrid(num_nodes=3)
    nodes = list(grid.get_node_ids())
    ask(grid, 3)
    assert [node for _, node in grid.pushed] == nodes


def test_a_reply_in_another_hospitals_name_is_not_believed():
    def impostor(message, context):
        asked = RoundInstructions.from_json(str(message.content["instructions"]["json"]))
        reply = echo(message, context)
        if asked.hospital == "hospital-2":
            reply.content["report"] = ConfigRecord({"json": RoundReport("hospital-1", num_images=99).to_json()})
        return reply

    reports = ask(ScriptedGrid(impostor), 3)
    assert reports["hospital-1"].num_images == 1
    assert reports["hospital-2"].status == "failed" and "another hospital" in reports["hospital-2"].reason


def test_a_reply_to_nothing_that_was_asked_is_dropped():
    class Noisy(ScriptedGrid):
        def pull_messages(self, message_ids):
            replies = list(super().pull_messages(message_ids))
            for reply in replies[:1]:
                stranger = Message(reply.content, dst_node_id=1, message_type="train")
                return [stranger, *replies, *replies]
            return replies

    clock = Clock()
    hospitals = Hospitals(Noisy(num_nodes=2), ["a", "b", "c"], clock=clock, sleep=clock.sleep)
    replies = list(hospitals.ask(questions(3), ArrayRecord()))
    first = [reply for reply in replies if not reply.surplus]
    assert [reply.hospital for reply in first] == ["hospital-1", "hospital-2", "hospital-3"]
    assert all(reply.ok for reply in first)
    assert len(replies) == 6, "a second reply to a question is told, so that it can be named"


def test_a_node_that_never_answers_costs_its_hospital_alone():
    grid = ScriptedGrid(num_nodes=2)
    grid.lost_nodes = (sorted(grid.get_node_ids())[0],)
    reports = ask(grid, 4, reply_timeout_s=60)
    assert reports["hospital-1"].status == "failed" and "60 s" in reports["hospital-1"].reason
    assert [reports[f"hospital-{k}"].status for k in (2, 3, 4)] == ["ok", "ok", "ok"]


def test_when_all_nodes_are_lost_every_hospital_is_named():
    grid = ScriptedGrid(num_nodes=2)
    grid.lost_nodes = tuple(grid.get_node_ids())
    reports = ask(grid, 3, reply_timeout_s=60)
    assert all(report.status == "failed" for report in reports.values())
    assert "no SuperNode was free" in reports["hospital-3"].reason


def test_a_message_that_cannot_be_sent_is_a_failed_reply():
    class Full(ScriptedGrid):
        def push_messages(self, messages):
            return []

    assert "could not be sent" in ask(Full(), 2)["hospital-1"].reason


def answer(code: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://127.0.0.1/v1/runtime")
    return httpx.HTTPStatusError("trouble", request=request, response=httpx.Response(code, request=request))


class Troubled(ScriptedGrid):
    """A SuperLink that answers each question with an error for the first so many times."""

    def __init__(self, trouble: Exception, times: int) -> None:
        super().__init__()
        self.trouble, self.left = trouble, {"push": times, "pull": times, "nodes": times}

    def _fail(self, what: str) -> None:
        self.left[what] -= 1
        if self.left[what] >= 0:
            raise self.trouble

    def push_messages(self, messages):
        self._fail("push")
        return super().push_messages(messages)

    def pull_messages(self, message_ids):
        self._fail("pull")
        return super().pull_messages(message_ids)

    def get_node_ids(self):
        self._fail("nodes")
        return super().get_node_ids()


PASSING = [ObjectPushError("object", 1, "session"), answer(500), answer(503), httpx.ConnectError("refused")]


@pytest.mark.parametrize("trouble", PASSING, ids=repr)
def test_a_superlink_in_passing_trouble_is_asked_again(trouble):
    """Its database is locked, or it was killed and is being started again."""
    assert ask(Troubled(trouble, 5), 2)["hospital-2"].status == "ok"
    with pytest.raises(type(trouble)):
        ask(Troubled(trouble, 10**6), 1)


def test_an_error_that_no_second_try_would_change_ends_it_at_once():
    grid = Troubled(answer(403), 1)
    with pytest.raises(httpx.HTTPStatusError):
        ask(grid, 1)


def test_hospitals_are_asked_at_the_nodes_of_their_admission():
    grid = ScriptedGrid(num_nodes=3)
    nodes = {"hospital-1": SERVER_NODE_ID + 3, "hospital-2": SERVER_NODE_ID + 1}
    assert len(ask(grid, 2, nodes=nodes)) == 2
    assert [node for _, node in grid.pushed] == list(nodes.values())
    away = ask(ScriptedGrid(num_nodes=1), 2, nodes=nodes)
    assert "not connected" in away["hospital-1"].reason and away["hospital-2"].status == "ok"


def test_a_process_that_dies_is_a_failed_reply():
    def dies(message, context):
        raise MemoryError("Traceback ... /data/doe.npz")

    reports = ask(LocalGrid(dies), 2)
    assert all(report.status == "failed" and "doe" not in report.reason for report in reports.values())


def test_without_any_node_the_run_stops_after_the_limit_and_says_why():
    clock = Clock()
    grid = ScriptedGrid(num_nodes=0)
    hospitals = Hospitals(grid, ["hospital-1"], node_timeout_s=30, clock=clock, sleep=clock.sleep)
    with pytest.raises(RunError, match="No SuperNode connected within 30 s"):
        list(hospitals.ask(questions(1), ArrayRecord()))
    assert 30 <= clock.now < 35


def test_a_node_that_comes_late_is_waited_for():
    class Late(ScriptedGrid):
        looks = 0

        def get_node_ids(self):
            self.looks += 1
            return [] if self.looks < 4 else super().get_node_ids()

    assert ask(Late(), 2)["hospital-2"].status == "ok"


def test_a_message_that_flower_calls_expired_is_a_reply_that_came_too_late():
    class Expiring(ScriptedGrid):
        def pull_messages(self, message_ids):
            replies = list(super().pull_messages(message_ids))
            return [Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, "gone"), reply_to=reply) for reply in replies]

    clock = Clock()
    hospitals = Hospitals(Expiring(num_nodes=1), ["a"], clock=clock, sleep=clock.sleep, reply_timeout_s=40)
    (reply,) = hospitals.ask(questions(1), ArrayRecord())
    assert reply.report.reason == "no reply within 40 s" and not reply.unreachable


class Returning(ScriptedGrid):
    """Nodes that are away at first: each look takes one of them back in."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.looks = 0

    def get_node_ids(self):
        self.looks += 1
        return list(super().get_node_ids())[: self.looks - 1]


def returning(**settings) -> tuple[Returning, Hospitals, Clock]:
    grid, clock = Returning(num_nodes=3), Clock()
    nodes = dict(zip(["a", "b", "c"], sorted(ScriptedGrid(num_nodes=3).get_node_ids()), strict=True))
    return grid, Hospitals(grid, ["a", "b", "c"], nodes=nodes, clock=clock, sleep=clock.sleep, **settings), clock


def test_real_hospitals_that_are_away_are_waited_for():
    grid, hospitals, _ = returning()
    hospitals.wait_until_connected(2)
    assert grid.looks == 3, "none, one, two"


def test_they_are_waited_for_as_long_as_for_an_answer_and_no_longer():
    _, hospitals, clock = returning(reply_timeout_s=400)
    hospitals.wait_until_connected(4)
    assert 400 <= clock() < 410


def test_simulated_hospitals_are_not_waited_for():
    grid = ScriptedGrid(num_nodes=1)
    clock = Clock()
    Hospitals(grid, ["a", "b", "c"], clock=clock, sleep=clock.sleep).wait_until_connected(3)
    assert clock() == 0
