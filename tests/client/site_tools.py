"""What the tests of a site's commands share: certificates, keys, TLS servers, scans in folders, a site.yaml."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from PIL import Image


class Authority:
    """A certificate authority of the test's own."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP384R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        certificate = (
            self._builder(self.name, self.key, days=100)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .add_extension(usage, critical=True)
            .sign(self.key, hashes.SHA384())
        )
        self.certificate = folder / f"{name}.crt"
        self.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, days: float) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=50))
            .not_valid_after(now + datetime.timedelta(days=days))
        )

    def issue(self, name: str, *, days: float = 50, host: str = "127.0.0.1") -> tuple[Path, Path]:
        """Write certificate and key of a server."""
        key = ec.generate_private_key(ec.SECP384R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = (
            self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key, days)
            .add_extension(names, critical=False)
            .add_extension(issuer, critical=False)
            .sign(self.key, hashes.SHA384())
        )
        paths = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        paths[1].write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
        return paths


class Health(http.server.BaseHTTPRequestHandler):
    """Answers /health, as many seconds off as the server says."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        late = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=self.server.off_s)  # type: ignore[attr-defined]
        return super().date_time_string(late.timestamp())

    def do_GET(self) -> None:
        self.send_response(self.server.status if self.path == "/health" else 404)  # type: ignore[attr-defined]
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(paths: tuple[Path, Path] | None, *, status: int = 200, off_s: float = 0.0) -> Iterator[int]:
    """Serve /health over TLS, or over plain HTTP without `paths`; gives the port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health)
    server.status, server.off_s = status, off_s  # type: ignore[attr-defined]
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if paths is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*paths)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def write_scans(folder: Path, *, per_class: int = 24, size: int = 16) -> Path:
    """Write class folders of PNGs: brighter ones are nodules, and some have no label."""
    rng = np.random.default_rng(0)
    for name, brightness in (("normal", 0), ("nodule", 60), ("unlabelled", 30)):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = (rng.integers(0, 120, (size, size)) + brightness).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"patient-{number}.png")
    return folder


def write_site(folder: Path, server: str, data: str = "  kind: phantom\n  num-images: 40\n", more: str = "") -> Path:
    """Write a site.yaml."""
    path = folder / "site.yaml"
    path.write_text(f'federation:\n  server: "{server}"\ndata:\n{data}device: cpu\n{more}')
    return path
