"""A real federation on loopback: started, asked, started again in part, stopped; and processes that are not ours."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from jointdiff import certificate_checks, processes
from jointdiff.errors import ConfigError, RunError
from server.cli import main
from server.deployment import certificates, federation_folder, superlink
from server.deployment.services import Service
from server.deployment.superlink import Deployment, Settings

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="no nginx: make setup-system")
SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"


def free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def certified(home: Path) -> Deployment:
    folder = federation_folder.make(home)
    certificates.create_authority(folder, "Test", now=certificate_checks.utc_now())
    certificates.issue_server(folder, ["federation.example.org"], now=certificate_checks.utc_now())
    return Deployment(home)


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    """Give a federation with certificates; whatever a test starts of it ends."""
    made = certified(tmp_path)
    yield made
    for service in (made.front_door, made.superexec, made.superlink):
        service.stop(grace_s=2.0)


@pytest.fixture
def settings() -> Settings:
    return Settings(host="127.0.0.1", port=free_port(), superlink_port=free_port(), front_door=NGINX is not None)


def status(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict]:
    capsys.readouterr()
    code = main(["status", "--json", "--home", str(deployment.home)])
    return code, json.loads(capsys.readouterr().out)


@needs_nginx
def test_a_federation_from_start_to_stop(
    deployment: Deployment, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    here = ["--home", str(deployment.home)]
    where = ["--host", "127.0.0.1", "--port", str(settings.port), "--superlink-port", str(settings.superlink_port)]
    assert main(["start", *here, *where]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert str(deployment.folder.ca_crt) in last and f"federation.example.org:{settings.port}" in last
    pids = {service.name: service.running().pid for service in deployment.services()}  # type: ignore[union-attr]
    assert _listening(settings.superlink_port) == {"127.0.0.1"}
    assert stat.S_IMODE(deployment.folder.superexec_secret.stat().st_mode) == 0o600
    assert stat.S_IMODE((deployment.folder.superlink / "state.db").stat().st_mode) == 0o600

    assert main(["start", *here]) == 5
    refused = capsys.readouterr().err
    assert all(f"{name} {pid}" in refused for name, pid in pids.items())

    code, found = status(deployment, capsys)
    assert code == 0 and found["ok"] and found["address"] == f"127.0.0.1:{settings.port}"
    assert [(p["name"], p["pid"], p["answers"]) for p in found["processes"]] == [(n, p, True) for n, p in pids.items()]
    assert all(p["memory_bytes"] > 10e6 for p in found["processes"])
    assert found["certificates"]["server"] > 300 and found["hospitals"] == {} and found["runs"] == []

    os.kill(pids["superlink"], signal.SIGKILL)
    wait_until(lambda: deployment.superlink.running() is None)
    code, found = status(deployment, capsys)
    assert code == 1 and [p["running"] for p in found["processes"]] == [False, True, True]
    assert not found["processes"][2]["answers"], "the front door has nothing behind it"
    assert main(["start", *here, "--port", str(free_port())]) == 5 and "other settings" in capsys.readouterr().err
    assert main(["start", *here]) == 0  # where it listened is remembered
    assert deployment.superlink.running().pid != pids["superlink"]  # type: ignore[union-attr]
    assert deployment.superexec.running().pid == pids["superexec"]  # type: ignore[union-attr]

    assert main(["stop", *here]) == 0
    code, found = status(deployment, capsys)
    assert code == 1 and not any(p["running"] for p in found["processes"])
    assert not _listening(settings.port) and not _listening(settings.superlink_port)
    assert main(["stop", *here]) == 0 and "Nothing ran" in capsys.readouterr().out


def _listening(port: int) -> set[str]:
    """Return the IPv4 addresses at which somebody listens on a port, and 'IPv6' for any there."""
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, state = line.split()[1], line.split()[3]
        address, _, number = local.partition(":")
        if state == "0A" and int(number, 16) == port:
            found.add(socket.inet_ntoa(bytes.fromhex(address)[::-1]))
    for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]:
        if line.split()[3] == "0A" and int(line.split()[1].partition(":")[2], 16) == port:
            found.add("IPv6")
    return found


@pytest.mark.parametrize(
    ("in_the_way", "says"),
    [
        ("state.db", r"(?s)superlink ended at its start.*unable to open database"),
        ("superexec.log", "flower-superexec cannot be started"),
    ],
)
def test_a_start_that_fails_says_why_and_leaves_nothing(
    deployment: Deployment, settings: Settings, in_the_way: str, says: str
) -> None:
    (deployment.folder.superlink / in_the_way).mkdir(parents=True)
    with pytest.raises(RunError, match=says):
        superlink.start(deployment, settings, lambda _: None)
    assert not any(service.members() for service in deployment.services(settings))
    assert not _listening(settings.superlink_port)


def test_everything_that_stands_in_the_way_is_named_at_once(deployment: Deployment, settings: Settings) -> None:
    deployment.folder.server_key.chmod(0o644)
    deployment.folder.server_crt.unlink()
    with socket.create_server(("127.0.0.1", settings.superlink_port)), pytest.raises(ConfigError) as error:
        superlink.start(deployment, settings, lambda _: None)
    said = str(error.value)
    assert "issue-server" in said and "chmod 600" in said and f"127.0.0.1:{settings.superlink_port}" in said


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"port": 0}, "between 1 and 65535"), ({"port": 9000, "superlink_port": 9000, "front_door": True}, "choose two")],
)
def test_ports_that_cannot_be(deployment: Deployment, changes: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        superlink.check(deployment, Settings(**changes))


def test_without_certificates_nothing_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["start", "--home", str(tmp_path)]) == ConfigError.exit_code
    assert "certificates init" in capsys.readouterr().err and not (tmp_path / "federation").exists()


def test_stop_refuses_while_a_runs_server_lives(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    deployment.superexec.folder.mkdir(parents=True)
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {DEAF!r}])"
    deployment.superexec.start([sys.executable, "-c", script], deployment.environment)
    wait_until(lambda: "deaf" in deployment.superexec.last_lines())
    assert len(superlink.servers(deployment)) == 1
    assert main(["stop", "--home", str(deployment.home)]) == RunError.exit_code
    assert "A run is in progress" in capsys.readouterr().err and deployment.superexec.running()
    running = deployment.superexec.running()
    assert running is not None
    os.kill(running.pid, signal.SIGKILL)  # what it left behind is still a run's server
    wait_until(lambda: deployment.superexec.running() is None)
    with pytest.raises(RunError, match="A run is in progress"):
        superlink.stop(deployment, lambda _: None)
    assert not deployment.superexec.stop(grace_s=0.3), "it is deaf, so it had to be killed"
    assert not superlink.servers(deployment)


def test_a_stale_pid_file_is_not_believed(tmp_path: Path) -> None:
    service = Service("superlink", tmp_path)
    process = service.start(SLEEPER, os.environ)
    running = service.running()
    assert running is not None and running.pid == process.pid and service.members() == {process.pid}
    time.sleep(0.05)  # births are told apart to the kernel's tick, 10 ms
    stranger = subprocess.Popen(SLEEPER, start_new_session=True)
    try:
        facts = json.loads(service.pid_file.read_text()) | {"pid": stranger.pid}
        service.pid_file.write_text(json.dumps(facts))
        assert service.running() is None and service.members() == set()
        service.stop(grace_s=0.5)
        assert stranger.poll() is None, "a process that only has the number is left alone"
    finally:
        for started in (stranger, process):
            started.kill()
            started.wait()


@pytest.mark.parametrize("content", ["", "4711", '{"pid": 1}', '{"pid": "1", "birth": "", "since": ""}', "\udcff"])
def test_a_damaged_pid_file_is_none(tmp_path: Path, content: str) -> None:
    service = Service("superlink", tmp_path)
    service.pid_file.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert service.running() is None and service.members() == set() and service.stop()


def test_a_program_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="/no/such/program cannot be started"):
        Service("front-door", tmp_path).start(["/no/such/program"], {})


def test_births_tell_processes_apart() -> None:
    assert processes.birth_of(os.getpid()) == processes.birth_of(os.getpid()) != processes.birth_of(1)
    gone = subprocess.Popen(["true"])
    wait_until(lambda: not processes.is_alive(gone.pid))
    assert processes.birth_of(gone.pid) == "", "a zombie does not run"
    gone.wait()
    assert processes.birth_of(gone.pid) == ""


def test_under_systemd_a_process_becomes_the_service(deployment: Deployment, settings: Settings) -> None:
    command = [sys.executable, "-m", "server.cli", "start", "--foreground", "superexec", "--home", str(deployment.home)]
    ports = ["--port", str(settings.port), "--superlink-port", str(settings.superlink_port), "--no-front-door"]
    process = subprocess.Popen(
        [*command, *ports], env={**os.environ, "INVOCATION_ID": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert "Starting Flower SuperExec" in process.stdout.readline(), "its log goes where ours goes"
        running = deployment.superexec.running()
        assert running is not None and running.pid == process.pid and running.supervised
        with pytest.raises(RunError, match=r"systemctl stop jointdiff-server\.target"):
            superlink.stop(deployment, lambda _: None)
        with pytest.raises(RunError, match=f"superexec runs already: process {process.pid}"):
            superlink.run_in_foreground(deployment, "superexec", settings)
    finally:
        process.kill()
        process.wait()


def test_the_servers_of_runs_know_their_home(deployment: Deployment) -> None:
    """A ServerApp inherits this from the SuperExec, whoever typed `start` and wherever."""
    environment = deployment.environment
    assert environment["JOINTDIFF_HOME"] == str(deployment.home)
    assert environment["FLWR_HOME"] == str(deployment.folder.flower)
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_the_superlink_waits_longer_for_its_database_than_flower_does() -> None:
    """Flower's own 5 s end a run on a machine whose disk is busy; its name for it may change with a version."""
    from flwr.supercore.constant import SQLITE_PRAGMAS

    from server.deployment.superlink_process import BUSY_TIMEOUT_MS, with_patience

    changed = dict(with_patience(SQLITE_PRAGMAS))
    assert int(changed["busy_timeout"]) == BUSY_TIMEOUT_MS > int(dict(SQLITE_PRAGMAS)["busy_timeout"])
    assert {**changed, "busy_timeout": ""} == {**dict(SQLITE_PRAGMAS), "busy_timeout": ""}
