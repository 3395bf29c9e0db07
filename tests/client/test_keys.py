"""A site's keys, judged by those who will use them: Flower's own loaders and, where it is there, ssh-keygen."""

from __future__ import annotations

import argparse
import base64
import hashlib
import shutil
import subprocess

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from flwr.cli.supernode.register import try_load_public_key
from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication

from client import keys
from jointdiff import site_keys
from jointdiff.errors import ConfigError


def test_flower_loads_both_files_and_they_are_one_pair(tmp_path):
    private, public = keys.generate(tmp_path / "Ein Ordner")
    options = argparse.Namespace(auth_supernode_private_key=str(private), auth_supernode_public_key=None)
    loaded = _try_setup_client_authentication(options)
    assert loaded is not None and isinstance(loaded[0].curve, ec.SECP384R1)
    assert try_load_public_key(public) == site_keys.pem(loaded[1]) == site_keys.pem(site_keys.read_public_key(public))


def test_the_private_key_is_its_owners_alone_and_says_nothing_of_the_machine(tmp_path):
    private, public = keys.generate(tmp_path)
    assert private.stat().st_mode & 0o777 == 0o600
    assert keys.warnings(private) == []
    assert public.read_text().split()[2] == "jointdiff-site"
    private.chmod(0o644)
    (line,) = keys.warnings(private)
    assert f"chmod 600 '{private}'" in line


@pytest.mark.parametrize("name", ["site.key", "site.pub"])
def test_keys_are_never_overwritten(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match="not overwritten"):
        keys.generate(tmp_path)
    assert (tmp_path / name).read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_the_fingerprint_is_the_same_at_both_ends_and_that_of_ssh(tmp_path):
    private, public = keys.generate(tmp_path)
    shown = keys.fingerprint_of(private)
    assert shown == site_keys.fingerprint(site_keys.read_public_key(public))
    digest = hashlib.sha256(base64.b64decode(public.read_text().split()[1])).digest()
    assert shown.replace(" ", "") == digest[:16].hex()
    if shutil.which("ssh-keygen"):
        line = subprocess.run(["ssh-keygen", "-lf", public], capture_output=True, text=True, check=True).stdout
        assert base64.b64encode(digest).decode().rstrip("=") in line


def test_two_sites_have_two_keys(tmp_path):
    assert keys.fingerprint_of(keys.generate(tmp_path / "a")[0]) != keys.fingerprint_of(
        keys.generate(tmp_path / "b")[0]
    )


def _openssh(key: object, password: bytes | None = None) -> bytes:
    sealed = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, sealed)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nothing",
        _openssh(ed25519.Ed25519PrivateKey.generate()),
        _openssh(ec.generate_private_key(ec.SECP256R1())),
    ],
    ids=["empty", "text", "ed25519", "P-256"],
)
def test_a_file_that_is_no_private_key_of_ours_is_refused(tmp_path, content):
    (tmp_path / "site.key").write_bytes(content)
    with pytest.raises(ConfigError, match="no private key of a site"):
        keys.load_private(tmp_path / "site.key")
    with pytest.raises(ConfigError, match="jointdiff-client keygen"):
        keys.load_private(tmp_path / "missing.key")


def _line(key: object) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)  # type: ignore[attr-defined]


P384 = ec.generate_private_key(ec.SECP384R1())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_openssh(P384), "PRIVATE key. It must never leave its site"),
        (b"", "not 0 lines"),
        (_line(P384) + b"\n" + _line(P384) + b"\n", "not 2 lines"),
        (b"ecdsa-sha2-nistp384 AAAA", "holds no public key"),
        (_line(ed25519.Ed25519PrivateKey.generate()), "another kind (Ed25519PublicKey)"),
        (_line(ec.generate_private_key(ec.SECP256R1())), "another kind (secp256r1)"),
        (b"\xff\xfe\x00", "holds no public key"),
    ],
    ids=["private", "empty", "two", "cut", "ed25519", "P-256", "bytes"],
)
def test_what_is_no_public_key_of_a_site_is_refused_by_name(tmp_path, content, words):
    path = tmp_path / "wrong.pub"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        site_keys.read_public_key(path)
    assert words in str(caught.value) and str(path) in str(caught.value)
    assert content.decode("latin-1")[60:120] not in str(caught.value) or len(content) < 61  # no key in an error


def test_a_comment_and_a_line_end_of_windows_do_no_harm(tmp_path):
    path = tmp_path / "site.pub"
    path.write_bytes(_line(P384) + b" somebody at the hospital\r\n\r\n")
    assert site_keys.read_public_key(path) == P384.public_key()
