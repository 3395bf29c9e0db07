"""`jointdiff-client COMMAND`: what people at a site type. The commands stand in client/commands/."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from client.commands import explaining, joining, ladder, watching
from jointdiff.command_line import exit_code_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code, or the error's."""
    options = _parser().parse_args(arguments)
    return exit_code_of(lambda: options.command(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jointdiff-client", description="What runs inside one hospital.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in (joining, ladder, watching, explaining):
        group.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
