"""Comparisons of methods over label draws: paired, not repeated, and never mixed with runs of other settings."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import yaml

from jointdiff.paired import half_width_95
from simulations.compare import Row, main, table
from simulations.strict import parse_numbers
from tests.conftest import ramps

ROWS = [
    Row("joint", 0, 0.90, 0.8, 400, 10.0), Row("supervised", 0, 0.80, 0.7, 400, 5.0),
    Row("joint", 1, 0.94, 0.9, 400, 12.0), Row("supervised", 1, 0.80, 0.6, 400, 6.0),
    Row("joint", 2, 0.99, 0.9, 400, 12.0),  # its partner is missing: no pair
]  # fmt: skip


def cells(text: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert len({len(row) for row in rows}) == 1, "every row has every column"
    return {row[0]: row[1:] for row in rows}


def test_the_table_pairs_draws_and_stands_in_its_columns():
    got = cells(table(ROWS, "auc"))
    assert got["split-seed"] == ["joint", "supervised"]
    assert got["0"] == ["0.900", "0.800"] and "2" not in got
    assert got["**mean (sd)**"] == ["0.920 (0.028)", "0.800 (0.000)"]
    assert got["joint minus it, 95%"] == ["", "+0.120 +- 0.254"]  # t(1) = 12.706, sd .0283 over sqrt(2)
    assert got["steps per hospital"] == ["400", "400"]


def test_one_draw_has_neither_spread_nor_interval():
    got = cells(table(ROWS[:2], "auc"))
    assert "**mean (sd)**" not in got and got["joint minus it, 95%"] == ["", "+0.100 (one draw: no interval)"]


def test_the_interval_is_students_and_unknown_for_one_draw():
    assert half_width_95([0.5]) == math.inf
    values = np.random.default_rng(0).normal(size=10)
    assert half_width_95(values) == pytest.approx(2.262157163 * values.std(ddof=1) / math.sqrt(10))


@pytest.fixture
def compare(tiny_run, capsys):
    """A function that runs a comparison on tiny runs; returns code, output and errors."""
    run = tiny_run()

    def call(*arguments: str, keys: str = "") -> tuple[int, str, str]:
        base = f"dataset={run.dataset} image-size=16 model={run.model} num-labels=12 num-rounds=1 local-steps=1 "
        base += f"batch-size=4 device=cpu explain=0 home={run.home} " + keys
        capsys.readouterr()
        return (main(["-c", base, *arguments]), *capsys.readouterr())

    return call


def test_finished_runs_are_taken_and_others_are_done_again(compare, tiny_run, tmp_path, monkeypatch):
    methods = ["--methods", "joint,supervised,pixels", "--split-seeds", "0,1", "--csv", str(tmp_path / "rows.csv")]
    code, first, error = compare(*methods)
    assert code == 0, error
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert [(r["method"], r["split_seed"]) for r in rows] == [
        (m, s) for s in "01" for m in ("joint", "supervised", "pixels")
    ]
    runs = tmp_path / "home" / "runs"
    done = []
    next_round = "server.rounds.Federation.next_round"
    monkeypatch.setattr(next_round, lambda *_: done.append(1) or pytest.fail("trained again"))
    code, again, _ = compare(*methods)
    assert code == 0 and not done
    assert again.split("\nauc")[1].split("| seconds")[0] == first.split("\nauc")[1].split("| seconds")[0]
    monkeypatch.undo()
    diary = runs / "compare-joint-1" / "events.jsonl"
    diary.write_text("".join(line for line in diary.open() if "run_finished" not in line))
    assert compare(*methods)[0] == 0
    assert "run_finished" in diary.read_text() and "run_resumed" in diary.read_text()


def test_a_method_may_have_a_preset_of_its_own(compare, tmp_path):
    code, out, error = compare("--methods", "joint:joint-warmup,joint", "--split-seeds", "0")
    assert code == 0, error
    assert "| split-seed | joint:joint-warmup | joint |" in out
    presets = [
        yaml.safe_load((tmp_path / "home" / "runs" / f"compare-{name}-0" / "config.yaml").read_text())["run"]["preset"]
        for name in ("joint-joint-warmup", "joint")
    ]
    assert presets == ["joint-warmup", ""]
    assert compare("--methods", "joins:joint-warmup")[0] == 2


def test_a_method_may_have_changes_to_its_preset(compare, tmp_path):
    method = "supervised+learning-rate=0.004+labelled-view=weak"
    code, out, error = compare("--methods", f"supervised,{method}", "--split-seeds", "0")
    assert code == 0, error
    assert f"| split-seed | supervised | {method} |" in out
    (changed,) = (tmp_path / "home" / "runs").glob("compare-supervised-supervised-*-0")
    plain = tmp_path / "home" / "runs" / "compare-supervised-0"
    was, now = (yaml.safe_load((f / "config.yaml").read_text())["training"] for f in (plain, changed))
    assert {key: now[key] for key in now if now[key] != was[key]} == {"learning-rate": 0.004, "labelled-view": "weak"}
    for wrong, message in (
        ("supervised+learning-rat=1", "learning-rate"),
        ("supervised+learning-rate=fast", "must be of type float"),
        ("supervised+ridge", "METHOD+key=value"),
    ):
        code, _, error = compare("--methods", wrong)
        assert code == 2 and message in error


def test_an_old_run_with_other_settings_is_no_result(compare):
    choice = ["--methods", "joint", "--split-seeds", "0"]
    assert compare(*choice)[0] == 0
    code, _, error = compare(*choice, keys="local-steps=2")
    assert code == 2 and "local-steps=1, now 2 is asked for: give another --name" in error
    assert compare(*choice, "--name", "other", keys="local-steps=2")[0] == 0


def test_bad_requests_are_one_line(compare):
    for arguments, message in (
        (["--methods", "jiont"], "Unknown method 'jiont'"),
        (["--split-seeds", "0-x"], "--split-seeds takes numbers and ranges"),
    ):
        code, _, error = compare(*arguments)
        assert code == 2 and error.startswith("error: ") and message in error and error.count("\n") == 1
    assert parse_numbers("3,5-6", "--split-seeds") == [3, 5, 6]


def test_data_that_lack_what_is_asked_are_told_before_a_run_is_begun(compare, tmp_path):
    np.savez(tmp_path / "no-val.npz", **{k: v for k, v in ramps(60, 0, 12).items() if not k.startswith("val")})
    keys = f"dataset=npz:{tmp_path / 'no-val.npz'} home={tmp_path / 'home'}"
    code, _, error = compare("--split-seeds", "0", keys=f"{keys} eval-split=val")
    assert code == 3 and "has no 'val' split" in error and not list((tmp_path / "home").glob("runs/*"))
