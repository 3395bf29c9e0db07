"""Certificates as TLS itself judges them: every verdict of ours is held against a handshake of Python's ssl."""

from __future__ import annotations

import json
import ssl
from datetime import timedelta
from pathlib import Path

import pytest

from jointdiff import certificate_checks as checks
from jointdiff.errors import ConfigError
from server.cli import main
from server.deployment import certificates, federation_folder
from server.deployment.federation_folder import FederationFolder

NOW = checks.utc_now()


def make(home: Path, *, hosts: tuple[str, ...] = ("federation.example.org", "10.0.0.5"), **server: object):
    folder = federation_folder.make(home)
    certificates.create_authority(folder, "Klinikum Süd", now=NOW)
    certificates.issue_server(folder, hosts, **({"now": NOW} | server))  # type: ignore[arg-type]
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> FederationFolder:
    return make(tmp_path / "Ein Ordner")


def handshake(server: FederationFolder, ca_crt: Path, host: str) -> str:
    """Let a client that trusts `ca_crt` call the server as `host`; return why it refuses, or ''."""
    inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    inside.load_cert_chain(server.server_crt, server.server_key)
    outside = ssl.create_default_context(cafile=str(ca_crt))
    outside.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        outside.wrap_bio(to_client, to_server, server_hostname=host),
        inside.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(5):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as error:
                return error.verify_message
    assert ends[0].version() == "TLSv1.3"
    return ""


@pytest.mark.parametrize("host", ["federation.example.org", "10.0.0.5", "localhost", "127.0.0.1"])
def test_a_site_with_our_ca_reaches_the_server_by_every_name(folder, host):
    assert handshake(folder, folder.ca_crt, host) == ""
    assert certificates.problems(folder, host=host) == []


def test_any_other_name_is_refused_and_told(folder):
    assert "mismatch" in handshake(folder, folder.ca_crt, "other.example.org").lower()
    (line,) = certificates.problems(folder, host="other.example.org")
    assert "not for 'other.example.org' but for federation.example.org, localhost, 10.0.0.5, 127.0.0.1" in line
    assert "mismatch" in handshake(folder, folder.ca_crt, "10.0.0.6").lower()
    assert certificates.problems(folder, host="10.0.0.6")


@pytest.mark.parametrize(
    ("issued_days_ago", "verdict", "words"),
    [(31, "expired", "server's certificate expired on"), (-2, "not yet valid", "not valid before")],
)
def test_a_certificate_out_of_its_time_is_refused_and_told(tmp_path, issued_days_ago, verdict, words):
    folder = federation_folder.make(tmp_path)
    certificates.create_authority(folder, "x", now=NOW - timedelta(days=400))
    then = NOW - timedelta(days=issued_days_ago)
    certificates.issue_server(folder, ["a.example"], days=30, now=then)
    assert verdict in handshake(folder, folder.ca_crt, "a.example")
    (line,) = certificates.problems(folder)
    assert words in line
    assert any(words in line for line in certificates.warnings(folder))


def test_an_hour_of_clock_error_at_the_site_does_no_harm(folder):
    authority, server = checks.read(folder.ca_crt)[0], checks.read(folder.server_crt)[0]
    assert checks.problems(authority, server, now=NOW - timedelta(minutes=59)) == []
    lines = checks.problems(authority, server, now=NOW - timedelta(days=1))
    assert len(lines) == 2 and all("is the clock right?" in line for line in lines)


def test_another_federations_authority_is_refused_and_told(folder, tmp_path):
    other = make(tmp_path / "other")
    assert handshake(folder, other.ca_crt, "localhost")
    authority, server = checks.read(other.ca_crt)[0], checks.read(folder.server_crt)[0]
    (line,) = checks.problems(authority, server, now=NOW)
    assert "not issued by this authority" in line and checks.fingerprint(authority) in line


def test_a_key_that_does_not_belong_to_its_certificate_is_told(folder):
    certificate = folder.server_crt.read_bytes()
    certificates.renew_server(folder, now=NOW)
    folder.server_crt.write_bytes(certificate)  # as after a crash between the two files
    assert certificates.problems(folder) == ["the server's private key does not belong to its certificate"]
    assert certificates.renew_server(folder, now=NOW)
    assert certificates.problems(folder) == []


def test_renewing_keeps_the_names_and_changes_key_and_end(folder):
    before = checks.read(folder.server_crt)[0]
    certificates.renew_server(folder, days=50, now=NOW)
    after = checks.read(folder.server_crt)[0]
    assert checks.hosts(after) == checks.hosts(before) and after.public_key() != before.public_key()
    assert checks.days_left(after, NOW) in (49, 50) and handshake(folder, folder.ca_crt, "10.0.0.5") == ""


def test_old_and_new_authority_certificates_both_fit_the_server(folder, tmp_path):
    old = tmp_path / "old-ca.crt"
    old.write_bytes(folder.ca_crt.read_bytes())
    certificates.renew_authority(folder, days=5000, now=NOW)
    assert checks.days_left(checks.read(folder.ca_crt)[0], NOW) in (4999, 5000)
    for ca in (old, folder.ca_crt):  # the certificate of before
        assert handshake(folder, ca, "localhost") == ""
    certificates.renew_server(folder, now=NOW)
    for ca in (old, folder.ca_crt):
        assert handshake(folder, ca, "localhost") == ""


def test_no_certificate_outlives_its_authority(tmp_path):
    folder = federation_folder.make(tmp_path)
    certificates.create_authority(folder, "x", days=10, now=NOW)
    certificates.issue_server(folder, ["a.example"], days=500, now=NOW)
    authority, server = checks.read(folder.ca_crt)[0], checks.read(folder.server_crt)[0]
    assert server.not_valid_after_utc == authority.not_valid_after_utc
    assert "expires in 9 days" in " ".join(certificates.warnings(folder))
    with pytest.raises(ConfigError, match="renew --authority"):
        certificates.issue_server(folder, ["a.example"], now=NOW + timedelta(days=11))


def test_secrets_are_their_owners_alone_and_wrong_modes_are_named(folder):
    assert [path.stat().st_mode & 0o777 for path in (folder.path, folder.ca_key, folder.server_key)] == [
        0o700, 0o600, 0o600,
    ]  # fmt: skip
    assert certificates.warnings(folder) == []
    folder.ca_key.chmod(0o640)
    (line,) = certificates.warnings(folder)
    assert "(mode 0640)" in line and f"chmod 600 '{folder.ca_key}'" in line
    folder.ca_key.chmod(0o600)
    folder.path.chmod(0o755)
    assert "chmod 700" in certificates.warnings(folder)[0]


def test_an_authority_is_never_overwritten(folder):
    before = folder.ca_key.read_bytes(), folder.ca_crt.read_bytes()
    with pytest.raises(ConfigError, match="not overwritten"):
        certificates.create_authority(folder, "x", now=NOW)
    folder.ca_crt.unlink()  # half of it is enough to refuse
    with pytest.raises(ConfigError, match="not overwritten"):
        certificates.create_authority(folder, "x", now=NOW)
    assert folder.ca_key.read_bytes() == before[0]


@pytest.mark.parametrize(
    "host", ["https://a.example", "a.example:8443", "*.a.example", "a b", "", "köln.example", "300.1.1.1", "-a"]
)
def test_what_is_no_host_is_refused(folder, host):
    with pytest.raises(ConfigError, match="neither a DNS name nor an IP address"):
        certificates.issue_server(folder, [host], now=NOW)


def test_damaged_files_are_named(folder):
    folder.server_crt.write_text("nothing")
    assert "holds no certificate" in certificates.problems(folder)[0]
    folder.server_crt.write_bytes(folder.server_key.read_bytes())
    assert "holds a private key" in certificates.problems(folder)[0]
    folder.server_crt.unlink()
    assert "issue-server HOST" in certificates.problems(folder)[0]


def test_the_commands_from_nothing_to_a_renewal(tmp_path, capsys):
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["certificates", *arguments, "--home", str(tmp_path)])
        return code, *capsys.readouterr()

    code, _, error = run("issue-server", "a.example")
    assert code == 2 and "certificates init" in error
    code, shown, _ = run("init", "--name", "Klinikum", "--days", "100")
    folder = federation_folder.of(tmp_path)
    assert code == 0 and checks.fingerprint(checks.read(folder.ca_crt)[0]) in shown and "give it to every site" in shown
    assert run("list")[0] == 5  # there is no server certificate yet
    assert run("issue-server", "a.example", "--days", "20")[0] == 0
    code, shown, _ = run("list")
    assert code == 0 and "Klinikum" in shown and "a.example, localhost, 127.0.0.1" in shown
    assert "warning: the server's certificate expires in 19 days" in shown
    code, shown, _ = run("list", "--json")
    rows = json.loads(shown)["certificates"]
    assert [row["days_left"] for row in rows] == [99, 19] and rows[1]["names"][0] == "a.example"
    code, shown, _ = run("renew")
    assert code == 0 and "stop` and `start" in shown
    code, shown, _ = run("renew", "--authority", "--days", "900")
    assert code == 0 and "Every site must have this ca.crt before the old one ends" in shown
    assert json.loads(run("list", "--json")[1])["certificates"][0]["days_left"] == 899
    assert run("init")[0] == 2
