"""`train-local | evaluate`: does joining help? A model of this site alone beside the federation's. Nothing travels."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from client import site_config
from client.commands.common import Commands, say, site_folder, with_site
from jointdiff.overrides import parse_overrides


def add(commands: Commands) -> None:
    """Put the commands into the parser."""
    train = commands.add_parser("train-local", help="train on this site's data alone, to compare with joining")
    train.add_argument(
        "keys", nargs="*", metavar="KEY=VALUE",
        help="run-config keys, as in a federation (simulations/3_hospitals/README.md); without classes=A,B those "
        "of the site's data",
    )  # fmt: skip
    train.set_defaults(command=_train)
    evaluate = commands.add_parser("evaluate", help="a federation's model on this site's own test scans")
    evaluate.add_argument("model", metavar="MODEL.safetensors", help="an exported model, or a run's checkpoint")
    evaluate.add_argument("--device", default="", help="auto | cpu | cuda | cuda:N (default: site.yaml's, else auto)")
    evaluate.set_defaults(command=_evaluate)
    for parser in (train, evaluate):
        parser.add_argument("--json", action="store_true", help="print the ladder as JSON")
    with_site(train, evaluate)


def _train(options: argparse.Namespace) -> None:
    from client.local_baseline import train_local
    from jointdiff.views.terminal import ProgressPrinter

    config = site_config.read(site_folder(options))
    asked = parse_overrides(options.keys)
    if options.json:
        ladder = train_local(config, asked)
    else:
        with ProgressPrinter() as progress:
            ladder = train_local(config, asked, callback=progress)
    _show(options, ladder)


def _evaluate(options: argparse.Namespace) -> None:
    from client.local_baseline import evaluate

    config = site_config.read(site_folder(options))
    _show(options, evaluate(config, Path(options.model).expanduser(), device=options.device))


def _show(options: argparse.Namespace, ladder: dict[str, Any]) -> None:
    from jointdiff.views.live.ladder import lines

    say(json.dumps(ladder, indent=2) if options.json else "\n".join(lines(ladder)))
