"""How far a machine gets towards its federation: each stage once, and none after the first that fails."""

from __future__ import annotations

from dataclasses import dataclass

from client import connection, key_admission
from client.connection import ConnectionProblem, Health, Secured
from client.key_admission import Admission
from client.site_config import FederationAddress

STAGES = ("name", "port", "tls", "health", "admission")


@dataclass
class Reach:
    """What each stage found; None = it was not come to."""

    addresses: list[str] | None = None
    connected: bool | None = None
    secured: Secured | None = None
    health: Health | None = None
    admission: Admission | None = None
    stage: str = ""  # the one that failed; '' = none did
    problem: ConnectionProblem | None = None


def reach(address: FederationAddress | None) -> Reach:
    """Go the way once."""
    found = Reach()
    if address is None:
        return found
    stage = STAGES[0]
    try:
        found.addresses = connection.resolve(address)
        stage = "port"
        connection.connect(address).close()
        found.connected = True
        stage = "tls"
        stream, found.secured = connection.secure(address)
        stream.close()
        stage = "health"
        found.health = connection.ask_health(address)
        if address.key.is_file():
            found.admission = key_admission.ask(address)
    except ConnectionProblem as problem:
        found.stage, found.problem = stage, problem
    return found
