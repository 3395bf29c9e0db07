"""`jointdiff-client dashboard | ledger | egress | explain | audit`: what people at a site type."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from jointdiff.command_line import exit_code_of
from jointdiff.errors import RefusedError, RunError, nearest
from jointdiff.storage import home


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, or the error's exit code."""
    options = _parser().parse_args(arguments)
    return exit_code_of(lambda: options.command(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jointdiff-client", description="What runs inside one hospital.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
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
    explain = commands.add_parser("explain", help="what would have to change in a scan for another decision: a page")
    explain.add_argument("checkpoint", help="a run's checkpoints/best.safetensors or last.safetensors")
    explain.add_argument(
        "--image", nargs="+", required=True, metavar="PATH",
        help="the scan: an image file, a folder of them, or an npz file with an array `images`; of the size, depth and "
        "channels that the model sees",
    )  # fmt: skip
    explain.add_argument(
        "--target", default="", metavar="CLASS",
        help="name or number of the wanted class, or of the finding to turn over (default: the nearest other decision)",
    )  # fmt: skip
    explain.add_argument(
        "--output", "-o", default="", metavar="FOLDER",
        help="of the page, new or empty (default: explanations/<run>-scans-<N>/ in the site's folder)",
    )  # fmt: skip
    explain.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N (default: auto)")
    explain.set_defaults(command=_explain)
    for command in (dashboard, ledger, egress, explain):
        command.add_argument(
            "--site-folder", default="", metavar="PATH",
            help="the site's own folder, in a simulation HOME/runs/<run>/sites/<hospital> (default: the home)",
        )  # fmt: skip

    audit = commands.add_parser(
        "audit", help="attack a finished run's model with this site's own data: a page that stays"
    )
    audit.add_argument("run", metavar="RUN-OR-CHECKPOINT", help="a run's folder or name, or a .safetensors file")
    audit.add_argument("--hospital", type=int, default=1, help="which of the run's hospitals this is (default: 1)")
    audit.add_argument(
        "--site-folder", default="", metavar="PATH",
        help="where audit/<run>/ goes and the ledger is (default: this hospital's folder in the run's, else the home)",
    )  # fmt: skip
    audit.add_argument(
        "--references", type=int, default=2, metavar="K",
        help="reference models to train here for the likelihood ratio, even; each takes what this site's share of the "
        "run took; 0 = none (default: %(default)s)",
    )  # fmt: skip
    audit.add_argument(
        "--inversions", type=int, default=2, metavar="N",
        help="images to draw from their update; minutes each; 0 = none (default: %(default)s)",
    )  # fmt: skip
    audit.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N (default: auto)")
    audit.set_defaults(command=_audit)
    return parser


def _dashboard(options: argparse.Namespace) -> None:
    from client.dashboard import serve

    serve(
        _site_folder(options),
        options.port,
        ready=lambda address: print(f"Dashboard of this site: {address}  (Ctrl-C ends it)"),
    )


def _ledger(options: argparse.Namespace) -> None:
    from client import ledger_record
    from jointdiff.ledger import summary  # Opacus takes seconds to import

    folder = _site_folder(options)
    try:
        found = summary(folder)
    except RefusedError as error:
        raise RefusedError(f"{error} ({folder})") from error
    if found is None:
        raise RunError(f"There is no privacy ledger in {folder}: nothing was trained with privacy there, or not there.")
    print(json.dumps(found, indent=2) if options.json else "\n".join(ledger_record.lines(found)))


def _egress(options: argparse.Namespace) -> int:
    from client import egress_record, manifest

    folder = _site_folder(options)
    names = manifest.run_names(folder)
    if options.run and options.run not in names:
        raise RunError(f"There is no record of a run '{options.run}' in {folder}: {nearest(options.run, names)}")
    if not names:
        raise RunError(f"There is no record of anything that left in {folder}. Name a site's folder: --site-folder.")
    found = [manifest.read(folder, name) for name in ([options.run] if options.run else names)]
    if options.json:
        print(json.dumps([egress_record.to_json(run) for run in found], indent=2))
    else:
        print("\n".join(line for run in found for line in egress_record.lines(run, explain=options.explain)))
    return RunError.exit_code if any(run.problems for run in found) else 0


def _explain(options: argparse.Namespace) -> None:
    from client.explain import Request, explain_own

    request = Request(
        options.checkpoint, options.image, options.target, options.output, options.site_folder, options.device
    )
    page = explain_own(request, say=print)
    print(f"Explanations, for this site alone: {page}")


def _site_folder(options: argparse.Namespace) -> Path:
    return Path(options.site_folder).expanduser() if options.site_folder else home()


def _audit(options: argparse.Namespace) -> None:
    from client.audit import Request, audit_run

    request = Request(
        options.run, options.site_folder, options.hospital, options.references, options.inversions, options.device
    )
    page = audit_run(request, progress=lambda what: print(what, flush=True))
    print(f"Audit, for this site alone: {page}")


if __name__ == "__main__":
    sys.exit(main())
