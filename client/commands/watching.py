"""`dashboard | ledger | egress`: what a site did, spent and sent."""

from __future__ import annotations

import argparse
import json

from client.commands.common import Commands, say, site_folder, with_site
from jointdiff.errors import RefusedError, RunError, nearest


def add(commands: Commands) -> None:
    """Put the commands into the parser."""
    dashboard = commands.add_parser("dashboard", help="watch this site in a browser: rounds, ledger, galleries, log")
    dashboard.add_argument("--port", type=int, default=8051, help="on this machine only (default: %(default)s)")
    dashboard.set_defaults(command=_dashboard)
    egress = commands.add_parser("egress", help="show and verify the record of everything that left this site")
    egress.add_argument("run", nargs="?", default="", metavar="RUN", help="one run alone (default: all of this site)")
    egress.add_argument("--explain", action="store_true", help="say in words what each thing is")
    egress.add_argument("--json", action="store_true", help="the whole record as JSON")
    egress.set_defaults(command=_egress)
    ledger = commands.add_parser("ledger", help="verify and print what was spent of privacy, and what is left")
    ledger.add_argument("--json", action="store_true", help="print JSON, with the whole hashes")
    ledger.set_defaults(command=_ledger)
    with_site(dashboard, egress, ledger)


def _dashboard(options: argparse.Namespace) -> None:
    from client.dashboard import serve

    serve(
        site_folder(options),
        options.port,
        ready=lambda address: say(f"Dashboard of this site: {address}  (Ctrl-C ends it)"),
    )


def _ledger(options: argparse.Namespace) -> None:
    from client import ledger_record
    from jointdiff.ledger import summary  # Opacus takes seconds to import

    folder = site_folder(options)
    try:
        found = summary(folder)
    except RefusedError as error:
        raise RefusedError(f"{error} ({folder})") from error
    if found is None:
        raise RunError(f"There is no privacy ledger in {folder}: nothing was trained with privacy there, or not there.")
    say(json.dumps(found, indent=2) if options.json else "\n".join(ledger_record.lines(found)))


def _egress(options: argparse.Namespace) -> int:
    from client import egress_record, manifest

    folder = site_folder(options)
    names = manifest.run_names(folder)
    if options.run and options.run not in names:
        raise RunError(f"There is no record of a run '{options.run}' in {folder}: {nearest(options.run, names)}")
    if not names:
        raise RunError(f"There is no record of anything that left in {folder}. Name a site's folder: --site.")
    found = [manifest.read(folder, name) for name in ([options.run] if options.run else names)]
    if options.json:
        say(json.dumps([egress_record.to_json(run) for run in found], indent=2))
    else:
        say("\n".join(line for run in found for line in egress_record.lines(run, explain=options.explain)))
    return RunError.exit_code if any(run.problems for run in found) else 0
