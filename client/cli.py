"""`jointdiff-client dashboard | ledger`: what people at a site type."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jointdiff.command_line import exit_code_of
from jointdiff.errors import RefusedError, RunError
from jointdiff.storage import home
from jointdiff.views.format import MISSING, number
from jointdiff.views.terminal import printable

_LEDGER_COLUMNS = ("#", "time (UTC)", "run", "round", "noise", "sample rate", "steps", "epsilon", "hash", "note")
_HASH_CHARACTERS = 12


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, or the error's exit code."""
    options = _parser().parse_args(arguments)
    return exit_code_of(lambda: options.command(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jointdiff-client", description="What runs inside one hospital.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    site = argparse.ArgumentParser(add_help=False)
    site.add_argument(
        "--site-folder", default="", metavar="PATH",
        help="the site's own folder, in a simulation HOME/runs/<run>/sites/<hospital> (default: the home)",
    )  # fmt: skip

    dashboard = commands.add_parser(
        "dashboard", parents=[site], help="watch this site in a browser: rounds, ledger, galleries, log"
    )
    dashboard.add_argument("--port", type=int, default=8051, help="on this machine only (default: %(default)s)")
    dashboard.set_defaults(command=_dashboard)

    ledger = commands.add_parser(
        "ledger", parents=[site], help="verify and print what was spent of privacy, and is left"
    )
    ledger.add_argument("--json", action="store_true", help="print JSON, with the whole hashes")
    ledger.set_defaults(command=_ledger)
    return parser


def _dashboard(options: argparse.Namespace) -> None:
    from client.dashboard import serve

    serve(
        _site_folder(options),
        options.port,
        ready=lambda address: print(f"Dashboard of this site: {address}  (Ctrl-C ends it)"),
    )


def _ledger(options: argparse.Namespace) -> None:
    from jointdiff.ledger import summary  # Opacus takes seconds to import

    folder = _site_folder(options)
    try:
        found = summary(folder)
    except RefusedError as error:
        raise RefusedError(f"{error} ({folder})") from error
    if found is None:
        raise RunError(f"There is no privacy ledger in {folder}: nothing was trained with privacy there, or not there.")
    if options.json:
        print(json.dumps(found, indent=2))
        return
    rows = [_LEDGER_COLUMNS, *map(_ledger_row, found["entries"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"\n{_spent(found)}\n{_left(found)}")
    print(f"The chain of {len(found['entries'])} entries is whole. Its last hash, worth a note outside this machine:")
    print(found["head_sha256"])


def _ledger_row(entry: dict[str, Any]) -> tuple[str, ...]:
    return (
        number(entry["number"]),
        entry["time"][:19].replace("T", " "),
        printable(entry["run"]),
        number(entry["round"]),
        f"{entry['noise_multiplier']:g}",
        f"{entry['sample_rate']:.4g}",
        number(entry["steps"]),
        _epsilon(entry["epsilon"]),
        entry["sha256"][:_HASH_CHARACTERS],
        printable(entry["note"]),
    )


def _spent(found: dict[str, Any]) -> str:
    return (
        f"Spent: epsilon {_epsilon(found['epsilon'])} at delta {found['delta']:g}; protected is one {found['unit']} of "
        f"{number(found['num_records'])}, added or removed."
    )


def _left(found: dict[str, Any]) -> str:
    if found["ceiling"] is None:
        return "Ceiling: none."
    left = MISSING if found["epsilon"] is None else _epsilon(max(0.0, found["ceiling"] - found["epsilon"]))
    rounds = "" if found["rounds_left"] is None else f", which is {number(found['rounds_left'])} rounds like the last"
    return f"Ceiling: epsilon {found['ceiling']:g}. Left: {left}{rounds}."


def _epsilon(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.4f}"


def _site_folder(options: argparse.Namespace) -> Path:
    return Path(options.site_folder).expanduser() if options.site_folder else home()


if __name__ == "__main__":
    sys.exit(main())
