"""A site's public key, as file and as fingerprint: written at the site, read and compared at the coordinator.

The form is the one that Flower's SuperNode and SuperLink take: OpenSSH, ECDSA on the curve P-384.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from jointdiff.errors import ConfigError

CURVE = ec.SECP384R1
_NUM_GROUPS = 8  # of four hexadecimal digits: 128 bits, more than anybody can search for a second key
_MAX_BYTES = 16_384
_MAKE = "`jointdiff-client keygen` at the site makes the pair; what comes to the coordinator is site.pub"


def openssh_line(key: ec.EllipticCurvePublicKey) -> str:
    """Return a public key as one line without a comment: 'ecdsa-sha2-nistp384 AAAA...'."""
    encoding, form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return key.public_bytes(encoding, form).decode("ascii")


def pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return a public key in the form in which Flower stores and compares it."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Return what two people read to each other over the telephone: eight groups of four hexadecimal digits.

    The first 128 bits of the SHA-256 over the key's OpenSSH form, the one that `ssh-keygen -l` shows in base64.

    >>> key = ec.derive_private_key(1, CURVE()).public_key()
    >>> len(fingerprint(key).split()), len(fingerprint(key))
    (8, 39)
    """
    return in_groups(hashlib.sha256(base64.b64decode(openssh_line(key).split()[1])).digest())


def in_groups(digest: bytes) -> str:
    """Return the first 128 bits of a hash in groups that can be read aloud.

    >>> in_groups(bytes(range(32)))
    '0001 0203 0405 0607 0809 0a0b 0c0d 0e0f'
    """
    digits = digest[: 2 * _NUM_GROUPS].hex()
    return " ".join(digits[i : i + 4] for i in range(0, len(digits), 4))


def read_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read a site's public key from a file; raises as `parse_public_key`."""
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"The public key {path} cannot be read: {error.strerror or error}.") from None
    return parse_public_key(content, str(path))


def parse_public_key(content: bytes, name: str) -> ec.EllipticCurvePublicKey:
    """Return the public key that a text holds, which may end with a comment.

    Args:
        name: What the text is, for the error.

    Raises:
        ConfigError: It is a private key, no key at all, more than one, or a key of another kind or curve.
    """
    if b"PRIVATE KEY" in content:
        raise ConfigError(
            f"{name} is a PRIVATE key. It must never leave its site: whoever has it can take part in that hospital's "
            "name. Delete this copy, tell the site to make a new pair (`jointdiff-client keygen` in an empty place) "
            "and ask for the file that ends in .pub."
        )
    lines = [line for line in content.splitlines() if line.strip()]
    if len(lines) != 1:
        raise ConfigError(f"{name} must hold one public key in one line, not {len(lines)} lines; {_MAKE}.")
    try:
        key = serialization.load_ssh_public_key(lines[0].strip())
    except (ValueError, UnsupportedAlgorithm):
        form = "OpenSSH's form (ecdsa-sha2-nistp384 AAAA...)"
        raise ConfigError(f"{name} holds no public key in {form}; {_MAKE}.") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, CURVE):
        kind = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__.strip("_")
        raise ConfigError(f"{name} is a key of another kind ({kind}); wanted is ECDSA on the curve P-384: {_MAKE}.")
    return key
