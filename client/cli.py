"""`jointdiff-client dashboard`: what people at a site type."""

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
    return parser


def _dashboard(options: argparse.Namespace) -> None:
    from client.dashboard import serve

    folder = Path(options.site_folder).expanduser() if options.site_folder else home()
    serve(folder, options.port, ready=lambda address: print(f"Dashboard of this site: {address}  (Ctrl-C ends it)"))


if __name__ == "__main__":
    sys.exit(main())
