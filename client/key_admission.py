"""Is this site's key admitted to the federation? Asked without starting the node, and without changing anything.

Flower has no such question. But it looks up the key before it looks at the heartbeat interval, so an activation with an
impossible interval is refused for one of two reasons, and which of them tells. It rests on the insides of Flower 1.41
and 1.42 (tests/client/test_key_admission.py holds it); an answer that is neither says "not known".
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator
from enum import Enum
from typing import Any

from client.keys import load_private
from client.site_config import FederationAddress

_ACTIVATION_FAILED, _INVALID_INTERVAL = 2004, 2003  # Flower's codes of errors


class Admission(Enum):
    """What the server says of a key."""

    ADMITTED = "admitted"
    UNKNOWN_KEY = "not admitted, or revoked"
    CLOCK = "the signature's time is refused"
    NOT_KNOWN = "not known"


def ask(address: FederationAddress) -> Admission:
    """Ask the server about the site's key; it must be reachable (`client.connection`).

    Raises:
        ConfigError: The key cannot be read, or is none that Flower takes.
    """
    key = load_private(address.key)
    try:
        import httpx
        from flwr.proto.fleet_pb2 import ActivateNodeRequest
        from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes
        from flwr.supernode.fleet_http_client import FleetHttpClient
        from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

        signing: list[Any] = [
            RuntimeVersionHttpInterceptor("SuperNode"),
            NodeAuthHttpInterceptor(key, key.public_key()),
        ]
        with (
            _quiet(),
            FleetHttpClient.from_server_address(address.server, False, str(address.ca), interceptors=signing) as client,
        ):
            client.ActivateNode(
                ActivateNodeRequest(public_key=public_key_to_bytes(key.public_key()), heartbeat_interval=0)
            )
    except httpx.HTTPStatusError as error:
        return _meaning(error.response.status_code, error.response.text)
    except (ImportError, httpx.HTTPError, OSError, TypeError, AttributeError, SystemExit):
        return Admission.NOT_KNOWN
    return Admission.NOT_KNOWN


def _meaning(status: int, text: str) -> Admission:
    if status == 401:
        return Admission.CLOCK
    try:
        code = json.loads(text)["code"]
    except (ValueError, KeyError, TypeError):
        return Admission.NOT_KNOWN
    return {_ACTIVATION_FAILED: Admission.UNKNOWN_KEY, _INVALID_INTERVAL: Admission.ADMITTED}.get(
        code, Admission.NOT_KNOWN
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Flower logs about a refused question off the terminal."""
    logger = logging.getLogger("flwr")
    disabled, logger.disabled = logger.disabled, True
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            yield
        finally:
            logger.disabled = disabled
