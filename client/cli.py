"""`jointdiff-client dashboard | audit`: what people at a site type."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jointdiff.command_line import exit_code_of
from jointdiff.storage import home


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, or the error's exit code."""
    options = _parser().parse_args(arguments)
    return exit_code_of(lambda: options.command(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jointdiff-client", description="What runs inside one hospital.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    dashboard = commands.add_parser("dashboard", help="watch this site in a browser: rounds, ledger, galleries, log")
    dashboard.add_argument(
        "--site-folder", default="", metavar="PATH",
        help="the site's own folder, in a simulation HOME/runs/<run>/sites/<hospital> (default: the home)",
    )  # fmt: skip
    dashboard.add_argument("--port", type=int, default=8051, help="on this machine only (default: %(default)s)")
    dashboard.set_defaults(command=_dashboard)

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

    folder = Path(options.site_folder).expanduser() if options.site_folder else home()
    serve(folder, options.port, ready=lambda address: print(f"Dashboard of this site: {address}  (Ctrl-C ends it)"))


def _audit(options: argparse.Namespace) -> None:
    from client.audit import Request, audit_run

    request = Request(
        options.run, options.site_folder, options.hospital, options.references, options.inversions, options.device
    )
    page = audit_run(request, progress=lambda what: print(what, flush=True))
    print(f"Audit, for this site alone: {page}")


if __name__ == "__main__":
    sys.exit(main())
