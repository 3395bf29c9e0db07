"""What is wrong with a TLS certificate, in words: for the coordinator who issues it and the site that must trust it."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from jointdiff.errors import ConfigError
from jointdiff.site_keys import in_groups

WARN_DAYS = 30


def read(path: Path) -> list[x509.Certificate]:
    """Return the certificates of a PEM file, in its order.

    Raises:
        ConfigError: It cannot be read, or holds no certificate.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"The certificate {path} cannot be read: {error.strerror or error}.") from None
    if b"PRIVATE KEY" in content:
        raise ConfigError(f"{path} holds a private key where a certificate alone belongs: whoever gave it, tell him.")
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        raise ConfigError(f"{path} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----).") from None


def problems(
    authority: x509.Certificate,
    certificate: x509.Certificate,
    *,
    now: datetime,
    host: str = "",
    private_key: ec.EllipticCurvePrivateKey | None = None,
) -> list[str]:
    """Return one sentence for everything that keeps TLS from working; none = it works.

    Args:
        now: The clock of whoever asks, with its time zone.
        host: By which the server is called; '' = any.
        private_key: The server's, where it is at hand.
    """
    found = [*_out_of_time("the authority's certificate", authority, now)]
    found += _out_of_time("the server's certificate", certificate, now)
    if not issued_by(certificate, authority):
        found.append(
            f"the server's certificate was not issued by this authority ({fingerprint(authority)}): server and "
            "site hold files of different federations, or an old ca.crt"
        )
    names = hosts(certificate)
    if host and not _covers(names, host):
        found.append(f"the server's certificate is not for '{host}' but for {', '.join(names)}")
    if private_key is not None and private_key.public_key() != certificate.public_key():
        found.append("the server's private key does not belong to its certificate")
    return found


def _out_of_time(what: str, certificate: x509.Certificate, now: datetime) -> list[str]:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begin:
        return [f"{what} is not valid before {begin:%Y-%m-%d %H:%M} UTC, and this clock says {now:%Y-%m-%d %H:%M}: "
                "is the clock right?"]  # fmt: skip
    if now > end:
        return [f"{what} expired on {end:%Y-%m-%d %H:%M} UTC (this clock says {now:%Y-%m-%d %H:%M})"]
    return []


def issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Tell whether the authority's key signed this certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def hosts(certificate: x509.Certificate) -> list[str]:
    """Return the names and addresses by which a server may be called: subject alternative names, DNS first."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def _covers(names: list[str], host: str) -> bool:
    """No wildcards: we issue none."""
    try:
        return str(ipaddress.ip_address(host)) in names
    except ValueError:
        return host.lower().rstrip(".") in map(str.lower, names)


def organisation(certificate: x509.Certificate) -> str:
    """Return the organisation that a certificate names, or ''."""
    found = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(found[0].value) if found else ""


def days_left(certificate: x509.Certificate, now: datetime) -> int:
    """Return the whole days until a certificate expires; negative when it has."""
    return (certificate.not_valid_after_utc - now) // timedelta(days=1)


def fingerprint(certificate: x509.Certificate) -> str:
    """Return eight groups of four hexadecimal digits of the SHA-256, for comparing over the telephone."""
    return in_groups(certificate.fingerprint(hashes.SHA256()))


def warnings(certificate: x509.Certificate, what: str, now: datetime) -> list[str]:
    """Return a line if a certificate has expired, is not valid yet, or will expire within WARN_DAYS."""
    late = _out_of_time(what, certificate, now)
    left = days_left(certificate, now)
    if not late and left < WARN_DAYS:
        return [f"{what} expires in {left} days, on {certificate.not_valid_after_utc:%Y-%m-%d}"]
    return late


def utc_now() -> datetime:
    """Return this machine's time, with its zone."""
    return datetime.now(UTC)


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the private key of an authority or a server (PEM, PKCS 8).

    Raises:
        ConfigError: It cannot be read or is no such key.
    """
    try:
        key = serialization.load_pem_private_key(Path(path).read_bytes(), None)
    except OSError as error:
        raise ConfigError(f"The private key {path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, TypeError):
        raise ConfigError(f"{path} holds no private key in PEM form without a passphrase.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} holds a key of another kind ({type(key).__name__}); ours are elliptic curves.")
    return key
