"""What stands before every page: only this machine may ask, only to read, and a page can load nothing from elsewhere.

Plain ASGI, which needs no web library: jointdiff knows no network, yet the pages of server and site share one guard.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from jointdiff.errors import RunError
from jointdiff.views.gallery_assets import script_hash

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

HOSTS = ("localhost", "127.0.0.1", "[::1]")
_COMMON = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
LIVE_POLICY = (
    f"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; {_COMMON}"
)
# Reports and galleries carry their style in themselves; of scripts the gallery's alone runs.
FILE_POLICY = (
    f"default-src 'none'; script-src '{script_hash()}'; img-src 'self' data:; style-src 'unsafe-inline'; {_COMMON}"
)
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),  # a browser's cache is no place for what stays at a site
)


class Guard:
    """Wraps an ASGI application.

    A page of the internet that the user has open must not read this one: it may point a name of its own at 127.0.0.1
    (DNS rebinding), so the name that was asked for must be one of this machine's. Whoever asks with anything but GET is
    refused: nothing here can be changed.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif not is_local([value for name, value in scope["headers"] if name == b"host"]):
            await _refuse(send, 421, "This page is served to this machine only: ask for it by 127.0.0.1 or localhost.")
        elif scope["method"] != "GET":
            await _refuse(send, 405, "Nothing can be changed here: GET only.", (b"allow", b"GET"))
        else:
            await self._app(scope, receive, _with_headers(send))


def is_local(hosts: list[bytes]) -> bool:
    """Tell whether a request asked for this machine by a name that no other can claim, whatever the port.

    >>> is_local([b"localhost:8000"]), is_local([b"[::1]"]), is_local([b"127.0.0.1.attacker.example"]), is_local([])
    (True, True, False, False)
    """
    if len(hosts) != 1:
        return False
    name, colon, port = hosts[0].decode("latin-1").lower().rpartition(":")
    if not colon or port.endswith("]"):  # no port: what was split off belongs to an address
        name, port = hosts[0].decode("latin-1").lower(), ""
    return name in HOSTS and (not port or (port.isascii() and port.isdigit()))


def _with_headers(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", []))
            given = {name.lower() for name, _ in headers}
            policy = (b"content-security-policy", LIVE_POLICY.encode())
            headers += [entry for entry in (policy, *_HEADERS) if entry[0] not in given]
            message = {**message, "headers": headers}
        await send(message)

    return guarded


async def _refuse(send: Send, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
    guarded = _with_headers(send)
    kind = (b"content-type", b"text/plain; charset=utf-8")
    await guarded({"type": "http.response.start", "status": status, "headers": [kind, *headers]})
    await guarded({"type": "http.response.body", "body": text.encode() + b"\n"})


def port_taken(port: int, error: Exception) -> RunError:
    """Return what a user should read when a dashboard cannot listen on its port."""
    other = port + 1 if 0 < port < 65535 else 8050
    cause = getattr(error, "strerror", None) or error
    return RunError(
        f"The dashboard cannot use port {port} of this machine: {cause}. Perhaps another program, or another "
        f"dashboard, has it. Choose another, e.g. --port {other}; --port 0 takes any that is free."
    )
