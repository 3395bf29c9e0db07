from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jointdiff.events import read_events
from jointdiff.views.terminal import ProgressPrinter, printable


def lines_of(events: list[dict[str, Any]]) -> list[str]:
    stream = io.StringIO()
    with ProgressPrinter(stream) as show:
        for event in events:
            show(event)
    return stream.getvalue().splitlines()


def test_a_line_per_round_and_the_report_last(fake_run: Callable[..., Path]) -> None:
    folder = fake_run(num_rounds=4, num_items=0)
    lines = lines_of(read_events(folder / "events.jsonl"))
    assert "phantoms" in lines[0] and "no medical device" in lines[0]
    rounds = [line.split() for line in lines if line.strip()[:2] in ("1/", "2/", "3/", "4/")]
    assert [row[0] for row in rounds] == ["1/4", "2/4", "3/4", "4/4"]
    assert rounds[0][1] == "0.650" and rounds[0][2] == "–", "denoising loss; no label loss in the warm-up"
    assert rounds[3][4].endswith("%") and 0.8 < float(rounds[3][5]) < 1
    assert lines[-1] == f"Report: {folder / 'report.html'}"
    assert lines[-2] == "Run finished in 4 min 31 s."
    assert all(len(line) <= 80 for line in lines[2:-1]), "a round fits a terminal of 80 columns"


def clock(event: str, second: int, **fields: Any) -> dict[str, Any]:
    return {"event": event, "time": f"2026-01-01T00:{second // 60:02d}:{second % 60:02d}+00:00", **fields}


def test_time_left_follows_the_last_rounds() -> None:
    events = []
    second = 0
    for number, length in enumerate((2, 2, 2, 30, 30, 30), start=1):
        events.append(clock("round_started", second, round=number, num_rounds=10, hospitals=["a"]))
        second += length
        events.append(clock("evaluated", second, round=number, pooled={"auc": 0.5}))
    lines = lines_of(events)
    assert lines[1].endswith(" 18 s")  # 9 rounds of 2 s
    assert lines[-1].endswith("2 min 0 s")  # 4 rounds of 30 s


def test_a_failure_ends_with_its_cause() -> None:
    lines = lines_of([clock("run_failed", 0, reason="no hospital answered", duration_s=None)])
    assert lines == ["Run failed: no hospital answered"]


def test_why_there_is_no_auc_is_told_once() -> None:
    withheld = {"st-anna": ["test", "heldout"], "north": ["test"]}
    rounds = [clock("evaluated", at, round=at, pooled=None, withheld=withheld) for at in (1, 2)]
    (line,) = [line for line in lines_of(rounds) if "No AUC" in line]
    assert "st-anna, north" in line and "min-cell-count" in line
    known = clock("evaluated", 3, round=3, pooled={"auc": 0.5}, withheld={"north": ["test"]})
    assert not [line for line in lines_of([known]) if "No AUC" in line]


def test_trouble_is_told_at_once() -> None:
    (line,) = lines_of([clock("hospital_refused", 0, round=3, hospital="h", kind="train", reason="budget is spent")])
    assert "h refused" in line and "budget is spent" in line


def test_a_round_without_evaluation_is_not_lost() -> None:
    start = {"num_rounds": 2, "hospitals": ["a"]}
    lines = lines_of(
        [
            clock("round_started", 0, round=1, **start),
            clock("round_aggregated", 4, round=1, metrics={"loss_diffusion": 0.25}),
            clock("round_started", 5, round=2, **start),
            clock("run_finished", 9, duration_s=9.0, report="/r"),
        ]
    )
    assert [line.split()[0] for line in lines[1:3]] == ["1/2", "2/2"] and "0.250" in lines[1]


def test_a_name_cannot_steer_the_terminal() -> None:
    hostile = "\x1b[2J[bold red]x[/]\r\x07"
    (line,) = lines_of([clock("hospital_failed", 0, hospital=hostile, kind="train", round=1, reason="r")])
    assert "\x1b" not in line and "\r" not in line and "\x07" not in line
    assert "[bold red]" in line, "console markup is text"
    assert printable("a\tb\x9b") == "a?b?"


def test_unknown_and_empty_events_are_passed_over() -> None:
    assert lines_of([{"event": "of_tomorrow"}, {}]) == []
    assert lines_of([{"event": name} for name in ("round_started", "round_aggregated", "evaluated")])


def test_live_on_a_terminal(fake_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    events = read_events(fake_run(num_rounds=3, num_items=0) / "events.jsonl")
    stream = io.StringIO()
    terminal = Console(file=stream, force_terminal=True, width=100)
    with ProgressPrinter() as show:
        monkeypatch.setattr(show, "_console", terminal)
        for event in events:
            show(event)
    shown = stream.getvalue()
    assert "\x1b[" in shown and "3/3" in shown and "Report:" in shown.splitlines()[-1]
    assert shown.endswith("\n") and "\x1b[?25h" in shown, "the cursor is back"


def test_events_survive_their_way_through_json(fake_run: Callable[..., Path]) -> None:
    events = read_events(fake_run(num_rounds=1, num_items=0) / "events.jsonl")
    assert lines_of(json.loads(json.dumps(events))) == lines_of(events)
