"""Which public keys the SuperLink lets in: register one, send a node away, list them, by Flower's Control API.

Protobuf over HTTPS, as Flower's own commands speak it, but with what they do not show: the keys. The Control API asks
nobody who he is, so it is reached over loopback alone (the front door refuses it), and no proxy is asked.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListNodesResponse,
    RegisterNodeRequest,
    RegisterNodeResponse,
    UnregisterNodeRequest,
    UnregisterNodeResponse,
)
from flwr.supercore.constant import NodeStatus
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

from jointdiff import certificate_checks
from jointdiff.errors import RunError
from server.deployment.federation_folder import FederationFolder

_HEADERS = {"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE}
_Answer = TypeVar("_Answer", bound=Message)


class KeyKnownError(RunError):
    """The SuperLink has seen this public key before; it takes each only once, for ever."""


class UnknownNodeError(RunError):
    """The SuperLink has no such node, or it was unregistered before."""


@dataclass(frozen=True)
class Node:
    """One SuperNode, as the SuperLink knows it."""

    node_id: int
    public_key: bytes  # PEM
    status: str  # registered (never came) | online | offline | unregistered

    @property
    def online(self) -> bool:
        """Whether it is connected; one that died counts for about a minute longer."""
        return self.status == NodeStatus.ONLINE

    @property
    def unregistered(self) -> bool:
        """Whether it was sent away for good."""
        return self.status == NodeStatus.UNREGISTERED


class Registry:
    """An open connection to the SuperLink."""

    def __init__(self, connection: http.client.HTTPSConnection) -> None:
        """Remember the connection; `connect` makes it."""
        self._connection = connection
        self._address = f"{connection.host}:{connection.port}"

    def nodes(self) -> list[Node]:
        """Return all SuperNodes that were ever registered.

        Raises:
            RunError: The SuperLink does not answer, or not as ours.
        """
        found = self._call("list-nodes", ListNodesRequest(), ListNodesResponse()).nodes_info
        return [Node(node.node_id, node.public_key, node.status) for node in found]

    def register(self, public_key: bytes, name: str) -> int:
        """Register a public key (PEM); return the node id, which stays the same as long as the database does.

        Raises:
            KeyKnownError: This key is registered, or was.
            RunError: The SuperLink does not answer, or not as ours.
        """
        request = RegisterNodeRequest(public_key=public_key, name=name)
        return int(self._call("register-node", request, RegisterNodeResponse()).node_id)

    def unregister(self, node_id: int) -> None:
        """Send a node away for good: this SuperLink will never take its key again.

        Raises:
            UnknownNodeError: There is no such node, or not any more.
            RunError: The SuperLink does not answer, or not as ours.
        """
        self._call("unregister-node", UnregisterNodeRequest(node_id=node_id), UnregisterNodeResponse())

    def _call(self, what: str, request: Message, answer: _Answer) -> _Answer:
        try:
            self._connection.request("POST", f"/v1/control/{what}", request.SerializeToString(), _HEADERS)
            response = self._connection.getresponse()
            content = response.read()
            if response.status == http.client.OK:
                answer.ParseFromString(content)
                return answer
        except ssl.SSLCertVerificationError as error:
            raise RunError(
                f"The server at {self._address} shows a certificate that this federation's ca.crt does not vouch for: "
                f"{error.verify_message}. See `jointdiff-server certificates list`; after `renew` restart the "
                "SuperLink."
            ) from None
        except (OSError, http.client.HTTPException, DecodeError) as error:
            raise RunError(
                f"The SuperLink at {self._address} does not answer: {error}. Start it with `jointdiff-server start`, "
                "or name its address with --address."
            ) from None
        known = FlowerError.from_json(content.decode("utf-8", errors="replace"))
        if known is not None and known.code == ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE:
            raise KeyKnownError("The SuperLink knows this public key already.")
        if known is not None and known.code == ApiErrorCode.NODE_NOT_FOUND:
            raise UnknownNodeError("The SuperLink knows no such node.")
        hint = " That is a front door: give the SuperLink's own address." if response.status == 403 else ""
        raise RunError(f"The SuperLink at {self._address} refused {what} with HTTP {response.status}.{hint}")


@contextlib.contextmanager
def connect(folder: FederationFolder, address: str, *, timeout_s: float = 10.0) -> Iterator[Registry]:
    """Give a connection to the SuperLink at HOST:PORT, under the federation's own authority.

    Raises:
        ConfigError: There is no ca.crt, or it is damaged.
        RunError: The address is none.
    """
    certificate_checks.read(folder.ca_crt)
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise RunError(f"The SuperLink's address must be HOST:PORT, not '{address}'.")
    context = ssl.create_default_context(cafile=str(folder.ca_crt))
    connection = http.client.HTTPSConnection(host.strip("[]"), int(port), context=context, timeout=timeout_s)
    try:
        yield Registry(connection)
    finally:
        connection.close()
