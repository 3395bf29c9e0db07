"""A real SuperNode under its supervisor: against nobody, against wrong servers, and against a real SuperLink."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client import connection, diagnosis, key_admission, keys, site_process, supernode, supervisor
from client.cli import main
from client.connection import ConnectionProblem
from client.key_admission import Admission
from client.site_config import FederationAddress, read
from jointdiff import processes
from jointdiff.errors import ConfigError, RunError

_spec = importlib.util.spec_from_file_location("_site_tools", Path(__file__).with_name("site_tools.py"))
assert _spec is not None and _spec.loader is not None
tools = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tools)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory):
    return tools.Authority(tmp_path_factory.mktemp("ca"), "ours")


@pytest.fixture
def site(tmp_path: Path, authority) -> Path:
    keys.generate(tmp_path)
    (tmp_path / "ca.crt").write_bytes(authority.certificate.read_bytes())
    return tmp_path


def address(site: Path, port: int, host: str = "127.0.0.1") -> FederationAddress:
    return FederationAddress(f"{host}:{port}", site / "ca.crt", site / "site.key")


def cause(where: FederationAddress) -> ConnectionProblem:
    with pytest.raises(ConnectionProblem) as caught:
        connection.ask_health(where, timeout_s=5)
    return caught.value


# The way to the federation, stage by stage


def test_a_name_that_nobody_knows(site):
    problem = cause(address(site, 443, "nowhere.invalid"))
    assert problem.cause == "name" and "nowhere.invalid cannot be resolved" in str(problem) and "DNS" in problem.remedy


def test_a_port_where_nobody_listens(site):
    port = tools.free_port()
    problem = cause(address(site, port))
    assert problem.cause == "refused" and f"127.0.0.1:{port} refuses the connection" in str(problem)


@pytest.mark.parametrize(("kind", "days", "host", "words"), [
    ("expired", -1, "127.0.0.1", "has expired"),
    ("hostname", 50, "127.0.0.2", "made for another name"),
    ("wrong-ca", 50, "127.0.0.1", "not signed by the authority in ca.crt"),
])  # fmt: skip
def test_a_certificate_that_is_no_good(site, authority, tmp_path, kind, days, host, words):
    issuer = tools.Authority(tmp_path, "theirs") if kind == "wrong-ca" else authority
    with tools.serving(issuer.issue(kind, days=days, host=host)) as port:
        problem = cause(address(site, port))
    assert problem.cause == kind and words in problem.text and problem.remedy


def test_plain_http_is_seen_as_such(site):
    with tools.serving(None) as port:
        problem = cause(address(site, port))
    assert problem.cause == "plain-http" and "does not speak TLS" in problem.text


def test_a_good_server_tells_its_time(site, authority):
    with tools.serving(authority.issue("good")) as port:
        where = address(site, port)
        stream, secured = connection.secure(where)
        stream.close()
        assert 48 < secured.days_left < 50 and abs(connection.ask_health(where).ahead_s or 99) < 2
    with tools.serving(authority.issue("late"), off_s=3600) as port:
        ahead_s = connection.ask_health(address(site, port)).ahead_s
        problem = connection.clock_problem(where, ahead_s)
        assert problem is not None and "s behind the server's" in problem.text and "timedatectl" in problem.remedy
    assert connection.clock_problem(where, 4.0) is None and connection.clock_problem(where, -290.0) is None
    assert connection.clock_problem(where, 6.0) and connection.clock_problem(where, None) is None


def test_a_federation_that_is_down_behind_its_door(site, authority):
    with tools.serving(authority.issue("down"), status=502) as port:
        problem = cause(address(site, port))
    assert problem.cause == "health" and "HTTP 502: the front door is up" in problem.text


def test_a_certificate_file_that_is_none(site):
    (site / "ca.crt").unlink()
    assert "cannot be read" in cause(address(site, 1)).text
    (site / "ca.crt").write_bytes((site / "site.key").read_bytes())
    assert "private key" in cause(address(site, 1)).text


def test_a_proxy_of_the_environment_is_gone_through(site, authority, monkeypatch):
    port = tools.free_port()
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("no_proxy", "")
    problem = cause(address(site, 8443, "federation.invalid"))
    assert problem.cause == "refused" and f"127.0.0.1:{port}" in problem.text
    with tools.serving(None) as port:  # a server that is no proxy
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        problem = cause(address(site, 8443, "federation.invalid"))
    assert problem.cause == "proxy" and "does not lead to federation.invalid:8443 (HTTP 501)" in problem.text


@pytest.mark.parametrize(("line", "expected"), [
    ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local issuer certificate", "wrong-ca"),
    ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired (_ssl.c:1006)", "expired"),
    ("[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)", "plain-http"),
    ("[code: 2004] Failed to activate SuperNode.", "identity"),
    ("Client error '401 Unauthorized' for url 'https://x/v1/fleet/activate-node'", "clock"),
])  # fmt: skip
def test_what_flower_prints_is_the_second_witness(site, line, expected):
    problem = diagnosis.from_output(["Starting", line], address(site, 1))
    assert problem is not None and problem.cause == expected and "{" not in str(problem)
    assert diagnosis.from_output(["SuperNode ID: 7"], address(site, 1)) is None


# A real SuperNode


class Watched:
    """A supervisor in a thread, and what it says."""

    def __init__(self, site: Path, **options: object) -> None:
        self.lines: list[str] = []
        self.supervisor = supervisor.Supervisor(read(site), echo=self.lines.append, **options)  # type: ignore[arg-type]
        self.thread = threading.Thread(target=self.supervisor.run)

    def __enter__(self) -> Watched:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.supervisor.stopping.set()
        self.thread.join(60)
        assert not self.thread.is_alive()

    def wait(self, happened: Callable[[], object], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, self.lines
            time.sleep(0.1)

    def wait_for(self, text: str, seconds: float = 60) -> None:
        self.wait(lambda: any(text in line for line in self.lines), seconds)


def node_pids() -> list[int]:
    def is_node(pid: int) -> bool:
        try:
            return b"flower-supernode" in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    return [pid for pid in processes.descendants(os.getpid()) if is_node(pid)]


def test_a_supernode_that_finds_nobody_says_so_and_leaves_nothing(site):
    port = tools.free_port()
    tools.write_site(site, f"127.0.0.1:{port}")
    with Watched(site) as watched:
        watched.wait_for(f"127.0.0.1:{port} refuses the connection: nobody listens there.")
        found = supernode.status(site)
        assert found["running"] and found["pid"] == os.getpid() and not found["connected"]
        assert found["problem"]["cause"] == "refused" and node_pids()
        with pytest.raises(RunError, match="runs already"):
            supervisor.Supervisor(read(site)).run()
    assert not supernode.status(site)["running"] and node_pids() == []
    assert sum("refuses the connection" in line for line in watched.lines) == 1
    log = (site / site_process.LOG_FILE).read_text()
    assert "nobody listens there" in log and log.rstrip().endswith("Stopped.")
    assert (site / site_process.LOG_FILE).exists() and str(site) not in log


def test_a_supernode_that_ends_is_started_again_and_the_cause_is_named(site, tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "_FIRST_WAIT_S", 0.2)
    other = tools.Authority(tmp_path, "theirs")
    with tools.serving(other.issue("server")) as port:
        tools.write_site(site, f"127.0.0.1:{port}")
        with Watched(site) as watched:
            watched.wait(lambda: supernode.status(site)["restarts"] >= 1)
    told = [line for line in watched.lines if "not signed by the authority in ca.crt" in line]
    assert len(told) == 1 and "somebody stands between" in told[0]
    assert not any("Traceback" in line or "flower:" in line for line in watched.lines)


def test_a_pid_file_that_was_left_behind_is_not_believed(site):
    (site / site_process.PID_FILE).write_text(f"{os.getpid()}\n")
    (site / site_process.STATE_FILE).write_text('{"connected": true, "since": "2026-01-01T00:00:00+00:00"}')
    found = supernode.status(site)
    assert not found["running"] and not found["connected"] and supernode.stop(site) is False
    with site_process.held(site):
        assert site_process.running(site) == os.getpid()
        with pytest.raises(RunError, match="runs already"), site_process.held(site):
            pass
    assert site_process.running(site) is None


def test_a_sentence_is_written_once_a_minute(site, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(site_process.time, "monotonic", lambda: clock[0])
    journal = site_process.Journal(site)
    for moment in (0.0, 30.0, 59.0, 61.0):
        clock[0] = moment
        journal.say("the same\nsentence")
    lines = (site / site_process.LOG_FILE).read_text().splitlines()
    assert len(lines) == 2 and lines[0].endswith("the same\\nsentence")


def test_what_is_missing_is_said_before_anything_starts(site, capsys):
    assert main(["start", "--site", str(site / "empty")]) == ConfigError.exit_code
    assert "jointdiff-client init" in capsys.readouterr().err
    path = tools.write_site(site, "127.0.0.1:1")
    path.write_text(path.read_text().partition("data:")[0])
    assert main(["start", "--site", str(path)]) == ConfigError.exit_code
    assert "has no section `data`" in capsys.readouterr().err
    tools.write_site(site, "127.0.0.1:1")
    (site / "site.key").unlink()
    assert main(["start", "--site", str(site)]) == ConfigError.exit_code
    assert "jointdiff-client keygen" in capsys.readouterr().err


def test_the_environment_leads_the_apps_to_the_sites_folder(site):
    tools.write_site(site, "[::1]:8443")
    config = read(site)
    found = supervisor.environment(config)
    assert found["JOINTDIFF_HOME"] == str(site) and found["FLWR_HOME"].startswith(str(site))
    assert (found["FLWR_TELEMETRY_ENABLED"], found["FLWR_DISABLE_UPDATE_CHECK"]) == ("0", "1")
    assert config.federation is not None
    command = supervisor.command_line(config.federation, 1234)
    assert command[1:] == [
        "--superlink", "[::1]:8443", "--root-certificates", str(site / "ca.crt"), "--auth-supernode-private-key",
        str(site / "site.key"), "--host", "127.0.0.1", "--port", "1234",
    ]  # fmt: skip


def test_start_goes_on_in_the_background_until_stop(site, capsys):
    port = tools.free_port()
    tools.write_site(site, f"127.0.0.1:{port}")
    try:
        assert main(["start", "--site", str(site)]) == 0
        told = capsys.readouterr().out
        assert "not connected" in told and "nobody listens there" in told and "jointdiff-client stop" in told
        assert main(["start", "--site", str(site)]) == RunError.exit_code
        assert main(["status", "--json", "--site", str(site)]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["running"] and found["problem"]["cause"] == "refused"
    finally:
        assert main(["stop", "--site", str(site)]) == 0
    assert site_process.running(site) is None and main(["status", "--site", str(site)]) == 1
    assert not processes.group_members(found["pid"])


# A real SuperLink


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory, authority) -> Iterator[tuple[int, dict[str, str]]]:
    """A SuperLink with TLS and node authentication; gives its port and the environment of `flwr`."""
    folder, port = tmp_path_factory.mktemp("superlink"), tools.free_port()
    certificate, key = authority.issue("superlink")
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "FLWR_HOME": str(folder), "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    (folder / "config.toml").write_text(
        f'[superlink]\ndefault = "x"\n[superlink.x]\naddress = "127.0.0.1:{port}"\n'
        f'root-certificates = "{authority.certificate}"\n'
    )
    command = [
        str(bin_folder / "flower-superlink"), "--host", "127.0.0.1", "--port", str(port), "--ssl-ca-certfile",
        str(authority.certificate), "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key),
        "--enable-supernode-auth", "--disable-runtime-dependency-installation", "--isolation", "process",
    ]  # fmt: skip
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while "Uvicorn running" not in (folder / "log").read_text():
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield port, environment
    finally:
        processes.end_all(lambda: processes.group_members(process.pid), grace_s=10)
        process.wait()


def flwr(environment: dict[str, str], *words: str) -> dict:
    command = [str(Path(sys.executable).with_name("flwr")), "supernode", *words, "--format", "json"]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def test_an_unknown_key_is_named_and_one_that_is_admitted_joins(site, superlink, monkeypatch):
    monkeypatch.setattr(supervisor, "_FIRST_WAIT_S", 1.0)
    port, environment = superlink
    where = address(site, port)
    assert key_admission.ask(where) is Admission.UNKNOWN_KEY
    problem = diagnosis.diagnose(where)
    assert problem is not None and problem.cause == "key" and "jointdiff-server admit NAME site.pub" in problem.remedy
    tools.write_site(site, where.server)
    with Watched(site) as watched:
        watched.wait_for("The federation does not know this site's key")
        node = flwr(environment, "register", str(site / "site.pub"), "x", "--name", "st-mary")["node-id"]
        watched.wait_for("Connected to")
        assert key_admission.ask(where) is Admission.ADMITTED and diagnosis.diagnose(where) is None
        found = supernode.status(site)
        assert found["connected"] and found["node_id"] == str(node) and found["last_contact"]
    assert not supernode.status(site)["connected"]


@pytest.mark.slow
def test_a_killed_supernode_waits_out_flowers_minute(site, superlink):
    port, environment = superlink
    flwr(environment, "register", str(site / "site.pub"), "x", "--name", "killed")
    tools.write_site(site, f"127.0.0.1:{port}")
    with Watched(site) as watched:
        watched.wait_for("Connected to")
        (pid,) = node_pids()
        os.kill(pid, signal.SIGKILL)
        watched.wait_for("The federation still counts this site as online")
        watched.wait_for("The next attempt is in 75 s.")
        watched.wait(lambda: supernode.status(site)["connected"] and node_pids() not in ([], [pid]), 150)
    assert supernode.status(site)["restarts"] == 1


@pytest.mark.slow
def test_a_revoked_key_ends_the_connection_and_is_named(site, superlink):
    port, environment = superlink
    node = flwr(environment, "register", str(site / "site.pub"), "x", "--name", "revoked")["node-id"]
    tools.write_site(site, f"127.0.0.1:{port}")
    with Watched(site) as watched:
        watched.wait_for("Connected to")
        command = [str(Path(sys.executable).with_name("flwr")), "supernode", "unregister", str(node), "x"]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        watched.wait_for("not admitted yet, or was revoked", 120)
