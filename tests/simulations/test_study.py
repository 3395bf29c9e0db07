"""A study from its file to its page, with real runs in real processes: once, again, interrupted, and with a failure."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from jointdiff import storage
from jointdiff.events import read_events
from jointdiff.processes import descendants, is_alive
from simulations.launch import main

ROOT = Path(__file__).parents[2]
WILD = {"kind": "supervised", "training": {"learning-rate": 1e30}}  # weights that no prediction survives


@pytest.fixture
def study(tiny_run, tmp_path: Path):
    """A function that writes a tiny study's file and returns the arguments that run it."""
    run = tiny_run()
    base = {
        "dataset": run.dataset, "image-size": 16, "model": run.model, "num-rounds": 1, "local-steps": 1,
        "batch-size": 4, "device": "cpu", "explain": 0, "min-hospitals": 1,
    }  # fmt: skip

    def make(base_changes: dict[str, Any] | None = None, **changes: Any) -> list[str]:
        tree = {
            "name": "tiny", "base": {**base, **(base_changes or {})}, "workers": 1, "num-labels": [12],
            "methods": {"joint": None, "sup": "supervised", "pixels": None},
            **{key.replace("_", "-"): value for key, value in changes.items()},
        }  # fmt: skip
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        return ["study", str(tmp_path / "tiny.yaml"), "--home", str(tmp_path / "home")]

    return make


def results(tmp_path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((tmp_path / "home" / "studies" / "tiny" / "results.csv").open()))


def test_a_study_runs_names_what_fails_and_repeats_nothing(study, tmp_path, capsys, monkeypatch):
    arguments = study(
        {"round-retries": 0}, methods={"joint": None, "wild": WILD, "sup": "supervised", "pixels": None},
        split_seeds=[0], local_only="sup", centralised="sup", bounds={"lower": "sup", "upper": "sup"},
    )  # fmt: skip
    assert main([*arguments, "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert "9 runs, 1 at a time" in listed and listed.count("to do ") == 9 and "time left not known yet" in listed
    assert not (tmp_path / "home" / "studies").exists() and not (tmp_path / "home" / "runs").exists()

    assert main(arguments) == 5
    out, error = capsys.readouterr()
    rows = results(tmp_path)
    (failed,) = (row for row in rows if row["status"] != "finished")
    assert failed["method"] == "wild" and failed["status"] == "failed" and "1 of 9 runs failed: " in error
    assert "In round 1 no hospital could" in failed["reason"]
    assert "[9/9]" in out and rows[-1]["run"] in out
    done = {(r["method"], r["place"], r["hospital"], r["num_labels"]): r for r in rows if r is not failed}
    steps = {
        ("sup", "federated", "0", "12"): "1", ("sup", "centralised", "0", "12"): "3",
        ("sup", "local-only", "2", "12"): "1", ("pixels", "federated", "0", "12"): "0",
    }  # fmt: skip
    for key, count in steps.items():
        assert done[key]["steps"] == count and 0 <= float(done[key]["auc"]) <= 1 and float(done[key]["log_loss"]) > 0
    folder = tmp_path / "home" / "studies" / "tiny"
    assert yaml.safe_load((folder / "study.yaml").read_text())["methods"]["sup"]["training"]["class-weight"] == 1.0
    assert (
        "1 failed" in (folder / "index.html").read_text() and "no hospital could" in (folder / "tables.md").read_text()
    )
    left = [path.parent.name for path in (tmp_path / "home" / "runs").glob("*/state")]
    assert left == [failed["run"]], "a finished run needs no state to resume, one that failed does"

    monkeypatch.setattr("simulations.study.running.carry_out_all", lambda jobs, *_, **__: pytest.fail(str(jobs)))
    again = study(
        {"round-retries": 0}, split_seeds=[0], local_only="sup", centralised="sup",
        bounds={"lower": "sup", "upper": "sup"},
    )  # fmt: skip
    assert main(again) == 0
    assert [r["auc"] for r in results(tmp_path)] == [r["auc"] for r in done.values()]

    victim = done["sup", "federated", "0", "12"]["run"]  # the disk has eaten the results of two runs, and the table
    metrics = tmp_path / "home" / "runs" / victim / "metrics.json"
    for path in (metrics, folder / "results.csv", *(folder / "pixels").iterdir()):
        path.write_bytes(path.read_bytes()[:100])
    capsys.readouterr()
    assert main(again) == 5
    rows = results(tmp_path)
    assert [r["run"] for r in rows if r["status"] != "finished"] == [victim] and len(rows) == len(done)
    assert f"Remove the folder {metrics.parent}, and it runs anew." in capsys.readouterr().err


def test_an_interrupted_study_leaves_no_process_and_goes_on(study, tmp_path):
    arguments = study({"num-rounds": 40, "local-steps": 4}, methods={"joint": None})
    command = [sys.executable, "-m", "simulations.launch", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    runs = tmp_path / "home" / "runs"
    deadline = time.monotonic() + 200
    while not list(runs.glob("tiny-*/state/round-0002.safetensors")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    below = descendants(process.pid)
    assert below
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=100)
    assert process.returncode == 130 and "To carry it on, the same command again" in error and "Traceback" not in error
    deadline = time.monotonic() + 20  # multiprocessing's own helper sees that it is alone a moment later
    while left := [pid for pid in below if is_alive(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    (row,) = results(tmp_path)
    assert row["status"] == "waiting"
    assert main(arguments) == 0
    (diary,) = runs.glob("tiny-*/events.jsonl")
    resumed = [event["round"] for event in read_events(diary) if event["event"] == "run_resumed"]
    assert len(resumed) == 1 and resumed[0] >= 2, "it goes on after its last complete round"
    assert results(tmp_path)[0]["status"] == "finished"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_a_finaliser_swallows_stops_the_run_at_its_next_event():
    from simulations.study.workers import Stop

    class Asked:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    stop = Stop()
    before = signal.signal(signal.SIGTERM, stop)
    try:
        stop.check("round_started")
        Asked()
        with pytest.raises(KeyboardInterrupt):
            stop.check("round_started")
        stop.check("run_failed")  # the run's last word is written down
    finally:
        signal.signal(signal.SIGTERM, before)


def test_two_processes_do_not_run_one_study(study, tmp_path, capsys):
    folder = tmp_path / "home" / "studies" / "tiny"
    folder.mkdir(parents=True)
    with storage.run_locked(folder):
        assert main(study(methods={"pixels": None})) == 5
    assert "is running already, in another process" in capsys.readouterr().err


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_own_run(study, tmp_path, monkeypatch):
    from simulations.study.file import read_study
    from simulations.study.plan import plan
    from simulations.study.workers import carry_out_all

    arguments = study({"num-rounds": 500}, methods={"joint": None, "pixels": None})
    jobs = plan(read_study(Path(arguments[1])), tmp_path / "home")
    killed = []

    def idle(going_on: dict[str, str]) -> None:
        if not killed and any(how.startswith("round") for how in going_on.values()):
            killed.extend(
                pid for pid in descendants(os.getpid()) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()
            )
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    outcomes = list(carry_out_all(jobs, tmp_path / "s", 1, idle=idle))
    assert [outcome.result is not None for outcome in outcomes] == [False, True]
    assert outcomes[0].reason.startswith("its process died (signal 9, perhaps for want of memory")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metods": {}}, "Unknown key 'metods'"),
        ({"methods": {"joint": "jont"}}, "did you mean 'joint'?"),
        ({"settings": {"odd": {"strategy": "krum"}}}, "setting 'odd' with method 'joint': strategy=krum"),
    ],
)
def test_a_mistake_ends_a_study_before_anything_runs(study, tmp_path, capsys, change, message):
    assert main(study(**change)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "home" / "runs").exists()


def test_a_study_that_is_not_there_is_offered_by_name(capsys):
    assert main(["study", "dmo"]) == 2
    assert "There is no study file 'dmo'; of those shipped with it, did you mean 'demo'?" in capsys.readouterr().err
