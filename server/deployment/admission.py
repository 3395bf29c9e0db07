"""Who may take part: a hospital is admitted by its public key, and revoked for good.

The coordinator's record (hospital_record.py) is one thing; the SuperLink's database lets a site in or not.
Flower takes each public key once in the life of its database and never again once it was unregistered, and so do we:
a revoked key does not come back, under whatever name and after whatever restore; the site makes a new one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from jointdiff import site_keys
from jointdiff.errors import ConfigError, RunError
from server.deployment import federation_folder, node_registry
from server.deployment.hospital_record import Hospital, opened, read
from server.deployment.node_registry import KeyKnownError, Node, Registry, UnknownNodeError

_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")


@dataclass(frozen=True)
class Admission:
    """What an `admit` came to."""

    hospital: Hospital
    replaced_node_id: str = ""  # under --again: the id in the database that is gone


def admit(home: Path, name: str, key: Path | None, *, again: bool = False, address: str = "") -> Admission:
    """Let a hospital take part: register its public key with the SuperLink, and note it.

    Args:
        key: The file that the site's `keygen` made; None with `again` takes the key that is on record.
        again: The hospital is on record, but the SuperLink may not know it any more (a new database).
        address: Of the SuperLink; '' = where it was last started.

    Raises:
        ConfigError: The name or the key cannot be taken, or is taken already.
        RunError: The SuperLink does not answer.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            "A hospital's name must be 1 to 40 lower-case letters, digits and '-', and begin with a letter, "
            f"not {name!r}."
        )
    folder = federation_folder.existing(home)
    with opened(folder) as (hospitals, connect_to):
        present = _present(hospitals, name)
        if again and present is None:
            raise ConfigError(f"'{name}' is not admitted, so it cannot be admitted again. {_who(hospitals)}")
        if key is not None:
            public = site_keys.read_public_key(key)
        elif present is not None and again:
            public = site_keys.parse_public_key(present.public_key.encode(), f"the key of '{name}' on record")
        elif present is not None:
            raise ConfigError(_already(present))
        else:
            raise ConfigError(f"admit {name} needs the site's public key: the file site.pub from its `keygen`.")
        fingerprint = site_keys.fingerprint(public)
        _check_free(hospitals, name, fingerprint, again=again)
        with node_registry.connect(folder, address or connect_to) as registry:
            node_id = _register(registry, site_keys.pem(public), name)
        if present is not None:
            if str(node_id) == present.node_id:
                return Admission(present)
            hospital = replace(present, node_id=str(node_id))
            hospitals[hospitals.index(present)] = hospital
            return Admission(hospital, replaced_node_id=present.node_id)
        hospital = Hospital(name, fingerprint, site_keys.openssh_line(public), str(node_id), _now())
        hospitals.append(hospital)
        return Admission(hospital)


def _check_free(hospitals: list[Hospital], name: str, fingerprint: str, *, again: bool) -> None:
    for known in hospitals:
        if known.fingerprint == fingerprint and known.revoked:
            raise ConfigError(
                f"This key ({fingerprint}) was revoked on {known.revoked[:10]} as '{known.name}' and cannot come back: "
                "the site makes a new pair (`jointdiff-client keygen`) and sends the new site.pub."
            )
        if known.fingerprint == fingerprint and known.name != name:
            raise ConfigError(f"This key ({fingerprint}) is that of '{known.name}', admitted {known.admitted[:10]}.")
        if known.name == name and not known.revoked and known.fingerprint != fingerprint:
            raise ConfigError(
                f"'{name}' is admitted with another key ({known.fingerprint}). To change it: `jointdiff-server revoke "
                f"{name}`, then admit it with the new key."
            )
        if known.name == name and not known.revoked and not again:
            raise ConfigError(_already(known))


def _already(hospital: Hospital) -> str:
    return (
        f"'{hospital.name}' is admitted already, since {hospital.admitted[:10]}, by the key {hospital.fingerprint}. If "
        f"the SuperLink has a new database and does not know it: `jointdiff-server admit {hospital.name} --again`."
    )


def _register(registry: Registry, public_key: bytes, name: str) -> int:
    """Register a key, or find the node of an attempt that ended before it was noted."""
    try:
        return registry.register(public_key, name)
    except KeyKnownError:
        for node in registry.nodes():
            if node.public_key == public_key and not node.unregistered:
                return node.node_id
        raise ConfigError(
            f"The SuperLink has sent the key of '{name}' away before and never takes it again: the site makes a new "
            "pair (`jointdiff-client keygen`) and sends the new site.pub."
        ) from None


def revoke(home: Path, name: str, *, address: str = "") -> tuple[Hospital, bool]:
    """Send a hospital away: it is noted at once, and the SuperLink refuses its SuperNode from its next call on.

    Returns:
        The hospital, and whether it was admitted until now; doing it twice changes nothing.

    Raises:
        ConfigError: Nobody of this name was ever admitted.
        RunError: It is noted, but the SuperLink does not answer and will still let it in; revoke it again then.
    """
    folder = federation_folder.existing(home)
    with opened(folder) as (hospitals, connect_to):
        ours = [hospital for hospital in hospitals if hospital.name == name]
        if not ours:
            raise ConfigError(f"Nobody is admitted as '{name}'. {_who(hospitals)}")
        last = ours[-1]
        hospital = last if last.revoked else replace(last, revoked=_now())
        hospitals[hospitals.index(last)] = hospital
    try:
        with node_registry.connect(folder, address or connect_to) as registry:
            _send_away(registry, hospital)
    except RunError as error:
        raise RunError(
            f"'{name}' is noted as revoked and takes part in no new run, but the SuperLink was not told: {error} "
            f"Its SuperNode can still connect until `jointdiff-server revoke {name}` succeeds."
        ) from None
    return hospital, not last.revoked


def _send_away(registry: Registry, hospital: Hospital) -> bool:
    try:
        registry.unregister(int(hospital.node_id))
    except UnknownNodeError:
        return False  # it was told before, or its database is gone
    return True


def settle(home: Path, *, address: str = "") -> list[str]:
    """Bring the SuperLink in line with the record, and return what a person must know or do, one line each.

    Those revoked while it did not run are sent away; those that it does not know, and keys that nobody admitted, are
    named.

    Raises:
        ConfigError: There is no federation in this home.
        RunError: The SuperLink does not answer.
    """
    folder = federation_folder.existing(home)
    lines = []
    with opened(folder) as (hospitals, connect_to), node_registry.connect(folder, address or connect_to) as registry:
        nodes = {str(node.node_id): node for node in registry.nodes() if not node.unregistered}
        for hospital in hospitals:
            if hospital.revoked and hospital.node_id in nodes:
                _send_away(registry, hospital)
                lines.append(f"'{hospital.name}' was revoked while the SuperLink did not run: it is sent away now.")
            elif not hospital.revoked and hospital.node_id not in nodes:
                lines.append(
                    f"The SuperLink does not know '{hospital.name}' (a new database?): "
                    f"`jointdiff-server admit {hospital.name} --again`."
                )
        for node_id in nodes.keys() - {hospital.node_id for hospital in hospitals}:
            lines.append(
                f"SuperNode {node_id} is registered, but nobody admitted it here. It takes part in no run of ours. "
                f"To send it away: `flwr supernode unregister {node_id} {federation_folder.CONNECTION}` with "
                f"FLWR_HOME={folder.flower}."
            )
    return lines


def admitted(home: Path) -> dict[str, int]:
    """Return the SuperNode of each hospital that is admitted and not revoked, in order of admission."""
    return {hospital.name: int(hospital.node_id) for hospital in read(home) if not hospital.revoked}


def connected(home: Path, *, address: str = "") -> dict[str, Node]:
    """Return what the SuperLink says of each hospital's SuperNode, by node id; raises as `settle`."""
    folder = federation_folder.existing(home)
    with node_registry.connect(folder, address or federation_folder.superlink_address(folder), timeout_s=5) as registry:
        return {str(node.node_id): node for node in registry.nodes()}


def _present(hospitals: list[Hospital], name: str) -> Hospital | None:
    return next((hospital for hospital in hospitals if hospital.name == name and not hospital.revoked), None)


def _who(hospitals: list[Hospital]) -> str:
    names = sorted({hospital.name for hospital in hospitals if not hospital.revoked})
    return f"Admitted are: {', '.join(names)}." if names else "Nobody is admitted yet."


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
