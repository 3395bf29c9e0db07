"""Runs over a deployed federation: what is submitted, what is refused before, and real processes to the end (slow)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from jointdiff import certificate_checks, storage
from jointdiff.errors import ConfigError, RunError
from jointdiff.events import read_events
from server.cli import main
from server.deployment import admission, certificates, deployed_run, federation_folder, hospital_record, superlink
from server.deployment.hospital_record import Hospital
from server.deployment.services import Service
from server.deployment.superlink import Deployment, Settings

SIMULATION = Path(__file__).parents[2] / "simulations" / "3_hospitals"
BIN = Path(sys.executable).parent


def admit_on_record(home: Path, *names: str) -> Deployment:
    """Note admissions, as `jointdiff-server admit` does."""
    folder = federation_folder.make(home)
    certificates.create_authority(folder, "Test", now=certificate_checks.utc_now())
    with hospital_record.opened(folder) as (hospitals, _):
        hospitals += [Hospital(name, f"f{k}", "", str(k), "2026-01-01T00:00:00") for k, name in enumerate(names)]
    return Deployment(home)


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return admit_on_record(tmp_path, "st-mary", "city")


CLASSES = "classes=healthy,lesion"


def test_real_hospitals_take_the_place_of_simulated_ones(deployment: Deployment) -> None:
    run = deployed_run.prepare(deployment, str(SIMULATION), [CLASSES, "num-rounds=3 run-name=first"])
    simulated = tomllib.loads((SIMULATION / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert simulated["num-hospitals"] == 3 and simulated["num-labels"] > 0
    assert run.over_sites and run.num_labels == 0 and run.num_hospitals == 2
    assert set(run.hospital_names) == {"st-mary", "city"} and run.class_names == ("healthy", "lesion")
    assert run.home == str(deployment.home) and run.num_rounds == 3
    assert run.local_steps == simulated["local-steps"], "what is not about the data is taken from the simulation"


def test_some_of_the_hospitals(deployment: Deployment) -> None:
    run = deployed_run.prepare(deployment, "", [CLASSES, "hospitals=city run-name=x"])
    assert run.hospital_names == ("city",) and run.num_hospitals == 1


def test_settings_from_a_yaml_file(deployment: Deployment, tmp_path: Path) -> None:
    path = tmp_path / "first.yaml"
    path.write_text("classes: healthy,lesion\nnum-rounds: 20\nimage-size: 64\n")
    run = deployed_run.prepare(deployment, str(path), ["num-rounds=5 run-name=x"])
    assert (run.num_rounds, run.image_size) == (5, 64)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("dataset=phantom", "is for simulations"),
        ("dataset=npz:/data.npz", "is for simulations"),
        ("data-root=/data", "data-root"),
        ("num-labels=12", "num-labels"),
        ("partition=scanner", "partition"),
        ("hospitals=st-mary,citty", "did you mean 'city'"),
        ("num-hospitals=3", "hospitals"),
        ("home=/somewhere/else", "Choose it with --home"),
        ("num-round=3", "did you mean 'num-rounds'"),
        ("classes=healthy", "at least 2"),
    ],
)
def test_what_is_refused_before_anything_is_submitted(deployment: Deployment, keys: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        deployed_run.prepare(deployment, "", [CLASSES, keys])


@pytest.mark.parametrize(
    ("content", "says"),
    [("- a list", "mapping"), ("a: [", "cannot be read"), ("num-round: 3", "num-rounds"), ("num-rounds: many", "int")],
)
def test_yaml_files_that_say_nothing_of_use(deployment: Deployment, tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(ConfigError, match=says):
        deployed_run.prepare(deployment, str(tmp_path / "x.yaml"), [CLASSES])
    with pytest.raises(ConfigError, match="neither a folder"):
        deployed_run.prepare(deployment, str(tmp_path / "y.yaml"), [CLASSES])


def test_nobody_is_admitted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="jointdiff-server admit"):
        deployed_run.prepare(admit_on_record(tmp_path), "", [CLASSES])


def test_the_app_is_settings_and_no_python(deployment: Deployment) -> None:
    run = deployed_run.prepare(deployment, "", [CLASSES, 'run-name="v1.0"'])
    app = deployed_run.write_app(deployment, run)
    assert [path.name for path in app.iterdir()] == ["pyproject.toml"]
    tree = tomllib.loads((app / "pyproject.toml").read_text())
    assert tree["project"]["dependencies"] == []  # else the SuperLink would fetch them for every run
    assert tree["tool"]["flwr"]["app"]["components"] == {"serverapp": "server.app:app", "clientapp": "client.app:app"}
    assert tree["tool"]["flwr"]["app"]["config"]["hospitals"] == ",".join(run.hospital_names)


def test_a_federation_that_does_not_run(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["run", "--home", str(deployment.home), "-c", CLASSES, "-c", "run-name=x device=cpu"]
    assert main([*asked, "--dry-run"]) == 0 and "hospitals: st-mary,city" in capsys.readouterr().out
    assert main(asked) == RunError.exit_code
    assert "`jointdiff-server start` first" in capsys.readouterr().err
    storage.create_run(deployment.home, "x")
    assert main(asked) == RunError.exit_code and "run --resume x" in capsys.readouterr().err


def test_runs_that_are_not_there(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("follow", "stop-run"):
        assert main([command, "nothing", "--home", str(deployment.home)]) == RunError.exit_code
        assert "No run 'nothing'" in capsys.readouterr().err


def test_a_superlink_that_is_away_is_waited_for(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens: said once; and given up only when nobody writes the run any more."""
    federation_folder.write_flower_home(deployment.folder, f"127.0.0.1:{free_port()}")
    folder = storage.create_run(deployment.home, "x")
    said: list[str] = []
    flower = deployed_run._DeployedFlower(deployment, folder, said.append)
    assert not flower.status("1").is_finished and not flower.trouble()
    monkeypatch.setattr(deployed_run, "PATIENCE_S", 0.0)
    with storage.run_locked(folder):
        assert not flower.trouble(), "its server lives"
    assert "has not answered" in flower.trouble()
    assert len(said) == 1 and "does not answer" in said[0]


def free_port() -> int:
    with contextlib.closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def two_sites(tmp_path: Path) -> Iterator[Deployment]:
    """Give a federation that runs, with two admitted sites whose SuperNodes connect."""
    folder = federation_folder.make(tmp_path / "home")
    certificates.create_authority(folder, "Test", now=certificate_checks.utc_now())
    certificates.issue_server(folder, ["localhost"], now=certificate_checks.utc_now())
    made = Deployment(tmp_path / "home")
    settings = Settings("127.0.0.1", free_port(), free_port(), front_door=False)
    sites = []
    try:
        superlink.start(made, settings, lambda _: None)
        for name in ("one", "two"):
            site = Service(name, tmp_path / name)
            site.folder.mkdir()
            key = ec.generate_private_key(ec.SECP384R1())
            private = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            )
            storage.write_atomic(site.folder / "site.key", private, private=True)
            public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
            (site.folder / "site.pub").write_bytes(public)
            admission.admit(made.home, name, site.folder / "site.pub")
            sites.append(site)
            site.start(
                [str(BIN / "flower-supernode"), "--superlink", f"127.0.0.1:{settings.superlink_port}",
                 "--root-certificates", str(folder.ca_crt), "--port", str(free_port()),
                 "--auth-supernode-private-key", str(site.folder / "site.key")],
                {**made.environment, "JOINTDIFF_HOME": str(site.folder), "FLWR_HOME": str(site.folder / "flwr"),
                 "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        yield made
    finally:
        for service in (*sites, made.superexec, made.superlink):
            service.stop(grace_s=3.0)


def wait_until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.2)


def wait_for(path: Path, event: str, number: int, seconds: float = 400.0) -> None:
    deadline = time.monotonic() + seconds
    while not (path.exists() and any(e["event"] == event and e.get("round") == number for e in read_events(path))):
        assert time.monotonic() < deadline, f"no {event} of round {number} in time"
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_run_survives_its_superlink_and_its_watcher_and_can_be_stopped_and_carried_on(
    two_sites: Deployment, tiny_run, capsys: pytest.CaptureFixture[str]
) -> None:
    here = ["--home", str(two_sites.home)]
    # Dealt-out data, as no site has any of its own here: `prepare` would refuse this, the sites' defaults do not.
    run = tiny_run(
        num_rounds=2, num_hospitals=2, num_labels=0, home=str(two_sites.home), run_name="real", round_timeout_s=300,
        round_retries=1,
    )  # fmt: skip
    submitted = deployed_run.submit(two_sites, run)
    events = two_sites.home / "runs" / "real" / "events.jsonl"
    wait_for(events, "round_started", 1)
    sites = [two_sites.home.parent / name / f"{name}.log" for name in ("one", "two")]
    # Both sites are at work: a SuperLink that dies while a question is on its way to it is another matter.
    wait_until(lambda: all("Receiving: train message" in site.read_text() for site in sites))
    command = [sys.executable, "-m", "server.cli", "follow", "real", *here]
    watcher = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )  # fmt: skip
    assert main(["stop", *here]) == RunError.exit_code and "A run is in progress" in capsys.readouterr().err

    os.kill(two_sites.superlink.running().pid, signal.SIGKILL)  # type: ignore[union-attr]
    time.sleep(3)
    assert superlink.servers(two_sites), "the run's server is a process of the SuperExec"
    assert main(["status", "--json", *here]) == 1 and json.loads(capsys.readouterr().out)["runs"] == ["real"]
    assert main(["start", "--no-front-door", *here]) == 0
    wait_for(events, "evaluated", 1)

    watcher.send_signal(signal.SIGINT)
    out, _ = watcher.communicate(timeout=60)
    assert watcher.returncode == 130 and "goes on" in out and "jointdiff-server stop-run real" in out
    assert superlink.servers(two_sites)

    assert main(["stop-run", "real", *here]) == 0
    assert deployed_run.follow(two_sites, submitted, lambda _: None, lambda _: None).cause.startswith(
        "the run's server"
    )
    assert not superlink.servers(two_sites)
    capsys.readouterr()
    code = main(["run", "--resume", "real", *here])
    out = capsys.readouterr().out
    assert code == 0 and "Resumed after round" in out, out
    assert str(two_sites.home / "runs" / "real" / "report.html") in out.strip().splitlines()[-1]
    aggregated = [e["round"] for e in read_events(events) if e["event"] == "round_aggregated"]
    assert sorted(set(aggregated)) == [1, 2]
    assert main(["stop", *here]) == 0
