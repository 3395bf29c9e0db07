from __future__ import annotations

import json
import logging
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jointdiff.errors import RunError
from jointdiff.events import EventLog, parse_event, read_events


def test_one_line_per_event_with_time_and_version(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "runs" / "a" / "events.jsonl")
    told = log.append("round_started", round=1, hospitals=["a"])
    log.append("round_aggregated", round=1, metrics={"loss": np.float32(0.5)}, path=tmp_path)
    lines = log.path.read_text().splitlines()
    assert len(lines) == 2 and json.loads(lines[0]) == told
    assert told["schema_version"] == 1 and told["event"] == "round_started"
    assert datetime.fromisoformat(told["time"]).utcoffset() == timedelta(0)
    second = json.loads(lines[1])
    assert second["metrics"] == {"loss": 0.5} and second["path"] == str(tmp_path)


def test_not_a_number_becomes_null(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.append("evaluated", round=1, pooled={"auc": float("nan"), "log_loss": np.inf})
    assert "NaN" not in log.path.read_text()
    assert read_events(log.path)[0]["pooled"] == {"auc": None, "log_loss": None}


def test_a_cut_last_line_is_dropped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.append("round_started", round=1)
    log.append("round_started", round=2)
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:-9])
    with caplog.at_level(logging.WARNING):
        assert [event["round"] for event in read_events(log.path)] == [1]
    assert "cut" in caplog.text


def test_appending_after_a_cut_line_spoils_nothing_more(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.append("round_started", round=1)
    with open(log.path, "ab") as file:
        file.write(b'{"event": "round_st')
    EventLog(log.path).append("round_started", round=2)
    assert [event["round"] for event in read_events(log.path)] == [1, 2]


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")

    def write(hospital: int) -> None:
        for index in range(10):
            log.append("hospital_replied", round=index, hospital=hospital, filler="x" * 5000)

    threads = [threading.Thread(target=write, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_events(log.path)) == 40


def test_the_listener_hears_what_is_already_on_disk(tmp_path: Path) -> None:
    heard: list[tuple[dict[str, Any], int]] = []
    path = tmp_path / "events.jsonl"
    EventLog(path, lambda event: heard.append((event, len(read_events(path))))).append("run_started")
    assert heard[0][0]["event"] == "run_started" and heard[0][1] == 1


@pytest.mark.parametrize(
    ("event", "fields"), [("invented", {}), ("evaluated", {"time": 1}), ("evaluated", {"schema_version": 2})]
)
def test_unknown_events_and_reserved_fields_are_refused(tmp_path: Path, event: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=event):
        EventLog(tmp_path / "events.jsonl").append(event, **fields)
    assert not (tmp_path / "events.jsonl").exists()


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e").write_text('{"schema_version": 2, "event": "run_started"}\n')
    with pytest.raises(RunError, match="schema_version 2"):
        read_events(tmp_path / "e")


@pytest.mark.parametrize("line", ["", "[1]", "null", '{"event": 3}', '{"event": "x"', b"\xff\xfe"])
def test_what_is_no_event_is_none(line: str | bytes) -> None:
    assert parse_event(line) is None
