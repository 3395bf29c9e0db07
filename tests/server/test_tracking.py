"""TensorBoard files, read back with TensorBoard's own reader, against the events they were made from."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.directory_watcher import DirectoryDeletedError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jointdiff import storage
from jointdiff.errors import RunError
from jointdiff.events import EventLog, read_events
from server.cli import main
from server.tracking import TensorBoardWriter, follow, write_tensorboard


def curves(folder: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return {folder of a line: {tag: [(round, value)]}}."""
    found = {}
    for line in sorted(folder.iterdir()):
        reader = EventAccumulator(str(line)).Reload()
        found[line.name] = {
            tag: [(p.step, pytest.approx(p.value, rel=1e-6)) for p in reader.Scalars(tag)]
            for tag in reader.Tags()["scalars"]
        }
    return found


@pytest.fixture
def run(fake_run: Callable[..., Path]) -> Path:
    return fake_run("run-a", num_rounds=3, galleries=False)


def test_every_number_of_the_events_is_in_the_files_at_its_round(run):
    found = curves(write_tensorboard(run))
    events = read_events(run / "events.jsonl")
    assert set(found) == {"pooled", "hospital-1", "hospital-2", "hospital-3"}
    evaluated = [e for e in events if e["event"] == "evaluated"]
    for key in ("auc", "balanced_accuracy"):
        assert found["pooled"][f"evaluation/{key}"] == [(e["round"], e["pooled"][key]) for e in evaluated]
        for name in ("hospital-1", "hospital-3"):
            assert found[name][f"evaluation/{key}"] == [(e["round"], e["hospitals"][name][key]) for e in evaluated]
    means = [e for e in events if e["event"] == "round_aggregated"]
    assert found["pooled"]["training/loss_diffusion"] == [(e["round"], e["metrics"]["loss_diffusion"]) for e in means]
    assert found["pooled"]["round/duration_s"] == [(n, 24.0) for n in (1, 2, 3)]
    trained = [e for e in events if e.get("kind") == "train" and e["hospital"] == "hospital-2"]
    own = found["hospital-2"]
    assert own["training/loss_diffusion"] == [(e["round"], e["metrics"]["loss_diffusion"]) for e in trained]
    # Unknown before the warm-up's end: a gap, not a zero.
    assert own["training/pseudo_coverage"] == [(e["round"], e["metrics"]["pseudo_coverage"]) for e in trained[1:]]
    assert own["exchange/train/bytes_out"] == [(n, 3_130_400) for n in (1, 2, 3)]
    assert own["exchange/train/duration_s"] == [(n, 21.5) for n in (1, 2, 3)]
    assert own["exchange/describe/bytes_in"] == [(0, 900)]


def test_the_points_bear_the_time_of_their_events(run):
    reader = EventAccumulator(str(write_tensorboard(run) / "pooled")).Reload()
    told = [e["time"] for e in read_events(run / "events.jsonl") if e["event"] == "evaluated"]
    found = [p.wall_time for p in reader.Scalars("evaluation/auc")]
    assert found == pytest.approx([datetime.fromisoformat(t).timestamp() for t in told], abs=0.01)


def test_writing_twice_gives_the_same_files_anew_and_leaves_nothing_beside(run):
    first = curves(write_tensorboard(run))
    (run / "tensorboard" / "gone").mkdir()
    assert curves(write_tensorboard(run)) == first and len(list((run / "tensorboard" / "pooled").iterdir())) == 1
    assert not [p.name for p in run.iterdir() if p.name.startswith(".")]


def test_what_a_resumed_run_gave_up_is_not_drawn(run):
    log = EventLog(run / "events.jsonl")
    log.append("run_resumed", round=1)
    log.append("evaluated", round=2, pooled={"auc": 0.5}, hospitals={})
    assert [step for step, _ in curves(write_tensorboard(run))["pooled"]["evaluation/auc"]] == [1, 2]
    assert curves(run / "tensorboard")["pooled"]["evaluation/auc"][-1] == (2, 0.5)


def test_a_hospitals_name_cannot_choose_the_folder(tmp_path):
    event = {"event": "hospital_replied", "kind": "train", "round": 1, "bytes_in": 1}
    with TensorBoardWriter(tmp_path / "board") as writer:
        for name in ("../../out", "..", "a/b", "nord süd"):
            writer({**event, "hospital": name})
    assert {p.name for p in tmp_path.iterdir()} == {"board"}
    assert {p.name for p in (tmp_path / "board").iterdir()} == {
        "%2E.%2F..%2Fout", "%2E.", "a%2Fb", "nord s%C3%BCd"
    }  # fmt: skip


def test_following_goes_on_to_the_end_and_takes_back_what_a_resume_gives_up(fake_run):
    run = fake_run("run-b", num_rounds=2, ended="", galleries=False)
    log = EventLog(run / "events.jsonl")
    follower = threading.Thread(target=follow, args=(run,), kwargs={"look_s": 0.02}, daemon=True)
    with storage.run_locked(run):
        follower.start()
        wait_until(lambda: steps(run) == [1, 2])
        log.append("evaluated", round=3, pooled={"auc": 0.25}, hospitals={})
        wait_until(lambda: steps(run) == [1, 2, 3])
        log.append("run_resumed", round=1)
        wait_until(lambda: steps(run) == [1])
        log.append("evaluated", round=2, pooled={"auc": 0.75}, hospitals={})
        assert follower.is_alive()
    follower.join(60)
    assert not follower.is_alive() and curves(run / "tensorboard")["pooled"]["evaluation/auc"][1:] == [(2, 0.75)]


def steps(run: Path) -> list[int]:
    try:
        return [step for step, _ in curves(run / "tensorboard")["pooled"]["evaluation/auc"]]
    except (OSError, KeyError, DirectoryDeletedError):
        return []  # not there yet, or just being replaced


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120  # a busy machine
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_command_writes_and_names_tensorboards_own_command(run, capsys):
    home = str(run.parent.parent)
    assert main(["tensorboard", "run-a", "--home", home]) == 0
    assert capsys.readouterr().out == f"tensorboard --logdir {run / 'tensorboard'}\n"
    assert "pooled" in curves(run / "tensorboard")
    assert main(["tensorboard", "run-a", "--home", home, "--follow"]) == 0  # it has ended: no waiting
    assert f"tensorboard --logdir {run / 'tensorboard'}\n" in capsys.readouterr().out


@pytest.mark.parametrize("options", [[], ["--follow"]])
def test_without_the_package_one_error_names_the_extra_and_nothing_changes(run, capsys, monkeypatch, options):
    before = curves(write_tensorboard(run))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(["tensorboard", "run-a", "--home", str(run.parent.parent), *options]) == 5
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "pip install 'jointdiff[tensorboard]'" in error
    assert curves(run / "tensorboard") == before


def test_a_folder_that_is_no_run_gets_no_files(tmp_path):
    with pytest.raises(RunError, match="cannot be read"):
        write_tensorboard(tmp_path)
    assert not list(tmp_path.iterdir())
