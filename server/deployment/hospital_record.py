"""HOME/federation/hospitals.json: who was admitted to the federation by which key, and who was revoked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from jointdiff import storage
from jointdiff.errors import ConfigError
from server.deployment import federation_folder
from server.deployment.federation_folder import FederationFolder

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Hospital:
    """One admission: a name, a key, and from when to when it holds."""

    name: str
    fingerprint: str
    public_key: str  # OpenSSH, one line
    node_id: str  # decimal: it may pass 2^53, beyond which JSON's readers round
    admitted: str  # ISO 8601, UTC
    revoked: str = ""  # '' = it holds


def read(home: Path) -> list[Hospital]:
    """Return the record, revoked ones included, in order of admission; empty where nobody was admitted.

    Raises:
        ConfigError: The file is damaged.
    """
    path = federation_folder.of(home).hospitals
    if not path.exists():
        return []
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {tree['schema_version']} is not {SCHEMA_VERSION}")
        names = [field.name for field in fields(Hospital)]
        hospitals = [Hospital(**{name: str(entry[name]) for name in names}) for entry in tree["hospitals"]]
        _ = [int(hospital.node_id) for hospital in hospitals]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} cannot be read as the record of admitted hospitals: {error}. Restore it from a backup; without "
            "one move it away and admit every hospital's key again."
        ) from None
    return hospitals


@contextmanager
def opened(folder: FederationFolder) -> Iterator[tuple[list[Hospital], str]]:
    """Give the record to read and change, and the SuperLink's address; changes are written if the block ends well."""
    with storage.locked(folder.lock):
        hospitals = read(folder.path.parent)
        before = list(hospitals)
        yield hospitals, federation_folder.superlink_address(folder)
        if hospitals != before:
            tree = {"schema_version": SCHEMA_VERSION, "hospitals": [asdict(hospital) for hospital in hospitals]}
            storage.write_atomic(folder.hospitals, json.dumps(tree, indent=2) + "\n", private=True)
