"""The federation's own certificate authority, and the server certificate that front door and SuperLink show.

One authority per federation, of the coordinator's making: sites trust it for this federation alone. Its key signs and
does nothing else. Renewing the authority keeps the key, so that old and new ca.crt both fit the server's certificate:
sites can be given the new one at any time before the old one expires.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from jointdiff import certificate_checks as checks
from jointdiff import storage
from jointdiff.errors import ConfigError
from server.deployment import federation_folder
from server.deployment.federation_folder import FederationFolder

AUTHORITY_DAYS = 3650
SERVER_DAYS = 397  # what browsers and most security rules accept at most
ALWAYS = ("localhost", "127.0.0.1")  # by these the front door and the coordinator's commands call the SuperLink
_BACKDATED = timedelta(hours=1)  # a site's clock may be a little behind
_DNS_NAME = re.compile(r"(?=.{1,253}$)(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_NO_KEY_USE = dict.fromkeys(
    ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
     "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"), False,
)  # fmt: skip


@dataclass(frozen=True)
class Issued:
    """One certificate of the federation, as `certificates list` shows it."""

    what: str  # 'authority' | 'server'
    path: Path
    names: tuple[str, ...]  # the organisation, or the hosts
    valid_until: datetime
    days_left: int
    fingerprint: str


def create_authority(folder: FederationFolder, name: str, *, days: int = AUTHORITY_DAYS, now: datetime) -> None:
    """Make the federation's authority: ca.key (for its owner alone) and ca.crt.

    Args:
        name: The organisation that the certificate names, 1 to 64 characters.
        days: How long it is valid.

    Raises:
        ConfigError: There is one already, or the name cannot stand in a certificate.
    """
    if not 1 <= len(name) <= 64 or not name.isprintable() or not name.strip():
        raise ConfigError(f"--name must be 1 to 64 printable characters, not {name!r}.")
    with storage.locked(folder.lock):
        for path in (folder.ca_key, folder.ca_crt):
            if path.exists():
                raise ConfigError(
                    f"{path} is there already and is not overwritten: every site would have to be given a new ca.crt. "
                    "To lengthen its life: `jointdiff-server certificates renew --authority`."
                )
        key = ec.generate_private_key(ec.SECP384R1())
        storage.write_atomic(folder.ca_key, _key_pem(key), private=True)
        subject = x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name),
             x509.NameAttribute(NameOID.COMMON_NAME, "JointDiff federation")]
        )  # fmt: skip
        storage.write_atomic(folder.ca_crt, _pem(_authority(key, subject, days, now)))


def _authority(key: ec.EllipticCurvePrivateKey, subject: x509.Name, days: int, now: datetime) -> x509.Certificate:
    uses = x509.KeyUsage(**(_NO_KEY_USE | {"key_cert_sign": True, "crl_sign": True}))
    builder = _builder(subject, subject, key, now, now + timedelta(days=days))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return builder.add_extension(uses, critical=True).sign(key, hashes.SHA384())


def issue_server(folder: FederationFolder, hosts: Sequence[str], *, days: int = SERVER_DAYS, now: datetime) -> None:
    """Make server.key and server.crt for these hosts, and for this machine itself; an older pair is replaced.

    Args:
        hosts: DNS names and IP addresses by which sites call the front door.
        days: How long it is valid, at most as long as the authority is.

    Raises:
        ConfigError: A host is none, there is no authority, or it has expired.
    """
    names = list(dict.fromkeys([*map(_checked_host, hosts), *ALWAYS]))
    with storage.locked(folder.lock):
        authority, authority_key = _load_authority(folder, now)
        end = min(now + timedelta(days=days), authority.not_valid_after_utc)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
        uses = x509.KeyUsage(**(_NO_KEY_USE | {"digital_signature": True}))
        key_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
        builder = _builder(subject, authority.subject, key, now, end)
        for extension, critical in (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (uses, True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
            (x509.SubjectAlternativeName([_general_name(name) for name in names]), False),
            (key_id, False),
        ):
            builder = builder.add_extension(extension, critical=critical)
        certificate = builder.sign(authority_key, hashes.SHA384())
        storage.write_atomic(folder.server_key, _key_pem(key), private=True)
        storage.write_atomic(folder.server_crt, _pem(certificate) + _pem(authority))


def renew_server(folder: FederationFolder, *, days: int = SERVER_DAYS, now: datetime) -> list[str]:
    """Make a new server key and certificate for the hosts of the present one, and return these.

    Raises:
        ConfigError: There is no server certificate yet, no authority, or it has expired.
    """
    hosts = checks.hosts(_server(folder))
    issue_server(folder, hosts, days=days, now=now)
    return hosts


def renew_authority(folder: FederationFolder, *, days: int = AUTHORITY_DAYS, now: datetime) -> None:
    """Make a new ca.crt for the authority's same key, valid longer; the server's certificate stays good under it.

    Raises:
        ConfigError: There is no authority.
    """
    with storage.locked(folder.lock):
        old = _one(folder.ca_crt)
        key = checks.read_private_key(folder.ca_key)
        if key.public_key() != old.public_key():
            raise ConfigError(f"{folder.ca_key} does not belong to {folder.ca_crt}: restore the pair from a backup.")
        new = _authority(key, old.subject, days, now)
        storage.write_atomic(folder.ca_crt, _pem(new))
        if folder.server_crt.exists():
            storage.write_atomic(folder.server_crt, _pem(_server(folder)) + _pem(new))


def listing(folder: FederationFolder, *, now: datetime) -> list[Issued]:
    """Return what there is: the authority, then the server's certificate, if it was issued."""
    found = []
    for what, path in (("authority", folder.ca_crt), ("server", folder.server_crt)):
        if path.exists():
            certificate = checks.read(path)[0]
            names = checks.hosts(certificate) or [checks.organisation(certificate)]
            found.append(
                Issued(what, path, tuple(names), certificate.not_valid_after_utc,
                       checks.days_left(certificate, now), checks.fingerprint(certificate))
            )  # fmt: skip
    return found


def problems(folder: FederationFolder, *, host: str = "", now: datetime | None = None) -> list[str]:
    """Return what keeps TLS from working, one sentence each; none = it works.

    Args:
        host: By which sites call the front door; '' = any.
    """
    try:
        authority, certificate = _one(folder.ca_crt), _server(folder)
        key = checks.read_private_key(folder.server_key)
    except ConfigError as error:
        return [str(error)]
    return checks.problems(authority, certificate, now=now or checks.utc_now(), host=host, private_key=key)


def warnings(folder: FederationFolder, *, now: datetime | None = None) -> list[str]:
    """Return what should be mended soon: certificates that end within 30 days, files that others can read."""
    now = now or checks.utc_now()
    found = []
    for path, what, remedy in (
        (folder.ca_crt, "the authority's certificate", "renew --authority, and give every site the new ca.crt"),
        (folder.server_crt, "the server's certificate", "renew, and restart SuperLink and front door"),
    ):
        try:
            late = checks.warnings(checks.read(path)[0], what, now) if path.exists() else []
        except ConfigError as error:
            late = [str(error)]
        found += [f"{line}: `jointdiff-server certificates {remedy}`" for line in late]
    return found + federation_folder.wrong_modes(folder)


def _load_authority(folder: FederationFolder, now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    authority = _one(folder.ca_crt)
    key = checks.read_private_key(folder.ca_key)
    if key.public_key() != authority.public_key():
        raise ConfigError(f"{folder.ca_key} does not belong to {folder.ca_crt}: restore the pair from a backup.")
    if not authority.not_valid_before_utc <= now < authority.not_valid_after_utc:
        raise ConfigError(
            f"The authority's certificate is valid from {authority.not_valid_before_utc:%Y-%m-%d} to "
            f"{authority.not_valid_after_utc:%Y-%m-%d}, and this clock says {now:%Y-%m-%d}. If the clock is right: "
            "`jointdiff-server certificates renew --authority`."
        )
    return authority, key


def _server(folder: FederationFolder) -> x509.Certificate:
    if not folder.server_crt.exists():
        raise ConfigError(
            f"There is no server certificate yet ({folder.server_crt}): "
            "`jointdiff-server certificates issue-server HOST`."
        )
    return _one(folder.server_crt)


def _one(path: Path) -> x509.Certificate:
    if not path.exists():
        raise ConfigError(f"{path} is missing: begin with `jointdiff-server certificates init`.")
    return checks.read(path)[0]


def _checked_host(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        pass
    if not _DNS_NAME.fullmatch(text) or re.fullmatch(r"[0-9.]+", text):
        raise ConfigError(
            f"'{text}' is neither a DNS name nor an IP address: give it as sites will call it, without https:// and "
            "without a port, such as federation.example.org; letters beyond ASCII in their xn-- form."
        )
    return text.lower()


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())
