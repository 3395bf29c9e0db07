"""A site's key pair: by it the federation's server knows the site. The private key is made here and never leaves.

The form is the one that Flower's SuperNode wants: OpenSSH, ECDSA on P-384, without a passphrase (the SuperNode starts
without a person), so the file's mode is what protects it.
"""

from __future__ import annotations

import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from jointdiff import storage
from jointdiff.errors import ConfigError, RunError
from jointdiff.site_keys import CURVE, fingerprint, openssh_line

PRIVATE_NAME = "site.key"
PUBLIC_NAME = "site.pub"
_COMMENT = "jointdiff-site"  # no user and no machine: ssh-keygen's own comment would tell both


def generate(folder: Path) -> tuple[Path, Path]:
    """Make a site's key pair, site.key (readable by its owner alone) and site.pub, and return both paths.

    Raises:
        ConfigError: There is a key already: it is never overwritten.
        RunError: The folder cannot be written.
    """
    private, public = Path(folder).absolute() / PRIVATE_NAME, Path(folder).absolute() / PUBLIC_NAME
    for path in (private, public):
        if path.exists() or path.is_symlink():
            raise ConfigError(
                f"{path} is there already and is not overwritten: the federation knows this site by that key. To "
                f"change it, move {PRIVATE_NAME} and {PUBLIC_NAME} away, make new ones, and have the coordinator "
                "`revoke` the old and `admit` the new."
            )
    key = ec.generate_private_key(CURVE())
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    try:
        storage.write_atomic(private, secret, private=True)
        storage.write_atomic(public, f"{openssh_line(key.public_key())} {_COMMENT}\n")
    except OSError as error:
        raise RunError(f"The key pair cannot be written to {folder}: {error.strerror or error}.") from None
    return private, public


def load_private(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a site's private key as Flower's SuperNode will.

    Raises:
        ConfigError: It is missing, cannot be read, or is no key of the wanted kind.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"The site's private key {path} cannot be read: {error.strerror or error}. "
            "`jointdiff-client keygen` makes it."
        ) from None
    try:
        key = serialization.load_ssh_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it has a passphrase
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, CURVE):
        raise ConfigError(
            f"{path} is no private key of a site (OpenSSH form, ECDSA on P-384, no passphrase). "
            "Give the file that `jointdiff-client keygen` made."
        )
    return key


def fingerprint_of(path: Path) -> str:
    """Return the fingerprint of a site's private key file, the same as that of its site.pub; raises as above."""
    return fingerprint(load_private(path).public_key())


def warnings(path: Path) -> list[str]:
    """Return what is wrong with the private key's file, each with the command that mends it."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return []  # that it is missing, whoever loads it says
    if mode & 0o077:
        return [f"{path} can be read by others (mode {mode:04o}): chmod 600 '{path}'"]
    return []
