"""Admission with a real SuperLink over TLS, and (slow) real SuperNodes that come through a real front door."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from client import keys
from jointdiff import certificate_checks as checks
from jointdiff import site_keys
from jointdiff.errors import ConfigError, RunError
from server.cli import main
from server.deployment import admission, certificates, federation_folder, front_door, hospital_record, node_registry

BIN = Path(sys.executable).parent
NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def until(what: Callable[[], bool], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@contextlib.contextmanager
def running(command: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process, and end it by its id."""
    path = os.pathsep.join((str(BIN), os.environ["PATH"]))
    with open(log, "ab") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, stdin=subprocess.DEVNULL,
            env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"} | environment,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass
class Federation:
    home: Path
    port: int  # of the SuperLink

    @property
    def folder(self) -> federation_folder.FederationFolder:
        return federation_folder.of(self.home)

    @contextlib.contextmanager
    def superlink(self, database: str = "state.db") -> Iterator[subprocess.Popen[bytes]]:
        folder = self.folder
        folder.superlink.mkdir(exist_ok=True)
        command = [
            *(str(BIN / "flower-superlink"), "--host", "127.0.0.1", "--port", str(self.port)),
            *("--ssl-ca-certfile", str(folder.ca_crt), "--ssl-certfile", str(folder.server_crt)),
            *("--ssl-keyfile", str(folder.server_key), "--enable-supernode-auth", "--isolation", "process"),
            *("--database", str(folder.superlink / database), "--disable-runtime-dependency-installation"),
        ]
        with running(command, folder.superlink / "log", FLWR_HOME=str(folder.flower)) as process:
            until(lambda: self.get("/health") == 200 or process.poll() is not None)
            assert process.poll() is None, (folder.superlink / "log").read_text()
            yield process

    def get(self, path: str, *, port: int = 0) -> int:
        """Return the HTTP status, 0 = nobody answers."""
        context = ssl.create_default_context(cafile=str(self.folder.ca_crt))
        with contextlib.closing(
            http.client.HTTPSConnection("127.0.0.1", port or self.port, timeout=5, context=context)
        ) as connection:
            try:
                connection.request("GET", path)
                return connection.getresponse().status
            except OSError:
                return 0

    def status_of(self, name: str) -> str:
        node_id = next(h.node_id for h in reversed(hospital_record.read(self.home)) if h.name == name)
        return admission.connected(self.home)[node_id].status


def make(home: Path) -> Federation:
    folder = federation_folder.make(home)
    certificates.create_authority(folder, "Klinikum Süd", now=checks.utc_now())
    certificates.issue_server(folder, ["federation.example.org"], now=checks.utc_now())
    found = Federation(home, free_port())
    federation_folder.write_flower_home(folder, f"127.0.0.1:{found.port}")
    return found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """One SuperLink for all fast tests, each of which admits under names of its own."""
    found = make(tmp_path_factory.mktemp("home mit Übung"))
    with found.superlink():
        yield found


@pytest.fixture
def federation(shared: Federation) -> Federation:
    """The shared SuperLink with an empty record."""
    shared.folder.hospitals.unlink(missing_ok=True)
    return shared


@pytest.fixture
def site(tmp_path: Path) -> Callable[[str], Path]:
    """A function that makes a site's keys and returns its site.pub."""
    return lambda name: keys.generate(tmp_path / name)[1]


def test_those_admitted_are_known_in_order_with_the_superlinks_own_ids(federation, site):
    for name in ("gamma", "alpha", "beta-2"):
        public = site(name)
        done = admission.admit(federation.home, name, public)
        assert done.hospital.fingerprint == keys.fingerprint_of(public.with_name(keys.PRIVATE_NAME))
    found = admission.admitted(federation.home)
    assert list(found) == ["gamma", "alpha", "beta-2"] and len(set(found.values())) == 3
    with node_registry.connect(federation.folder, f"127.0.0.1:{federation.port}") as registry:
        by_id = {node.node_id: node for node in registry.nodes()}
    for hospital in hospital_record.read(federation.home):
        public = site_keys.parse_public_key(hospital.public_key.encode(), "x")
        assert by_id[int(hospital.node_id)].public_key == site_keys.pem(public)
        assert by_id[int(hospital.node_id)].status == "registered"
    assert federation.folder.hospitals.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["", "Alpha", "a b", "1st", "ä", "a" * 41, "../x", "a\n"])
def test_a_name_that_is_none_is_refused(federation, site, name):
    with pytest.raises(ConfigError, match="lower-case letters"):
        admission.admit(federation.home, name, site("x"))


def test_a_private_key_is_refused_and_not_sent(federation, site):
    with pytest.raises(ConfigError, match="must never leave its site"):
        admission.admit(federation.home, "alpha", site("x").with_name("site.key"))
    assert hospital_record.read(federation.home) == []


def test_nobody_is_admitted_twice_and_no_key_for_two(federation, site):
    first = site("first")
    admission.admit(federation.home, "alpha", first)
    before = federation.folder.hospitals.read_bytes()
    for name, key, words in (
        ("alpha", first, "admitted already"),
        ("alpha", None, "admitted already"),
        ("beta", first, "is that of 'alpha'"),
        ("alpha", site("second"), "admitted with another key"),
        ("beta", None, "needs the site's public key"),
    ):
        with pytest.raises(ConfigError, match=words):
            admission.admit(federation.home, name, key)
    assert federation.folder.hospitals.read_bytes() == before


def test_a_revoked_hospital_is_out_at_once_and_its_key_for_good(federation, site):
    old = site("old")
    admission.admit(federation.home, "alpha", old)
    hospital, now = admission.revoke(federation.home, "alpha")
    assert now and hospital.revoked and admission.admitted(federation.home) == {}
    assert federation.status_of("alpha") == "unregistered"
    again, now = admission.revoke(federation.home, "alpha")
    assert not now and again == hospital
    for name in ("alpha", "beta"):
        with pytest.raises(ConfigError, match=r"was revoked on .* as 'alpha' and cannot come back"):
            admission.admit(federation.home, name, old)
    admission.admit(federation.home, "alpha", site("new"))
    assert list(admission.admitted(federation.home)) == ["alpha"]
    assert [bool(h.revoked) for h in hospital_record.read(federation.home)] == [True, False]
    with pytest.raises(ConfigError, match=r"Nobody is admitted as 'gamma'\. Admitted are: alpha\."):
        admission.revoke(federation.home, "gamma")


def test_an_admission_that_was_cut_off_before_it_was_noted_is_found_again(federation, site):
    key = site("x")
    with node_registry.connect(federation.folder, f"127.0.0.1:{federation.port}") as registry:
        node_id = registry.register(site_keys.pem(site_keys.read_public_key(key)), "alpha")
    assert admission.admit(federation.home, "alpha", key).hospital.node_id == str(node_id)


def test_a_key_that_the_superlink_sent_away_without_our_record_is_refused(federation, site):
    key = site("x")
    admission.admit(federation.home, "alpha", key)
    admission.revoke(federation.home, "alpha")
    federation.folder.hospitals.unlink()
    with pytest.raises(ConfigError, match="never takes it again"):
        admission.admit(federation.home, "alpha", key)


def test_two_that_admit_at_once_do_not_lose_each_other(federation, site):
    names = [f"site-{number}" for number in range(6)]
    threads = [threading.Thread(target=admission.admit, args=(federation.home, name, site(name))) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(admission.admitted(federation.home)) == names


def test_what_differs_between_record_and_superlink_is_settled_or_named(federation, site):
    admission.admit(federation.home, "alpha", site("a"))
    admission.admit(federation.home, "beta", site("b"))
    address = f"127.0.0.1:{federation.port}"
    with pytest.raises(RunError, match=r"'alpha' is noted as revoked .* was not told"):
        admission.revoke(federation.home, "alpha", address=f"127.0.0.1:{free_port()}")
    assert list(admission.admitted(federation.home)) == ["beta"] and federation.status_of("alpha") == "registered"
    with node_registry.connect(federation.folder, address) as registry:
        stranger = registry.register(site_keys.pem(site_keys.read_public_key(site("s"))), "stranger")
    lines = "\n".join(admission.settle(federation.home))
    assert "'alpha' was revoked while the SuperLink did not run" in lines
    assert f"SuperNode {stranger} is registered, but nobody admitted it" in lines and "beta" not in lines
    assert federation.status_of("alpha") == "unregistered"
    record = json.loads(federation.folder.hospitals.read_text())
    record["hospitals"][1]["node_id"] = "17"
    federation.folder.hospitals.write_text(json.dumps(record))
    assert any("does not know 'beta'" in line for line in admission.settle(federation.home))
    assert admission.admit(federation.home, "beta", None, again=True).replaced_node_id == "17"
    assert federation.status_of("beta") == "registered"


def test_another_federations_superlink_is_not_spoken_to(federation, site, tmp_path):
    other = make(tmp_path / "other")
    with pytest.raises(RunError, match=r"does not vouch for"):
        admission.admit(other.home, "alpha", site("x"), address=f"127.0.0.1:{federation.port}")
    assert hospital_record.read(other.home) == []


def test_no_proxy_is_asked(federation, site, monkeypatch):
    for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    assert admission.admit(federation.home, "alpha", site("x")).hospital.name == "alpha"


@pytest.mark.parametrize(
    "text", ["", "{}", '{"schema_version": 2, "hospitals": []}', '{"schema_version": 1, "hospitals": [{}]}']
)
def test_a_damaged_record_is_never_written_over(federation, site, text):
    federation.folder.hospitals.write_text(text)
    with pytest.raises(ConfigError, match="Restore it from a backup"):
        admission.admit(federation.home, "alpha", site("x"))
    assert federation.folder.hospitals.read_text() == text


def test_the_commands_say_who_is_there(federation, site, capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([*map(str, arguments), "--home", str(federation.home)])
        return code, *capsys.readouterr()

    assert "Nobody is admitted yet" in run("hospitals")[1]
    key = site("x")
    code, shown, _ = run("admit", "alpha", key)
    assert (
        code == 0 and site_keys.fingerprint(site_keys.read_public_key(key)) in shown and "over the telephone" in shown
    )
    assert "Nothing was changed" in run("admit", "alpha", "--again")[1]
    assert "never came" in run("hospitals")[1]
    assert run("admit", "alpha", key)[0] == 2
    code, shown, _ = run("revoke", "alpha")
    assert code == 0 and "is revoked now" in shown and "is revoked since" in run("revoke", "alpha")[1]
    (row,) = json.loads(run("hospitals", "--json")[1])["hospitals"]
    assert row["name"] == "alpha" and row["state"] == "revoked" and "public_key" not in row
    code, shown, _ = run("hospitals", "--address", f"127.0.0.1:{free_port()}")
    assert code == 0 and "unknown" in shown and "does not answer" in shown


def test_without_a_federation_the_error_says_how_to_begin(tmp_path, site):
    with pytest.raises(ConfigError, match="certificates init"):
        admission.admit(tmp_path, "alpha", site("x"))
    assert admission.admitted(tmp_path) == {}


# ---- real SuperNodes through the front door


class Site:
    """A SuperNode of a site, which knows the front door's port, its ca.crt and its key."""

    def __init__(self, folder: Path, ca: Path, front_port: int) -> None:
        self.folder, self.ca, self.front_port = folder, ca, front_port
        self.private, self.public = keys.generate(folder)
        self.log = folder / "log"

    def run(self) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        command = [
            *(str(BIN / "flower-supernode"), "--superlink", f"localhost:{self.front_port}"),
            *("--root-certificates", str(self.ca), "--auth-supernode-private-key", str(self.private)),
            *("--port", str(free_port()), "--isolation", "process", "--max-retries", "3"),
        ]
        self.log.write_text("")
        return running(command, self.log, FLWR_HOME=str(self.folder / "flower"))


@pytest.mark.slow
@pytest.mark.skipif(NGINX is None, reason="no nginx: make setup-system")
def test_only_an_admitted_site_comes_online_through_the_front_door(tmp_path):
    federation, other = make(tmp_path / "home"), make(tmp_path / "other")
    folder, port = federation.folder, free_port()
    front_door.write(folder, host="127.0.0.1", port=port, superlink_port=federation.port)
    alpha, stranger = (Site(tmp_path / name, folder.ca_crt, port) for name in ("alpha", "stranger"))
    fooled = Site(tmp_path / "fooled", other.folder.ca_crt, port)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.ExitStack())
        first.enter_context(federation.superlink())
        stack.enter_context(running(front_door.command(folder), tmp_path / "nginx.log"))
        until(lambda: federation.get("/health", port=port) == 200)
        assert federation.get("/v1/control/list-runs", port=port) == 403

        admission.admit(federation.home, "alpha", alpha.public)
        ids = admission.admitted(federation.home)
        with alpha.run(), stranger.run() as refused, fooled.run() as wary:
            until(lambda: federation.status_of("alpha") == "online")
            assert f"SuperNode ID: {ids['alpha']}" in alpha.log.read_text()
            until(lambda: refused.poll() is not None and wary.poll() is not None)
            assert refused.returncode == 1 and "Failed to activate SuperNode" in stranger.log.read_text()
            assert wary.returncode == 1 and "certificate" in fooled.log.read_text().lower()
            assert len(admission.connected(federation.home)) == 1  # nobody registered himself
        until(lambda: federation.status_of("alpha") == "offline")

        with alpha.run() as node:  # the same id after the SuperNode's and the SuperLink's restart
            until(lambda: federation.status_of("alpha") == "online")
            first.close()
            first.enter_context(federation.superlink())
            until(lambda: federation.status_of("alpha") == "online")
            assert admission.admitted(federation.home) == ids and admission.settle(federation.home) == []
            admission.revoke(federation.home, "alpha")
            until(lambda: node.poll() is not None)
        with alpha.run() as node:
            until(lambda: node.poll() is not None)
            assert node.returncode == 1 and "Failed to activate SuperNode" in alpha.log.read_text()

        beta = Site(tmp_path / "beta", folder.ca_crt, port)  # admitted, then the database is lost
        admission.admit(federation.home, "beta", beta.public)
        first.close()
        first.enter_context(federation.superlink("new.db"))
        assert ["admit beta --again" in line for line in admission.settle(federation.home)] == [True]
        assert admission.admit(federation.home, "beta", None, again=True).replaced_node_id
        with beta.run():
            until(lambda: federation.status_of("beta") == "online")
