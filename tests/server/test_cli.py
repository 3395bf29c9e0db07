"""The command `jointdiff-server`, as a coordinator types it: what it prints, what it writes, and how it says no."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from jointdiff import checkpoint, storage
from jointdiff.config import Config, ModelConfig, RunConfig, TrainingConfig
from jointdiff.events import EventLog
from jointdiff.standalone import train_alone
from jointdiff.views.format import num_bytes
from jointdiff.views.run_data import load_run
from server import resume, runs
from server.cli import main
from simulations.local import run_local


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Run a command that must fail; return its exit code and its one line on stderr."""
    capsys.readouterr()
    code = main([str(a) for a in arguments])
    shown = capsys.readouterr()
    assert code != 0 and shown.err.startswith("error: ") and shown.err.count("\n") == 1, shown
    return code, shown.err.strip()


def succeeds(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must succeed; return what it printed."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 0
    shown = capsys.readouterr()
    assert not shown.err
    return shown.out


@pytest.fixture
def home(tmp_path: Path, fake_run: Callable[..., Path]) -> Path:
    """Three runs, told one after the other: finished, failed, interrupted; `latest` is the interrupted one."""
    fake_run("first", num_rounds=2, galleries=False)
    fake_run("second", num_rounds=3, galleries=False, ended="failed")
    fake_run("third", num_rounds=1, galleries=False, ended="", hospitals=("hospital-1",))
    (tmp_path / "runs" / "latest").symlink_to("third")
    return tmp_path


# ---- runs


def test_runs_are_listed_newest_first_with_the_numbers_of_their_folders(home, capsys):
    found = json.loads(succeeds(capsys, "runs", "--home", home, "--json"))
    assert [(r["name"], r["state"], r["round"], r["num_rounds"], r["num_hospitals"]) for r in found] == [
        ("third", "interrupted", 1, 1, 1), ("second", "failed", 3, 3, 3), ("first", "finished", 2, 2, 3)
    ]  # fmt: skip
    first = home / "runs" / "first"
    pooled = json.loads((first / "metrics.json").read_text())["final"]["pooled"]
    assert (found[2]["auc"], found[2]["balanced_accuracy"]) == (pooled["auc"], pooled["balanced_accuracy"])
    assert found[2]["num_bytes"] == sum(p.stat().st_size for p in first.rglob("*") if p.is_file())
    assert (found[2]["method"], found[2]["dataset"]) == ("joint", "phantom")
    lines = succeeds(capsys, "runs", "--home", home).splitlines()
    assert lines[0].split()[:4] == ["run", "state", "round", "method"] and len(lines) == 4
    assert lines[3].startswith("first   finished")
    assert f"  2/2    joint   phantom  3          {pooled['auc']:.3f}  {pooled['balanced_accuracy']:.3f}" in lines[3]
    assert lines[3].endswith(num_bytes(found[2]["num_bytes"]))


def test_a_run_is_running_while_a_live_process_holds_its_lock_and_not_a_moment_longer(home, capsys, monkeypatch):
    monkeypatch.setattr(resume, "call", lambda *_, **__: pytest.fail("started"))
    folder = home / "runs" / "second"  # it failed, and goes on now
    hold = (
        "import sys, time; from pathlib import Path; from jointdiff.storage import run_locked\n"
        "with run_locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, folder], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None and server.stdout.readline() == "held\n"
            states = {r.name: r.state for r in runs.list_runs(home)}
            code, error = fails(capsys, "resume", "second", "--home", home)
        finally:
            server.kill()
    assert states == {"first": "finished", "second": "running", "third": "interrupted"}
    assert code == 5 and "'second' is still running" in error
    assert (folder / storage.LOCK_FILE).exists() and runs.summary(folder).state == "failed"


def test_one_bad_run_does_not_hide_the_others(home, capsys):
    (home / "runs" / "empty").mkdir()
    (home / "runs" / "newer").mkdir()
    (home / "runs" / "newer" / "events.jsonl").write_text('{"schema_version": 99, "event": "run_started"}\n')
    (home / "runs" / ".pruned-x-1").mkdir()
    found = {r["name"]: r["state"] for r in json.loads(succeeds(capsys, "runs", "--home", home, "--json"))}
    assert found.pop("empty") == "interrupted" and found.pop("newer") == "unreadable"
    assert set(found) == {"first", "second", "third"}


def test_a_home_without_runs_and_a_home_that_is_not_there(tmp_path, capsys):
    assert succeeds(capsys, "runs", "--home", tmp_path) == f"No run yet in {tmp_path / 'runs'}.\n"
    assert json.loads(succeeds(capsys, "runs", "--home", tmp_path, "--json")) == []
    code, error = fails(capsys, "runs", "--home", tmp_path / "nowhere")
    assert code == 5 and str(tmp_path / "nowhere") in error and "--home" in error
    assert not list(tmp_path.iterdir())  # looking makes nothing
    code, error = fails(capsys, "report", "x", "--home", tmp_path)
    assert code == 5 and "no run at all" in error


def test_the_home_of_the_environment_is_used(home, capsys, monkeypatch):
    monkeypatch.setenv(storage.HOME_VARIABLE, str(home))
    assert len(json.loads(succeeds(capsys, "runs", "--json"))) == 3


@pytest.mark.parametrize("command", ["report", "resume", "export", "tensorboard", "prune"])
def test_an_unknown_run_is_one_error_that_offers_the_nearest(home, capsys, command):
    before = sorted(home.rglob("*"))
    code, error = fails(capsys, command, "secnd", "--home", home)
    assert code == 5 and "no run 'secnd'" in error and "did you mean 'second'?" in error
    assert sorted(home.rglob("*")) == before


def test_a_name_that_leaves_the_folder_of_the_runs_is_no_run(home, capsys):
    code, error = fails(capsys, "report", "../runs/first", "--home", home)
    assert code == 5 and "There is no run" in error


def test_listing_runs_does_not_wait_for_torch(home):
    code = (
        "import sys; from server.cli import main; code = main(['runs']); "
        "assert 'torch' not in sys.modules and 'flwr' not in sys.modules; sys.exit(code)"
    )
    environment = {"JOINTDIFF_HOME": str(home), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.count("\n") == 4, done.stderr


# ---- report, dashboard


@pytest.mark.parametrize(("asked", "name"), [("second", "second"), ("latest", "third")])
def test_report_writes_the_page_again_and_names_it(home, capsys, asked, name):
    path = home / "runs" / name / "report.html"
    path.write_text("old")
    assert succeeds(capsys, "report", asked, "--home", home) == f"{path}\n"
    assert f"<h1>{name}</h1>" in path.read_text()


def test_dashboard_hands_home_and_port_on(home, capsys, monkeypatch):
    served = []

    def serve(home, port, *, ready):
        served.append((home, port))
        ready("http://here/")

    monkeypatch.setitem(sys.modules, "server.dashboard", types.SimpleNamespace(serve=serve))
    assert "http://here/" in succeeds(capsys, "dashboard", "--home", home)
    succeeds(capsys, "dashboard", "--home", home, "--port", 9000)
    assert served == [(home, 8050), (home, 9000)]


# ---- resume


def test_resume_calls_the_launcher_with_the_home_and_returns_its_status(home, capsys, monkeypatch):
    called = []
    monkeypatch.setattr(resume, "call", lambda command, *, home: called.append((command, home)) or 7)
    code = main(["resume", "second", "--home", str(home), "-c", "device=cpu", "-c", "round-retries=1 explain=0"])
    command = [sys.executable, "-m", "simulations.launch", "--resume", "second", "--run-config", "device=cpu",
               "--run-config", "round-retries=1 explain=0"]  # fmt: skip
    assert code == 7 and called == [(command, home)]
    assert main(["resume", "third", "--home", str(home)]) == 7


def test_the_launcher_understands_what_it_is_called_with(home, capfd):
    # A setting that may not change is refused before anything starts: run, home and keys have arrived by then.
    assert main(["resume", "second", "--home", str(home), "-c", "num-rounds=99"]) == 2
    assert "The run 'second' was started with num-rounds=3; now 99 is asked for" in capfd.readouterr().err


def test_a_run_that_cannot_be_resumed_is_refused_before_anything_starts(home, capsys, monkeypatch):
    monkeypatch.setattr(resume, "call", lambda *_, **__: pytest.fail("started"))
    code, error = fails(capsys, "resume", "first", "--home", home)
    assert code == 5 and "'first' has finished: there is nothing to resume" in error
    assert str(home / "runs" / "first" / "report.html") in error
    alone = home / "runs" / "alone"
    log = EventLog(alone / "events.jsonl")
    log.append("run_started", run_name="alone", hospitals=["hospital-1"])
    log.append("hospital_replied", hospital="hospital-1", round=0, kind="describe", bytes_in=0, bytes_out=0)
    code, error = fails(capsys, "resume", "alone", "--home", home)
    assert code == 5 and "cannot be resumed" in error


def test_a_run_over_real_hospitals_is_resumed_over_them(home, capsys, monkeypatch):
    monkeypatch.setattr(resume, "call", lambda *_, **__: pytest.fail("started a simulation"))
    EventLog(home / "runs" / "far" / "events.jsonl").append("run_started", run_name="far", dataset={"name": "sites"})
    code, error = fails(capsys, "resume", "far", "--home", home, "-c", "round-retries=1")
    assert code == 5 and "config.yaml cannot be read" in error


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import os, sys; sys.exit(3 if os.environ['JOINTDIFF_HOME'] == '/some/home' else 4)", 3),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137),
        ("pass", 0),
    ],
)
def test_the_exit_status_of_a_called_command_comes_back_as_of_a_shell(code, status):
    assert resume.call([sys.executable, "-c", code], home=Path("/some/home")) == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_called_command_which_ends_by_itself(number):
    called = (
        "import signal, sys, time; signal.signal(int(sys.argv[1]), lambda *_: sys.exit(5)); "
        "print('ready', flush=True); time.sleep(20)"
    )
    caller = (
        "import sys; from pathlib import Path; from server.resume import call; "
        "sys.exit(call([sys.executable, '-c', *sys.argv[1:]], home=Path('/')))"
    )
    command = [sys.executable, "-c", caller, called, str(int(number))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            process.send_signal(number)
            assert process.wait(30) == 5
        finally:
            process.kill()


# ---- export


@pytest.fixture
def saved(home: Path) -> Iterator[dict[str, torch.Tensor]]:
    """Weights of the first run, in its checkpoints."""
    state = {"a.weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), "b": torch.arange(5)}
    run = RunConfig(
        run_name="first", home=str(home), sites_home=str(home / "sites"), data_root=str(home / "data"),
        dataset=f"npz:{home}/scans.npz", model=str(home / "model.yaml"), preset=str(home / "mine.yaml"), num_rounds=2,
        initial_weights=str(home / "first.safetensors"), server_data=str(home / "own.npz"),
    )  # fmt: skip
    config = Config(run, ModelConfig(name=str(home / "model.yaml")), TrainingConfig())
    (home / "runs" / "first" / "checkpoints").mkdir()
    for kind, number, metric in (("best", 1, 0.75), ("last", 2, None)):
        path = home / "runs" / "first" / "checkpoints" / f"{kind}.safetensors"
        name = "heldout_auc" if metric else ""
        checkpoint.save(path, state, config, round_number=number, metric=metric, metric_name=name, code_hash="beef")
    return state


def test_export_is_one_file_with_weights_card_and_no_folder_of_this_machine(home, saved, capsys):
    source = home / "runs" / "first" / "checkpoints" / "best.safetensors"
    before = source.read_bytes()
    output, card = home / "out" / "model.safetensors", home / "out" / "card.md"
    shown = succeeds(capsys, "export", "first", "--home", home, "-o", output, "--card", card)
    assert shown == f"{output}\n{card}\n" and source.read_bytes() == before
    loaded, own = checkpoint.load(output), checkpoint.load(source)
    assert loaded.state.keys() == saved.keys() and all(torch.equal(loaded.state[k], saved[k]) for k in saved)
    assert (loaded.round_number, loaded.metric, loaded.metric_name, loaded.code_hash) == (
        1,
        0.75,
        "heldout_auc",
        "beef",
    )
    assert loaded.config.training == own.config.training and loaded.config.run.num_rounds == 2
    assert (loaded.config.run.dataset, loaded.config.run.preset) == ("npz:scans.npz", "mine.yaml")
    with safe_open(output, framework="pt") as file:
        assert file.metadata()["model_card"] == card.read_text()
    assert "# Model card: first, best weights" in card.read_text()
    assert str(home).encode() in before and str(home).encode() not in output.read_bytes()


def test_export_of_the_last_round_goes_beside_the_user_and_again_over_it(home, saved, capsys, monkeypatch):
    monkeypatch.chdir(home)
    for _ in range(2):
        assert succeeds(capsys, "export", "first", "--kind", "last", "--home", home).strip() == str(
            home / "first-last.safetensors"
        )
    assert checkpoint.load(home / "first-last.safetensors").round_number == 2
    again = checkpoint.export(home / "first-last.safetensors", home / "again", Config(), model_card="x")
    assert checkpoint.load(again).round_number == 2  # an export can be exported


def test_a_missing_checkpoint_or_place_is_named_and_nothing_is_written(home, saved, capsys):
    code, error = fails(capsys, "export", "second", "--home", home, "-o", home / "x.safetensors")
    assert code == 4 and str(home / "runs" / "second" / "checkpoints" / "best.safetensors") in error
    code, error = fails(capsys, "export", "first", "--home", home, "-o", home)
    assert code == 5 and "is a folder" in error
    (home / "file").write_text("in the way")
    code, error = fails(
        capsys, "export", "first", "--home", home, "-o", home / "y", "--card", home / "file" / "card.md"
    )
    assert code == 5 and "cannot be written" in error
    assert not (home / "x.safetensors").exists() and not (home / "y").exists()


def test_a_real_federation_and_a_site_alone_are_told_apart_and_exported_with_their_numbers(tiny_run, tmp_path, capsys):
    together, alone = run_local(tiny_run(run_name="together")), train_alone(tiny_run(run_name="alone"))
    home = together.parent.parent
    assert runs.how_started(load_run(together)) == "simulation" and runs.how_started(load_run(alone)) == "alone"
    assert [run.state for run in runs.list_runs(home)] == ["finished", "finished"]
    for folder in (together, alone):
        card = tmp_path / f"{folder.name}.md"
        output = tmp_path / f"{folder.name}.safetensors"
        succeeds(capsys, "export", folder.name, "--home", home, "-o", output, "--card", card)
        pooled = json.loads((folder / "metrics.json").read_text())["best"]["pooled"]
        assert f"| **all, pooled** | 18 | {pooled['auc']:.3f} [" in card.read_text()
        assert f"| {pooled['balanced_accuracy']:.3f} [" in card.read_text()
        own, other = (checkpoint.load(p).state for p in (folder / "checkpoints" / "best.safetensors", output))
        assert own.keys() == other.keys() and all(torch.equal(own[k], other[k]) for k in own)
        assert str(home).encode() not in output.read_bytes() and "data.npz" in card.read_text()
    assert "| train | all weights" in (tmp_path / "together.md").read_text()
    assert "| train |" not in (tmp_path / "alone.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prune", "--keep", "-1"], "no count"),
        (["prune", "--older-than", "soon"], "no number of days"),
        (["prune", "--state", "faild"], "did you mean 'failed'?"),
        (["prune", "--state", "running"], "unknown state 'running'"),
        (["export"], "RUN"),
        (["rnus"], "invalid choice"),
    ],
)
def test_what_argparse_refuses_ends_with_code_2_and_an_error_line(arguments, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: " in last and said in last
