"""`jointdiff-server certificates init | issue-server | list | renew`: by what sites know that the server is theirs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from jointdiff import storage
from jointdiff.certificate_checks import fingerprint as certificate_fingerprint
from jointdiff.certificate_checks import read, utc_now
from jointdiff.errors import RunError
from jointdiff.views.terminal import printable
from server.deployment import certificates, federation_folder

_RESTART = "Front door and SuperLink show it after `jointdiff-server stop` and `start`; a run should not be under way."


def add_commands(commands: Any) -> None:
    """Add these commands to `jointdiff-server`.

    Args:
        commands: What `ArgumentParser.add_subparsers` returned.
    """
    everywhere = home_option()
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print JSON")

    group = commands.add_parser("certificates", help="the federation's authority and the server's certificate")
    ours = group.add_subparsers(required=True, metavar="COMMAND")
    init = ours.add_parser("init", parents=[everywhere], help="make the federation's authority: ca.key and ca.crt")
    init.add_argument(
        "--name", default="JointDiff", metavar="ORGANISATION", help="in the certificate (default: %(default)s)"
    )
    _days(init, certificates.AUTHORITY_DAYS)
    init.set_defaults(command=_init)
    issue = ours.add_parser("issue-server", parents=[everywhere], help="make server.key and server.crt for these hosts")
    issue.add_argument(
        "hosts", nargs="+", metavar="HOST", help="DNS name or IP address by which sites call the front door"
    )
    _days(issue, certificates.SERVER_DAYS)
    issue.set_defaults(command=_issue)
    listing = ours.add_parser("list", parents=[everywhere, as_json], help="what there is, for whom, and until when")
    listing.set_defaults(command=_list)
    renew = ours.add_parser("renew", parents=[everywhere], help="make a new server certificate for the same hosts")
    renew.add_argument("--authority", action="store_true", help="lengthen the authority's life instead: a new ca.crt")
    _days(renew, 0)
    renew.set_defaults(command=_renew)


def home_option() -> argparse.ArgumentParser:
    """Return a parent parser with the option --home."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "--home",
        default="",
        metavar="FOLDER",
        help="where `federation` lies (default: $JOINTDIFF_HOME, else ~/.jointdiff)",
    )
    return parent


def _days(parser: argparse.ArgumentParser, default: int) -> None:
    text = (
        f"default: {default}"
        if default
        else f"default: {certificates.SERVER_DAYS}, the authority's {certificates.AUTHORITY_DAYS}"
    )
    parser.add_argument("--days", type=_count, default=default, metavar="N", help=f"valid for so long ({text})")


def _init(options: argparse.Namespace) -> None:
    folder = federation_folder.make(storage.home(options.home))
    certificates.create_authority(folder, options.name, days=options.days, now=utc_now())
    print(f"{folder.ca_crt}: give it to every site. Fingerprint, to compare over the telephone:")
    print(f"  {certificate_fingerprint(read(folder.ca_crt)[0])}")
    print(f"{folder.ca_key}: keep it, and a copy in a safe; it never leaves the coordinator.")
    print("Next: jointdiff-server certificates issue-server HOST, with HOST as sites will call this machine.")


def _issue(options: argparse.Namespace) -> None:
    folder = federation_folder.existing(storage.home(options.home))
    there = folder.server_crt.exists()
    certificates.issue_server(folder, options.hosts, days=options.days, now=utc_now())
    _tell_server(folder, replaced=there)


def _tell_server(folder: federation_folder.FederationFolder, *, replaced: bool) -> None:
    issued = certificates.listing(folder, now=utc_now())[-1]
    print(f"{issued.path}: for {', '.join(issued.names)}, valid until {issued.valid_until:%Y-%m-%d}.")
    if replaced:
        print(_RESTART)
    else:
        print("Next: jointdiff-server start, then jointdiff-server admit NAME site.pub for every hospital.")


def _list(options: argparse.Namespace) -> int:
    folder = federation_folder.existing(storage.home(options.home))
    found = certificates.listing(folder, now=utc_now())
    problems, warnings = certificates.problems(folder), certificates.warnings(folder)
    if options.json:
        rows = [
            asdict(issued) | {"path": str(issued.path), "valid_until": issued.valid_until.isoformat()}
            for issued in found
        ]
        print(json.dumps({"certificates": rows, "problems": problems, "warnings": warnings}, indent=2))
    else:
        rows_shown = [("what", "for", "valid until (UTC)", "days left", "fingerprint")]
        rows_shown += [
            (
                issued.what,
                ", ".join(issued.names),
                f"{issued.valid_until:%Y-%m-%d %H:%M}",
                str(issued.days_left),
                issued.fingerprint,
            )
            for issued in found
        ]
        table(rows_shown)
        for line in problems:
            print(f"problem: {line}")
        for line in warnings:
            print(f"warning: {line}")
    return RunError.exit_code if problems else 0


def _renew(options: argparse.Namespace) -> None:
    folder = federation_folder.existing(storage.home(options.home))
    if not options.authority:
        certificates.renew_server(folder, days=options.days or certificates.SERVER_DAYS, now=utc_now())
        _tell_server(folder, replaced=True)
        return
    old = read(folder.ca_crt)[0].not_valid_after_utc
    certificates.renew_authority(folder, days=options.days or certificates.AUTHORITY_DAYS, now=utc_now())
    new = read(folder.ca_crt)[0]
    print(
        f"{folder.ca_crt}: valid until {new.not_valid_after_utc:%Y-%m-%d}. The key is the same, so nothing stops now."
    )
    print(
        f"Every site must have this ca.crt before the old one ends, on {old:%Y-%m-%d}, and start its SuperNode again."
    )
    print(f"Its fingerprint, to compare over the telephone: {certificate_fingerprint(new)}")
    print("The server's certificate is as old as it was: jointdiff-server certificates renew")


def table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows in columns, the first row as their heads."""
    texts = [tuple(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 36_500:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days: 1 to 36500")
    return int(text)
