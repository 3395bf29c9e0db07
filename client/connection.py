"""Why does a site not reach its federation? One look at each stage, in order: name, port, TLS, health, key.

Flower's SuperNode says "Connection attempt failed" for half of these causes and one and the same code for two more, so
the cause is found here, from outside, with the site's own address, authority and key. Nothing is changed at the server.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from client.site_config import FederationAddress
from jointdiff import certificate_checks
from jointdiff.errors import JointDiffError, RunError

TIMEOUT_S = 10.0
# Flower's bounds on a signed timestamp (TIMESTAMP_TOLERANCE, SYSTEM_TIME_TOLERANCE): late is forgiven, early is not.
MAX_BEHIND_S, MAX_AHEAD_S = 300.0, 5.0
_VERIFY_CODES = {9: "not-yet-valid", 10: "expired", 62: "hostname", 64: "hostname"}  # of OpenSSL
_GATEWAY = (502, 503, 504)
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")


_ASK = "Ask the coordinator for `jointdiff-server certificates list`."
_CLOCK = "Set the clock, for instance with `timedatectl set-ntp true`."
# cause -> what is wrong, and what to do. {hop} is the proxy where there is one, {detail} what the system says.
PROBLEMS = {
    "name": (
        "The name {hop} cannot be resolved ({detail}).",
        "Check `server` in site.yaml for a typo, and this machine's DNS.",
    ),
    "refused": (
        "{hop} refuses the connection: nobody listens there.",
        "Ask the coordinator whether the federation is started, and check the port in site.yaml.",
    ),
    "timeout": (
        "{hop} does not answer.",
        "A firewall on the way drops the connection: let this machine open TCP connections to that port.",
    ),
    "unreachable": ("{hop} cannot be reached ({detail}).", "Check the network and the routes of this machine."),
    "proxy": (
        "The proxy {hop} of this machine's environment does not lead to {server} ({detail}).",
        "Let it through there, or name the server in NO_PROXY.",
    ),
    "ca-file": (
        "The federation's certificate cannot be used: {detail}",
        "Copy the coordinator's ca.crt there, and compare its fingerprint by telephone.",
    ),
    "wrong-ca": (
        "The certificate of {server} is not signed by the authority in {ca}.",
        f"Either {{ca}} is of another federation, or somebody stands between. {_ASK}",
    ),
    "expired": (
        "The certificate of {server} has expired.",
        "The coordinator renews it with `jointdiff-server certificates renew`; check this machine's clock too.",
    ),
    "not-yet-valid": ("The certificate of {server} is not valid yet: a clock is wrong, here or there.", _CLOCK),
    "hostname": (
        "The certificate of {server} is made for another name.",
        "Write the name that it is made for as `server` in site.yaml, or have one issued for this name.",
    ),
    "plain-http": (
        "{server} does not speak TLS: it is a plain HTTP port, or a proxy that opens connections.",
        "Take the port of the federation's front door.",
    ),
    "tls": ("{server} breaks off the TLS handshake ({detail}).", _ASK),
    "health": ("{server} answers /health with {detail}.", "Ask the coordinator to look at `jointdiff-server status`."),
    "clock": ("This machine's clock is {detail} the server's, and Flower refuses what it signs.", _CLOCK),
    "key": (
        "The federation does not know this site's key: it is not admitted yet, or was revoked.",
        "Send site.pub to the coordinator, who runs `jointdiff-server admit NAME site.pub`. Never send site.key.",
    ),
    "identity": (
        "The federation still counts this site as online: its SuperNode was killed within the last minute, or another "
        "one runs with the same key.",
        "Wait about a minute; see that this key is used on one machine alone.",
    ),
}  # fmt: skip


class ConnectionProblem(RunError):
    """A stage of the connection fails; the text names the cause and what to do."""

    def __init__(self, cause: str, address: FederationAddress, detail: str = "") -> None:
        """Say it in words.

        Args:
            cause: A key of PROBLEMS, for programs too.
            detail: What the system says.
        """
        hop = _next_hop(address)
        facts = {"server": address.server, "hop": hop[0] if cause == "name" else f"{hop[0]}:{hop[1]}",
                 "ca": address.ca.name, "detail": detail}  # fmt: skip
        self.cause = cause
        self.text, self.remedy = (part.format(**facts) for part in PROBLEMS[cause])
        super().__init__(f"{self.text} {self.remedy}")


@dataclass(frozen=True)
class Secured:
    """What a good TLS handshake told."""

    days_left: float  # until the server's certificate expires
    version: str  # of TLS


@dataclass(frozen=True)
class Health:
    """What the front door's /health told."""

    ahead_s: float | None  # this machine's clock minus the server's; None where the answer has no date


def resolve(address: FederationAddress) -> list[str]:
    """Return the IP addresses of the server, or of the proxy that leads there.

    Raises:
        ConnectionProblem: The name is not known (`name`).
    """
    host, port = _next_hop(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConnectionProblem("name", address, _reason(error)) from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def connect(address: FederationAddress, *, timeout_s: float = TIMEOUT_S) -> socket.socket:
    """Open a TCP connection to the server, through the proxy of the environment where there is one.

    Raises:
        ConnectionProblem: As `resolve`; nobody listens (`refused`), nobody answers (`timeout`, `unreachable`), or the
            proxy says no (`proxy`).
    """
    resolve(address)
    try:
        stream = socket.create_connection(_next_hop(address), timeout=timeout_s)
    except ConnectionRefusedError:
        raise ConnectionProblem("refused", address) from None
    except TimeoutError:
        raise ConnectionProblem("timeout", address) from None
    except OSError as error:
        raise ConnectionProblem("unreachable", address, _reason(error)) from None
    return stream if proxy_of(address) is None else _tunnel(stream, address)


def secure(address: FederationAddress, *, timeout_s: float = TIMEOUT_S) -> tuple[ssl.SSLSocket, Secured]:
    """Open a TLS connection that this federation's own authority vouches for.

    Raises:
        ConnectionProblem: As `connect`; `ca-file`, `wrong-ca`, `expired`, `not-yet-valid`, `hostname`, `plain-http`,
            or `tls`.
    """
    context = _context(address)
    stream = connect(address, timeout_s=timeout_s)
    try:
        secured = context.wrap_socket(stream, server_hostname=address.host)
    except OSError as error:
        stream.close()
        raise ConnectionProblem(_tls_cause(error), address, _reason(error)) from None
    expires = ssl.cert_time_to_seconds(str((secured.getpeercert() or {})["notAfter"]))
    return secured, Secured((expires - time.time()) / 86400, secured.version() or "TLS")


def ask_health(address: FederationAddress, *, timeout_s: float = TIMEOUT_S) -> Health:
    """Ask the front door whether the federation is up, and what time it is there.

    Raises:
        ConnectionProblem: As `secure`; or the answer is not 200 (`health`).
    """
    stream, _ = secure(address, timeout_s=timeout_s)
    with stream:
        try:
            stream.sendall(f"GET /health HTTP/1.1\r\nHost: {address.server}\r\nConnection: close\r\n\r\n".encode())
            answer = http.client.HTTPResponse(stream)
            answer.begin()
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionProblem("health", address, f"nothing ({_reason(error)})") from None
        arrived = time.time()
    if answer.status != 200:
        meaning = ": the front door is up, the federation behind it is not" if answer.status in _GATEWAY else ""
        raise ConnectionProblem("health", address, f"HTTP {answer.status}{meaning}")
    return Health(_ahead(answer.headers.get("Date"), arrived))


def clock_problem(address: FederationAddress, ahead_s: float | None) -> ConnectionProblem | None:
    """Return what is wrong with this machine's clock, if Flower would refuse what it signs."""
    if ahead_s is None or -MAX_BEHIND_S <= ahead_s <= MAX_AHEAD_S:
        return None
    return ConnectionProblem("clock", address, f"{abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'}")


def proxy_of(address: FederationAddress) -> str | None:
    """Return the proxy URL of the environment that leads to the server; Flower's SuperNode takes it too."""
    proxy = getproxies().get("https")
    return proxy if proxy and not proxy_bypass(address.host) else None


def _next_hop(address: FederationAddress) -> tuple[str, int]:
    proxy = proxy_of(address)
    if proxy is None:
        return address.host, address.port
    parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    return parts.hostname or proxy, parts.port or 80


def _tunnel(stream: socket.socket, address: FederationAddress) -> socket.socket:
    try:
        stream.sendall(f"CONNECT {address.server} HTTP/1.1\r\nHost: {address.server}\r\n\r\n".encode())
        answer = http.client.HTTPResponse(stream, method="CONNECT")
        answer.begin()
        status = f"HTTP {answer.status}"
    except (OSError, http.client.HTTPException) as error:
        status = _reason(error)
    if status != "HTTP 200":
        stream.close()
        raise ConnectionProblem("proxy", address, status)
    return stream


def _context(address: FederationAddress) -> ssl.SSLContext:
    try:
        certificate_checks.read(address.ca)
        return ssl.create_default_context(cafile=str(address.ca))
    except (JointDiffError, OSError) as error:
        detail = str(error) if isinstance(error, JointDiffError) else f"{address.ca}: {_reason(error)}."
        raise ConnectionProblem("ca-file", address, detail) from None


def _tls_cause(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERIFY_CODES.get(error.verify_code, "wrong-ca")
    return "plain-http" if getattr(error, "reason", None) in _NO_TLS else "tls"


def _ahead(date: str | None, arrived: float) -> float | None:
    """Return how far this clock is ahead; the header counts whole seconds, so half of one is in between."""
    try:
        return arrived - parsedate_to_datetime(date).timestamp() - 0.5 if date else None
    except (TypeError, ValueError):
        return None


def _reason(error: BaseException) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__)
