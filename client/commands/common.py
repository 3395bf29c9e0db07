"""What the commands of a site share: `--site`, and how they speak."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TypeAlias

from client import site_config

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def with_site(*parsers: argparse.ArgumentParser) -> None:
    """Let commands say which site is meant."""
    for parser in parsers:
        parser.add_argument(
            "--site", default="", metavar="PATH",
            help="the site's site.yaml, or the folder that holds it; in a simulation HOME/runs/<run>/sites/<hospital> "
            "(default: the home, JOINTDIFF_HOME or ~/.jointdiff)",
        )  # fmt: skip


def site_folder(options: argparse.Namespace) -> Path:
    """Return the folder that `--site` means."""
    return site_config.site_folder(options.site)


def say(text: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
