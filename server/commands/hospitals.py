"""`jointdiff-server admit | revoke | hospitals`: who may take part."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jointdiff import storage
from jointdiff.errors import RunError
from jointdiff.views.format import MISSING
from server.commands.certificates import home_option, table
from server.deployment import hospital_record
from server.deployment.hospital_record import Hospital

if TYPE_CHECKING:
    from server.deployment.node_registry import Node


def add_commands(commands: Any) -> None:
    """Add these commands to `jointdiff-server`.

    Args:
        commands: What `ArgumentParser.add_subparsers` returned.
    """
    everywhere = home_option()
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print JSON")
    at = argparse.ArgumentParser(add_help=False)
    at.add_argument(
        "--address", default="", metavar="HOST:PORT", help="of the SuperLink (default: where it was started)"
    )

    admit = commands.add_parser("admit", parents=[everywhere, at], help="let a hospital take part")
    admit.add_argument("name", metavar="NAME", help="lower-case letters, digits and '-'; it stands in reports")
    admit.add_argument("key", nargs="?", type=Path, metavar="KEY.pub", help="the site's public key")
    admit.add_argument("--again", action="store_true", help="it is on record, but the SuperLink has a new database")
    admit.set_defaults(command=_admit)
    revoke = commands.add_parser(
        "revoke", parents=[everywhere, at], help="send a hospital away; its key never comes back"
    )
    revoke.add_argument("name", metavar="NAME")
    revoke.set_defaults(command=_revoke)
    hospitals = commands.add_parser(
        "hospitals", parents=[everywhere, at, as_json], help="who is admitted and connected"
    )
    hospitals.set_defaults(command=_hospitals)


def _admit(options: argparse.Namespace) -> None:
    home = storage.home(options.home)
    from server.deployment import admission  # Flower takes seconds to import

    done = admission.admit(home, options.name, options.key, again=options.again, address=options.address)
    hospital = done.hospital
    if done.replaced_node_id:
        print(f"'{hospital.name}' is admitted again: SuperNode {hospital.node_id} (it was {done.replaced_node_id}).")
        print("The SuperLink had lost it, so its database is new: admit the other hospitals --again too.")
        return
    if options.again:
        print(f"The SuperLink knows '{hospital.name}': SuperNode {hospital.node_id}. Nothing was changed.")
        return
    print(f"'{hospital.name}' is admitted: SuperNode {hospital.node_id}. Read this to the site over the telephone;")
    print("its `jointdiff-client keygen` printed the same. If theirs differs: jointdiff-server revoke " + hospital.name)
    print(f"  {hospital.fingerprint}")


def _revoke(options: argparse.Namespace) -> None:
    from server.deployment import admission

    hospital, now = admission.revoke(storage.home(options.home), options.name, address=options.address)
    when = "now" if now else f"since {hospital.revoked}"
    print(f"'{hospital.name}' is revoked {when}: the SuperLink refuses its key ({hospital.fingerprint}), for good.")
    if now:
        print("What stays where is in the coordinator's page, under withdrawal.")


def _hospitals(options: argparse.Namespace) -> None:
    from server.deployment import admission

    home = storage.home(options.home)
    known = hospital_record.read(home)
    try:
        nodes, silent = admission.connected(home, address=options.address), ""
    except RunError as error:
        nodes, silent = {}, str(error)
    states = ["unknown" if silent else _state(hospital, nodes) for hospital in known]
    if options.json:
        rows = [
            {key: value for key, value in asdict(hospital).items() if key != "public_key"} | {"state": state}
            for hospital, state in zip(known, states, strict=True)
        ]
        print(json.dumps({"hospitals": rows, "superlink": silent or "ok"}, indent=2))
        return
    if not known:
        print("Nobody is admitted yet: jointdiff-server admit NAME site.pub")
    else:
        shown = [("hospital", "state", "admitted (UTC)", "revoked (UTC)", "fingerprint")]
        for hospital, state in zip(known, states, strict=True):
            shown.append(
                (hospital.name, state, _minutes(hospital.admitted), _minutes(hospital.revoked), hospital.fingerprint)
            )
        table(shown)
    if silent:
        print(f"Who is connected cannot be told: {silent}")


def _state(hospital: Hospital, nodes: Mapping[str, Node]) -> str:
    node = nodes.get(hospital.node_id)
    if hospital.revoked:
        return "revoked" if node is None or node.unregistered else "revoked, but let in: revoke it again"
    if node is None or node.unregistered:
        return "lost: admit --again"
    return "connected" if node.online else "not connected" if node.status == "offline" else "never came"


def _minutes(time: str) -> str:
    return datetime.fromisoformat(time).strftime("%Y-%m-%d %H:%M") if time else MISSING
