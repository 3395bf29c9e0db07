"""The front door as a real nginx: what passes, what does not, and what the SuperLink behind it gets to see.

Behind it stands a TLS server that writes down every path: only so can be seen that nothing else ever gets through.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from jointdiff import certificate_checks as checks
from jointdiff.errors import ConfigError, RunError
from server.deployment import certificates, federation_folder, front_door
from server.deployment.federation_folder import FederationFolder

pytestmark = pytest.mark.skipif(
    shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin") is None, reason="no nginx: make setup-system"
)
MIB = 2**20


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def federation(home: Path) -> FederationFolder:
    folder = federation_folder.make(home)
    certificates.create_authority(folder, "Klinikum Süd", now=checks.utc_now())
    certificates.issue_server(folder, ["federation.example.org"], now=checks.utc_now())
    return folder


class Behind(http.server.BaseHTTPRequestHandler):
    """Answers everything with 200, and remembers the path and the size of the body."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str, int]]

    def do_POST(self) -> None:
        size = int(self.headers.get("content-length", 0))
        self.rfile.read(size)
        self.seen.append((self.command, self.path, size))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    do_GET = do_PUT = do_DELETE = do_POST

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def tls_server(folder: FederationFolder, port: int) -> Iterator[list[tuple[str, str, int]]]:
    handler = type("Handler", (Behind,), {"seen": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder.server_crt, folder.server_key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield handler.seen  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def nginx(folder: FederationFolder, port: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(front_door.command(folder), stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=10)


@dataclass
class Door:
    folder: FederationFolder
    port: int
    superlink_port: int
    seen: list[tuple[str, str, int]] = field(default_factory=list)

    def call(self, path: str, *, method: str = "POST", body: bytes = b"", host: str = "localhost") -> tuple[int, str]:
        context = ssl.create_default_context(cafile=str(self.folder.ca_crt))
        connection = http.client.HTTPSConnection(host, self.port, context=context, timeout=10)
        connection.request(method, path, body)
        response = connection.getresponse()
        answer = response.status, response.read().decode("utf-8", errors="replace")
        assert "/" not in (response.getheader("server") or "")  # no version
        connection.close()
        return answer


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = federation(tmp_path_factory.mktemp("Ein Ordner; mit {Übung} #1"))
    port, superlink_port = free_port(), free_port()
    front_door.test(front_door.write(folder, host="127.0.0.1", port=port, superlink_port=superlink_port))
    with tls_server(folder, superlink_port) as seen, nginx(folder, port):
        yield Door(folder, port, superlink_port, seen)


@pytest.fixture(autouse=True)
def _forget(request: pytest.FixtureRequest) -> None:
    if "door" in request.fixturenames:
        request.getfixturevalue("door").seen.clear()


@pytest.mark.parametrize("path", ["/v1/fleet/activate-node", "/v1/fleet/push-object?x=1"])
def test_what_sites_need_passes(door, path):
    assert door.call(path, body=b"abc") == (200, "ok")
    assert door.seen == [("POST", path, 3)]


def test_health_passes(door):
    assert door.call("/health", method="GET") == (200, "ok")
    assert door.seen == [("GET", "/health", 0)]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/control/list-runs"),
        ("POST", "/v1/control/start-run"),
        ("POST", "/v1/control/register-node"),
        ("POST", "/v1/runtime/pull-app-inputs"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/"),
        ("POST", "/v1/fleet"),
        ("POST", "/v1/fleetx/y"),
        ("POST", "/V1/FLEET/pull-messages"),
        ("POST", "/health/../v1/control/list-runs"),
        ("POST", "/v1/fleet/../control/list-runs"),
        ("POST", "/v1/fleet/..%2fcontrol/list-runs"),
        ("POST", "/v1/fleet/%2e%2e/control/list-runs"),
        ("POST", "/v1/fleet/x/../../control/list-runs"),
        ("POST", "//v1//control/list-runs"),
        ("POST", "/v1/control/list-runs?/v1/fleet/"),
        ("POST", "/v1/control/list-runs#/../../fleet/"),
        ("GET", "/v1/fleet/pull-messages"),
        ("DELETE", "/v1/fleet/pull-messages"),
        ("POST", "/health"),
    ],
)
def test_all_else_is_refused_in_one_line_and_never_reaches_the_superlink(door, method, path):
    status, text = door.call(path, method=method)
    assert (status, text.count("\n")) == (403, 1) and "door" in text
    assert door.seen == []


@pytest.mark.parametrize(
    ("written", "passed"),
    [
        ("/v1/control/..%2ffleet/x", "/v1/fleet/x"),
        ("/v1/control/list-runs/../../fleet/x", "/v1/fleet/x"),
        ("/v1/control/list-runs/..%2f..%2ffleet/x", "/v1/fleet/x"),
        ("/v1//fleet///x", "/v1/fleet/x"),
        ("/v1/fleet/#/../../control/list-runs", "/v1/fleet/"),
    ],
)
def test_the_superlink_gets_the_path_that_was_checked_not_the_one_that_was_written(door, written, passed):
    assert door.call(written)[0] == 200
    assert door.seen == [("POST", passed, 0)]


def test_pieces_of_a_model_pass_and_larger_bodies_do_not(door):
    assert door.call("/v1/fleet/push-object", body=bytes(6 * MIB))[0] == 200
    assert door.seen == [("POST", "/v1/fleet/push-object", 6 * MIB)]
    assert not list((door.folder.front / "temp" / "body").iterdir())
    with contextlib.suppress(OSError):  # nginx may hang up while we still send
        assert door.call("/v1/fleet/push-object", body=bytes(13 * MIB))[0] == 413
    assert len(door.seen) == 1


def test_plain_http_and_another_authority_are_refused(door, tmp_path):
    connection = http.client.HTTPConnection("localhost", door.port, timeout=10)
    connection.request("GET", "/health")
    response = connection.getresponse()
    assert (response.status, response.read()) == (400, b"This port speaks TLS: use https.\n")
    other = Door(federation(tmp_path), door.port, 0)
    with pytest.raises(ssl.SSLCertVerificationError):
        other.call("/health", method="GET")
    assert door.seen == []


def test_the_log_has_no_query_and_no_line_for_a_question_that_went_well(door):
    log = door.folder.front / "access.log"
    door.call("/v1/fleet/pull-messages?secret=1")
    door.call("/v1/fleet/activate-node?secret=2")
    door.call("/v1/control/list-runs?secret=3")
    lines = log.read_text().splitlines()
    assert "POST /v1/control/list-runs 403" in lines[-1] and "POST /v1/fleet/activate-node 200" in lines[-2]
    assert "secret" not in log.read_text() and "pull-messages 200" not in log.read_text()


def test_a_server_that_our_authority_did_not_sign_gets_nothing(tmp_path):
    ours, other = federation(tmp_path / "ours"), federation(tmp_path / "other")
    port, superlink_port = free_port(), free_port()
    front_door.write(ours, host="127.0.0.1", port=port, superlink_port=superlink_port)
    with tls_server(other, superlink_port) as seen, nginx(ours, port):
        assert Door(ours, port, superlink_port).call("/v1/fleet/push-object", body=b"weights")[0] == 502
        assert seen == []


def test_a_new_certificate_is_shown_after_a_reload_without_a_restart(tmp_path):
    folder = federation(tmp_path)
    port = free_port()
    front_door.write(folder, host="127.0.0.1", port=port, superlink_port=free_port())
    assert front_door.running(folder) is None and front_door.reload(folder) is False
    with nginx(folder, port) as process:
        assert front_door.running(folder) == process.pid
        before = _shown(port)
        certificates.renew_server(folder, now=checks.utc_now())
        assert _shown(port) == before
        assert front_door.reload(folder)
        _until(lambda: _shown(port) != before)
        folder.server_key.write_bytes(folder.ca_key.read_bytes())
        with pytest.raises(ConfigError, match="goes on with its old certificate"):
            front_door.reload(folder)
        assert process.poll() is None and _shown(port)
    assert front_door.running(folder) is None


def _shown(port: int) -> str:
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=5)


def _until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_pid_file_of_another_process_is_not_believed(tmp_path):
    folder = federation(tmp_path)
    front_door.write(folder)
    (folder.front / "nginx.pid").write_text(f"{os.getpid()}\n")
    assert front_door.running(folder) is None and front_door.reload(folder) is False


def test_nginx_finds_what_is_wrong_and_the_error_says_it(tmp_path):
    folder = federation(tmp_path)
    config = front_door.write(folder)
    front_door.test(config)
    folder.server_crt.unlink()
    with pytest.raises(ConfigError, match=r"nginx refuses .*server\.crt"):
        front_door.test(config)


@pytest.mark.parametrize("port", [0, 65536])
def test_a_port_that_is_none_is_refused(tmp_path, port):
    with pytest.raises(ConfigError, match="is no port"):
        front_door.write(federation(tmp_path), port=port)


@pytest.mark.parametrize("host", ["1.2.3.4; }", "::", ""])
def test_a_host_that_is_none_is_refused(tmp_path, host):
    with pytest.raises(ConfigError, match="cannot listen"):
        front_door.write(federation(tmp_path), host=host)


@pytest.mark.parametrize("name", ["a$b", 'a"b', "a\\b", "a\nb"])
def test_a_home_that_nginx_cannot_name_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="choose another home"):
        front_door.write(federation_folder.of(tmp_path / name))


def test_without_nginx_the_error_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_args, **_more: None)
    with pytest.raises(RunError, match="make setup-system"):
        front_door.executable()
    assert len(front_door.problems()) == 1
