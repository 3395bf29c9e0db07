"""Where the time of a round goes, on events whose times are written by hand."""

from datetime import UTC, datetime

import pytest

from jointdiff.history import effective
from jointdiff.round_profile import PARTS, hospital_seconds, round_profiles, share_without_work, total_parts


def at(seconds, event, **fields):
    return {"time": datetime.fromtimestamp(1_000_000 + seconds, UTC).isoformat(), "event": event, **fields}


def reply(seconds, kind, hospital, duration, *, number=1, **metrics):
    metrics = {f"seconds.{name}": value for name, value in metrics.items()}
    return at(
        seconds, "hospital_replied", round=number, kind=kind, hospital=hospital, duration_s=duration, metrics=metrics
    )


def one_round(start=0.0, number=1, **said):
    """Seconds 0 to 20: two hospitals train side by side, then merging, the head, evaluation, scoring, writing."""
    return [
        at(start, "round_started", round=number),
        reply(start + 7, "train", "a", 6, number=number, **said),  # 1 to 7
        reply(start + 10, "train", "b", 6, number=number),  # 4 to 10
        at(start + 11, "round_aggregated", round=number, num_replies=2),  # merging: 10 to 11
        reply(start + 13, "head", "a", 1, number=number),  # 12 to 13
        reply(start + 16, "evaluate", "a", 2, number=number),  # 14 to 16
        at(start + 16.5, "evaluated", round=number),  # scoring: 16 to 16.5
        at(start + 18, "checkpoint_saved", round=number, kind="last"),
        at(start + 20, "checkpoint_saved", round=number, kind="best"),
    ]


def test_the_parts_of_a_round_add_up_and_two_hospitals_at_once_count_once():
    (found,) = round_profiles(one_round())
    assert found.duration_s == pytest.approx(20) and found.number == 1
    wanted = {"training": 9, "head": 1, "evaluation": 2, "merging": 1, "scoring": 0.5, "writing": 3.5, "on the way": 3}
    assert found.parts == pytest.approx(dict.fromkeys(PARTS, 0) | wanted)
    assert found.other_share == pytest.approx(8 / 20)
    assert sum(found.parts.values()) == pytest.approx(found.duration_s)


def test_what_a_hospital_loads_and_saves_is_not_its_work():
    """a: 1 to 7, of which 2 s loading and 0.5 s saving; while b trains from 4 on nobody only loads."""
    (found,) = round_profiles(one_round(load=2.0, train=3.5, save=0.5))
    assert found.parts["training"] == pytest.approx(10 - 3)
    assert found.parts["loading"] == pytest.approx(2)
    assert hospital_seconds(one_round(load=2.0, train=3.5)) == {"a": {"load": 2.0, "train": 3.5}}


def test_a_round_ends_where_the_next_begins_but_not_where_a_run_that_stopped_is_resumed():
    straight = [*one_round(), *one_round(22, 2)]
    assert [p.duration_s for p in round_profiles(straight)] == pytest.approx([22, 20])
    resumed = [*one_round(), at(5000, "run_failed"), at(6000, "run_resumed", round=1), *one_round(6001, 2)]
    assert [p.duration_s for p in round_profiles(effective(resumed))] == pytest.approx([20, 20])


def test_what_is_no_part_of_a_round_is_left_out():
    events = [
        at(-50, "run_started"), reply(-40, "describe", "a", 5, number=0), *one_round(),
        reply(400, "explain", "a", 300), at(401, "run_finished"),
    ]  # fmt: skip
    assert round_profiles(events) == round_profiles(one_round())
    unfinished = [*one_round(), at(30, "round_started", round=2), reply(40, "train", "a", 5, number=2)]
    assert [p.number for p in round_profiles(unfinished)] == [1]
    assert round_profiles([]) == []


def test_masking_is_told_apart_and_work_never_reaches_beyond_the_round():
    events = one_round()
    events.insert(1, reply(0.9, "keys", "a", 5))  # says it worked for longer than the round has lasted
    (found,) = round_profiles(events)
    assert found.parts["masking"] == pytest.approx(0.9)
    assert sum(found.parts.values()) == pytest.approx(20)


def test_the_share_over_all_rounds_weighs_them_by_their_seconds():
    slow = [{**e, "duration_s": 6} if e.get("kind") == "train" else e for e in one_round(20, 2)]
    profiles = round_profiles([*one_round(), *slow])
    assert share_without_work(total_parts(profiles)) == pytest.approx(16 / 40)
    assert share_without_work(dict.fromkeys(PARTS, 0.0)) == 0
