"""Removing runs: which are chosen, that what is in use stays, and that nobody meets half a run."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jointdiff import storage
from jointdiff.views.format import num_bytes
from server import prune, runs
from server.cli import main

NOW = datetime(2026, 6, 30, 12, tzinfo=UTC)
_ONE = runs.RunSummary("", "", 1, 1, "joint", "phantom", 3, None, None, "", 10, "")
STORED = [  # the newest first
    replace(_ONE, name="e", state="running", started="2026-06-30T11:00:00.000+00:00"),
    replace(_ONE, name="d", state="finished", started="2026-06-29T11:00:00.000+00:00"),
    replace(_ONE, name="c", state="failed", started="2026-06-20T11:00:00.000+00:00"),
    replace(_ONE, name="b", state="interrupted", started="2026-06-10T11:00:00.000+00:00"),
    replace(_ONE, name="a", state="running", started="2026-06-01T11:00:00.000+00:00"),
]


@pytest.mark.parametrize(
    ("asked", "gone"),
    [
        ({"keep": 1}, "cb"),  # d is the latest, e and a are running
        ({"keep": 1, "latest": ""}, "dcb"),
        ({"keep": 3}, "b"),
        ({"keep": 9}, ""),
        ({"states": ("failed", "interrupted")}, "cb"),
        ({"states": ("finished",)}, ""),
        ({"states": ("finished",), "names": ("d",)}, "d"),
        ({"older_than_days": 5}, "cb"),
        ({"older_than_days": 15}, "b"),
        ({"older_than_days": 15, "states": ("failed",)}, ""),
        ({"names": ("b", "a")}, "b"),
        ({"names": ("b", "d"), "keep": 2}, "b"),
    ],
)
def test_which_runs_are_chosen(asked: dict, gone: str) -> None:
    assert "".join(run.name for run in prune.choose(STORED, now=NOW, **{"latest": "d", **asked})) == gone


@pytest.fixture
def home(tmp_path: Path, fake_run: Callable[..., Path]) -> Path:
    """Three runs, the newest last; the failed one has left Flower's logs."""
    for name, ended in (("first", "finished"), ("second", "failed"), ("third", "finished")):
        fake_run(name, num_rounds=1, galleries=False, ended=ended)
    (tmp_path / "runs" / "latest").symlink_to("third")
    (tmp_path / "flower" / "second").mkdir(parents=True)
    (tmp_path / "flower" / "second" / "superlink.log").write_bytes(b"x" * 5000)
    return tmp_path


def names(home: Path) -> set[str]:
    """Everything in the folder of the runs, hidden or not."""
    return {path.name for path in (home / "runs").iterdir()}


def test_removing_says_what_and_how_many_bytes_and_takes_flowers_logs_along(home, capsys):
    size = num_bytes(runs.num_bytes_below(home / "runs" / "second") + 5000)
    assert main(["prune", "--home", str(home), "--state", "failed,interrupted", "--yes"]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("second  failed  20") and first.endswith(f"  {size}")
    assert last == f"1 runs removed, {size} freed."
    assert names(home) == {"first", "third", "latest"} and not list((home / "flower").iterdir())


@pytest.mark.parametrize("options", [["--dry-run"], ["--dry-run", "--yes"], []])
def test_without_yes_or_a_terminal_it_only_lists_and_says_how_to_go_on(home, capsys, monkeypatch, options):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    before = sorted(home.rglob("*"))
    assert main(["prune", "--home", str(home), "--keep", "1", *options]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out[:-1]] == ["second", "first"]
    assert out[-1] == "2 of 3 runs. Nothing was removed; with --yes they would be."
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize(("answer", "left"), [("y", 1), ("n", 3), ("", 3)])
def test_on_a_terminal_it_asks(home, monkeypatch, answer, left):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: answer)
    assert main(["prune", "--home", str(home), "--keep", "1"]) == 0
    assert len(runs.run_folders(home)) == left


def test_no_condition_removes_nothing(home, capsys):
    assert main(["prune", "--home", str(home), "--yes"]) == 2
    assert "Say which runs may go" in capsys.readouterr().err and len(runs.run_folders(home)) == 3


@pytest.mark.parametrize("name", ["latest", "third"])
def test_the_newest_run_goes_only_by_its_name_and_latest_moves_on(home, name):
    assert main(["prune", "--home", str(home), "--older-than", "0.0000001", "--yes"]) == 0
    assert names(home) == {"third", "latest"}
    shutil.copytree(home / "runs" / "third", home / "runs" / "other")
    assert main(["prune", name, "--home", str(home), "--yes"]) == 0
    assert (home / "runs" / "latest").resolve() == home / "runs" / "other"
    assert main(["prune", "latest", "--home", str(home), "--yes"]) == 0
    assert names(home) == set()


def test_a_run_that_is_being_written_stays(home, capsys):
    with storage.run_locked(home / "runs" / "first"):
        assert main(["prune", "--home", str(home), "--keep", "1", "--yes"]) == 0
        assert names(home) == {"first", "third", "latest"}
        capsys.readouterr()
        assert main(["prune", "first", "--home", str(home), "--yes"]) == 5
        assert "'first' is being written" in capsys.readouterr().err
        with pytest.raises(Exception, match="is being written"):  # a server that began after the list was made
            prune.remove(home, "first")
    assert (home / "runs" / "first" / "events.jsonl").exists()


def test_a_run_whose_flower_daemon_lives_stays(home, capsys):
    wait = "import sys; print('here', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", wait], cwd=home / "flower" / "second", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as daemon:
        assert daemon.stdout is not None and daemon.stdin is not None and daemon.stdout.readline() == b"here\n"
        assert main(["prune", "second", "--home", str(home), "--yes"]) == 5
        assert "'second' is in use" in capsys.readouterr().err
        daemon.stdin.close()
    assert "second" in names(home)
    assert main(["prune", "second", "--home", str(home), "--yes"]) == 0 and "second" not in names(home)


def test_a_removal_that_stops_leaves_no_half_run_and_the_next_one_ends_it(home, capsys, monkeypatch):
    def stop(folder: Path, **_: object) -> None:
        (folder / "events.jsonl").unlink()  # some of it is gone already
        raise PermissionError(13, "Permission denied", str(folder / "config.yaml"))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stop)
        assert main(["prune", "second", "--home", str(home), "--yes"]) == 5
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Permission denied" in error and "config.yaml" in error
    assert {folder.name for folder in runs.run_folders(home)} == {"first", "third"}
    assert any(name.startswith(".pruned-second-") for name in names(home))
    assert main(["prune", "--home", str(home), "--keep", "5", "--yes"]) == 0
    assert names(home) == {"first", "third", "latest"}
    assert not list((home / "flower").iterdir()) and "0 runs removed" in capsys.readouterr().out


@pytest.fixture
def database(home: Path) -> Path:
    """A database of Flower's with much space that it no longer needs."""
    path = home / "flower" / "first" / "state.db"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as base:
        base.execute("CREATE TABLE message (content BLOB)")
        base.executemany("INSERT INTO message VALUES (?)", [(b"x" * 4000,)] * 100)
        base.execute("DELETE FROM message WHERE rowid > 1")
        base.commit()
    return path


def test_flowers_databases_shrink_and_keep_their_rows(home, database, capsys):
    before = database.stat().st_size
    assert main(["prune", "second", "--home", str(home), "--yes"]) == 0
    after = database.stat().st_size
    assert before > 400_000 and after < 20_000
    assert f"1 compacted, {num_bytes(before - after)} freed" in capsys.readouterr().out
    with closing(sqlite3.connect(database)) as base:
        assert base.execute("SELECT content FROM message").fetchall() == [(b"x" * 4000,)]


def test_a_database_in_use_or_damaged_is_left_alone_and_named(home, database, capsys):
    damaged = home / "flower" / "third" / "state.db"
    damaged.parent.mkdir()
    damaged.write_bytes(b"no database" * 1000)
    content = database.read_bytes()
    with open(database, "rb"):
        assert main(["prune", "second", "--home", str(home), "--yes"]) == 0
    out = capsys.readouterr().out
    assert f"Not compacted: {database}: a Flower daemon uses it" in out
    assert f"Not compacted: {damaged}: file is not a database" in out
    assert database.read_bytes() == content and damaged.read_bytes() == b"no database" * 1000
