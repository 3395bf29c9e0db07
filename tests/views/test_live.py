from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from jointdiff.errors import RunError
from jointdiff.events import EventLog, read_events
from jointdiff.storage import is_locked, run_locked
from jointdiff.views.live import files
from jointdiff.views.live.document import asset
from jointdiff.views.live.follow import Follower
from jointdiff.views.live.guard import is_local
from jointdiff.views.live.overview import overview_view
from jointdiff.views.live.run_page import run_view
from jointdiff.views.live.runs import Runs
from jointdiff.views.live.snapshot import as_run, done_by, snapshot
from jointdiff.views.markup import join

HOSTILE = '<img src=x onerror="alert(1)">&"\''
VOID = {"meta", "img", "br", "link"}


class Tree(HTMLParser):
    """Reads a fragment back: tags balanced, no handler, no inline style; ids, links and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self._stack: list[str] = []
        self.feed(text)
        assert not self._stack, f"not closed: {self._stack}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert not [name for name in given if name.startswith("on") or name == "style"], given
        self.tags.append(tag)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [given["href"] or ""] if "href" in given else []
        if tag not in VOID:
            self._stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def look(folder: Path, *, written: bool = False) -> dict[str, Any]:
    return snapshot(as_run(folder, read_events(folder / "events.jsonl")), written=written)


def log_of(folder: Path, num_rounds: int, hospitals: tuple[str, ...] = ("a", "b")) -> EventLog:
    log = EventLog(folder / "events.jsonl")
    log.append("run_started", run_name=folder.name, hospitals=list(hospitals), dataset={"name": "phantom"},
               config={"run": {"num-rounds": num_rounds, "method": "joint"}})  # fmt: skip
    return log


def reply(log: EventLog, hospital: str, number: int, kind: str = "train", **fields: Any) -> None:
    log.append("hospital_replied", round=number, hospital=hospital, kind=kind, bytes_in=100, bytes_out=10, **fields)


def cells(found: dict[str, Any], hospital: str) -> dict[int, str]:
    row = next(row for row in found["matrix"]["rows"] if row["hospital"] == hospital)
    return dict(zip(found["matrix"]["rounds"], row["cells"], strict=True))


def test_a_finished_run_in_numbers(fake_run: Callable[..., Path]) -> None:
    found = look(fake_run(galleries=False))
    assert (found["state"], found["round"], found["num_rounds"]) == ("finished", 10, 10)
    assert found["pooled"]["auc"] == pytest.approx(found["evaluated"][-1]["auc"])
    assert found["epsilon"] is None and found["troubles"] == []
    assert set(cells(found, "hospital-2").values()) == {"ok"}
    sent = sum(e.get("bytes_out", 0) for e in read_events(fake_run("again", galleries=False) / "events.jsonl"))
    assert found["bytes_from_sites"] == sent > 0
    json.dumps(found, allow_nan=False)


def test_what_every_hospital_did_in_every_round(tmp_path: Path) -> None:
    log = log_of(tmp_path, 4, ("a", "b", "c"))
    for number in (1, 2, 3):
        log.append("round_started", round=number, num_rounds=4, hospitals=["a", "b", "c"])
        if number == 1:
            log.append("hospital_failed", round=1, hospital="a", kind="train", reason="slow")
            log.append("hospital_refused", round=1, hospital="b", kind="train", reason="no more")
            log.append("update_rejected", round=1, hospital="c", kind="train", reason="not finite")
            reply(log, "a", 1)  # asked again
            log.append("evaluated", round=1, pooled={"auc": 0.6}, hospitals={})
        if number == 2:
            reply(log, "a", 2)
            log.append("evaluated", round=2, pooled={"auc": 0.7}, hospitals={})
    reply(log, "b", 3)
    found = look(tmp_path, written=True)
    assert [cells(found, name)[1] for name in "abc"] == ["mended", "refused", "rejected"]
    assert [cells(found, name)[2] for name in "abc"] == ["ok", "missed", "missed"]
    assert [cells(found, name)[3] for name in "abc"] == ["waiting", "ok", "waiting"]
    assert cells(found, "a")[4] == "none"
    assert found["now"] == "training, 1 of 3 hospitals answered"
    assert cells(look(tmp_path, written=False), "a")[3] == "missed"  # nobody is waited for any more


def test_a_troubled_cell_leads_to_its_reason(tmp_path: Path) -> None:
    log = log_of(tmp_path, 3)
    for number in (1, 2):
        log.append("round_started", round=number, num_rounds=3, hospitals=["a", "b"])
        log.append("hospital_failed", round=number, hospital="a", kind="train", reason="the GPU is gone")
    log.append("hospital_failed", round=2, hospital="b", kind="evaluate", reason="other")
    found = look(tmp_path)
    assert [(t["hospital"], t["rounds"]) for t in found["troubles"]] == [("a", [1, 2]), ("b", [2])]
    view = run_view(as_run(tmp_path, read_events(tmp_path / "events.jsonl")), found)
    rounds, side = Tree(join(view.parts["rounds"])), Tree(join(view.parts["side"]))
    assert [link for link in rounds.links if link == "#trouble-1"] == ["#trouble-1"] * 2
    assert set(rounds.links) == {f"#{anchor}" for anchor in side.ids}
    assert "the GPU is gone" in side.text and "rounds 1-2" in side.text


def test_privacy_is_the_most_that_was_spent_or_said_to_be_off(tmp_path: Path) -> None:
    log = log_of(tmp_path, 3)
    reply(log, "a", 1, metrics={"epsilon": 0.5})
    reply(log, "a", 2, metrics={"epsilon": 0.9})
    reply(log, "b", 2, metrics={"loss": 1.0})
    found = look(tmp_path)
    assert {entry["name"]: entry["epsilon"] for entry in found["hospitals"]} == {"a": 0.9, "b": None}
    assert found["epsilon"] == 0.9
    text = Tree(join(run_view(as_run(tmp_path, log_events(tmp_path)), found).parts["hospitals"])).text
    assert "ε 0.90" in text and "off" in text


def log_events(folder: Path) -> list[dict[str, Any]]:
    return read_events(folder / "events.jsonl")


def test_states(fake_run: Callable[..., Path], tmp_path: Path) -> None:
    open_end = fake_run("open", ended="", galleries=False, num_rounds=2)
    failed = fake_run("bad", ended="failed", galleries=False, num_rounds=2)
    assert look(open_end, written=True)["state"] == "running"
    assert look(open_end)["state"] == "interrupted"
    assert (look(failed)["state"], look(failed)["reason"]) == ("failed", "hospital-2 ran out of <memory>")
    assert look(failed, written=True)["state"] == "running"  # it is being carried on
    (tmp_path / "events.jsonl").touch()
    assert look(tmp_path)["state"] == "empty"


def test_a_resumed_run_forgets_what_was_given_up(tmp_path: Path) -> None:
    log = log_of(tmp_path, 5)
    for number in (1, 2, 3):
        log.append("round_started", round=number, num_rounds=5, hospitals=["a", "b"])
        log.append("evaluated", round=number, pooled={"auc": 0.5 + number / 10}, hospitals={})
    log.append("run_failed", reason="killed")
    log.append("run_resumed", round=1)
    found = look(tmp_path, written=True)
    assert (found["state"], found["round"], [e["round"] for e in found["evaluated"]]) == ("running", 1, [1])


def test_the_time_left_looks_back_on_three_rounds() -> None:
    events, clock = [], 0
    for number, took in ((1, 100), (2, 10), (3, 20), (4, 30)):
        events.append({"event": "round_started", "round": number, "time": f"2026-01-01T00:{clock // 60:02}:00+00:00"})
        clock += took * 60 // 10
        events.append({"event": "evaluated", "round": number, "time": f"2026-01-01T00:{clock // 60:02}:00+00:00"})
    run = as_run(Path("x"), [{**event, "num_rounds": 9} for event in events])
    # rounds 2 to 4 took 1, 2 and 3 minutes; round 4 began in minute 13, and 6 rounds stand from there on
    found = done_by(run, 4, 9)
    assert found is not None and found - _seconds("2026-01-01T00:13:00+00:00") == 6 * 120
    assert done_by(as_run(Path("x"), events[:1]), 1, 9) is None


def _seconds(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def test_many_hospitals_make_few_lines_and_a_bounded_matrix(tmp_path: Path) -> None:
    names = tuple(f"hospital-{k}" for k in range(100))
    log = EventLog(tmp_path / "events.jsonl")
    events = [{"event": "run_started", "hospitals": list(names), "config": {"run": {"num-rounds": 300}}}]
    for number in range(1, 201):
        events.append({"event": "round_started", "round": number, "num_rounds": 300, "hospitals": list(names)})
        events += [{"event": "hospital_replied", "round": number, "hospital": h, "kind": "train"} for h in names]
        events.append({"event": "evaluated", "round": number, "pooled": {"auc": 0.9}})
    log.path.write_text("".join(json.dumps(event) + "\n" for event in events))
    found = look(tmp_path, written=True)
    assert found["log"][1]["text"] == "Round 200: 100 hospitals trained"
    assert len(found["log"]) <= 60
    rounds = found["matrix"]["rounds"]
    assert len(rounds) == 60 and rounds[-1] > 200 >= rounds[0] + 50  # the newest, and a little of what is to come
    view = run_view(as_run(tmp_path, log_events(tmp_path)), found)
    assert len(view.json) < 1_500_000


def test_nothing_hostile_becomes_markup(fake_run: Callable[..., Path]) -> None:
    folder = fake_run("hostile", hospitals=(HOSTILE, "a/b"), ended="", galleries=False, num_rounds=2)
    log = EventLog(folder / "events.jsonl")
    log.append("hospital_failed", round=2, hospital=HOSTILE, kind=HOSTILE, reason=f"\ud800 </li><script>{HOSTILE}")
    log.append("run_failed", reason=f"<script>{HOSTILE}")
    found = look(folder)
    view = run_view(as_run(folder, log_events(folder)), found)
    for part in view.parts.values():
        tree = Tree(join(part))
        assert not {"script", "img", "style"} & set(tree.tags)
    page = Tree(view.to_html("/live", trail=[HOSTILE]).decode())
    assert page.tags.count("script") == 1 and "img" not in page.tags
    assert HOSTILE in page.text
    overview = overview_view([{**Runs(folder.parents[1]).summaries()[0], "reason": HOSTILE}], HOSTILE)
    assert "img" not in Tree(overview.to_html("/live").decode()).tags


def test_a_line_counts_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    follower = Follower(path)
    assert follower.read() == []
    path.write_text('{"event": "run_started"}\n{"event": "round_')
    assert [e["event"] for e in follower.read()] == ["run_started"]
    with open(path, "a") as file:
        file.write('started", "round": 1}\nno event\n')
    assert [e["event"] for e in follower.read()] == ["run_started", "round_started"]
    assert follower.num_damaged == 1
    path.unlink()
    path.write_text('{"event": "run_failed"}\n')  # another file in its place
    assert [e["event"] for e in follower.read()] == ["run_failed"] and follower.num_damaged == 0
    path.write_text('{"event": "run_failed", "schema_version": 99}\n' * 3)
    with pytest.raises(RunError, match="schema_version 99"):
        follower.read()


def test_only_what_is_new_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of(tmp_path, 3)
    follower = Follower(log.path)
    follower.read()
    parsed: list[bytes] = []
    monkeypatch.setattr("jointdiff.views.live.follow.parse_event", lambda line: parsed.append(line) or {"event": "x"})
    log.append("round_started", round=1)
    follower.read()
    follower.read()
    assert len(parsed) == 1


def test_the_lock_tells_who_writes(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    with run_locked(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


def test_a_broken_run_hides_no_other(fake_run: Callable[..., Path], tmp_path: Path) -> None:
    fake_run("good", galleries=False, num_rounds=2)
    for name, text in (
        ("newer", '{"event": "run_started", "schema_version": 99}\n'),
        ("strange", '{"event": "hospital_replied", "kind": "train", "round": [], "metrics": {"loss": 1}}\n'),
        ("odd", '{"event": "evaluated", "round": 1, "pooled": [], "hospitals": 3}\n{"event": "hospital_replied"}\n'),
        ("cut", '{"event": "run_sta'),
    ):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "events.jsonl").write_text(text)
    (tmp_path / "runs" / "binary").mkdir()
    (tmp_path / "runs" / "binary" / "events.jsonl").write_bytes(bytes(range(256)))
    runs = Runs(tmp_path)
    states = {run["name"]: run["state"] for run in runs.summaries()}
    assert (states["good"], states["newer"], states["cut"]) == ("finished", "unknown", "empty")
    for name in states:
        assert runs.view(name).json and runs.data(name)["state"] == states[name]
    assert "99" in runs.data("newer")["reason"]


def test_an_unchanged_run_is_rendered_once(
    fake_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fake_run("one", ended="", galleries=False, num_rounds=2)
    rendered: list[str] = []

    def count(run: Any, found: dict[str, Any], **options: Any) -> Any:
        rendered.append(found["state"])
        return run_view(run, found, **options)

    monkeypatch.setattr("jointdiff.views.live.runs.run_view", count)
    runs = Runs(tmp_path)
    first = runs.view("one")
    assert runs.view("one") is first and rendered == ["interrupted"]
    EventLog(folder / "events.jsonl").append("run_finished", duration_s=3.0)
    assert runs.view("one").etag != first.etag and runs.data("one")["state"] == "finished"


@pytest.mark.parametrize("name", ["..", "latest", "a/b", "", ".hidden", "x" * 81])
def test_a_name_that_is_no_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(RunError):
        Runs(tmp_path).view(name)


def test_files_that_may_be_shown(tmp_path: Path) -> None:
    gallery = tmp_path / "sites" / "h 1" / "explanations" / "run"
    gallery.mkdir(parents=True)
    for path in (tmp_path / "report.html", gallery / "index.html", tmp_path / "run.lock", tmp_path / "sites" / "x.png"):
        path.write_text("x")
    (gallery / "0001-scan.png").symlink_to("/etc/hostname")
    assert files.of_a_run(tmp_path, "report.html") == (tmp_path / "report.html").resolve()
    assert files.of_a_run(tmp_path, "sites/h 1/explanations/run/index.html") == (gallery / "index.html").resolve()
    for path in (
        "run.lock", "metrics.json", "../x", "sites/x.png", "sites/h 1/explanations/run/0001-scan.png",
        "sites/../explanations/run/index.html", "sites/h 1/explanations/../../x.png", "", "/etc/hostname",
        "sites/h 1/state/run/index.html",
    ):  # fmt: skip
        assert files.of_a_run(tmp_path, path) is None, path


def test_only_this_machine_s_names_are_answered() -> None:
    for host in (b"localhost", b"LOCALHOST:80", b"127.0.0.1:8050", b"[::1]:1", b"[::1]"):
        assert is_local([host]), host
    for host in (b"evil.example", b"localhost.evil.example", b"127.0.0.1.evil.example:80", b"localhost:80@evil", b"",
                 b"0.0.0.0", b":80", b"localhost:8a"):  # fmt: skip
        assert not is_local([host]), host
    assert not is_local([b"localhost", b"localhost"])


def test_assets_fetch_nothing_from_elsewhere() -> None:
    for name in ("style.css", "live.css", "live.js", "icon.svg"):
        found = asset(name)
        assert found is not None
        text = found[0].decode().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text and "@import" not in text
    assert asset("../runs.py") is None
