"""`init | keygen | preview | preflight | start | stop | status`: from an empty folder to a site that takes part."""

from __future__ import annotations

import argparse
import json
from typing import Any

from client import site_config
from client.commands.common import Commands, say, site_folder, with_site
from jointdiff.config import SITES, parse_run_config
from jointdiff.errors import ConfigError


def add(commands: Commands) -> None:
    """Put the commands into the parser."""
    init = commands.add_parser("init", help="write this site's site.yaml by asking, or from answers")
    init.add_argument("--answers", default="", metavar="FILE", help="a YAML file of answers: nothing is asked")
    init.add_argument(
        "keys", nargs="*", metavar="KEY=VALUE", help="answers on the command line, such as server=HOST:PORT"
    )
    init.set_defaults(command=_init)
    keygen = commands.add_parser("keygen", help="make this site's key pair; the private key never leaves")
    keygen.set_defaults(command=_keygen)
    preview = commands.add_parser("preview", help="show what the model will see of this site's data: a page")
    preview.add_argument("--size", type=int, default=28, metavar="N", help="pixels per side (default: %(default)s)")
    preview.add_argument(
        "--classes", default="", metavar="A,B", help="of the federation, in its order (default: those that are found)"
    )
    preview.add_argument("--channels", type=int, default=1, choices=(1, 3), help="1 grey, 3 RGB (default: 1)")
    preview.add_argument("--task", default="multi-class", choices=("multi-class", "multi-label"))
    preview.add_argument("--show-names", action="store_true", help="name files that are odd, on terminal and page")
    preview.set_defaults(command=_preview)
    preflight = commands.add_parser(
        "preflight", help="check everything that a run needs, with the command that mends what is wrong"
    )
    preflight.add_argument(
        "--run-config", nargs="+", default=None, metavar="FILE|KEY=VALUE",
        help="what a run will ask: the coordinator's pyproject.toml or YAML file, or its keys",
    )  # fmt: skip
    preflight.add_argument("--json", action="store_true", help="print JSON")
    preflight.set_defaults(command=_preflight)
    start = commands.add_parser("start", help="connect this site to its federation and keep it connected")
    start.add_argument("--foreground", action="store_true", help="stay in this terminal, or under systemd")
    start.add_argument("--quiet", action="store_true", help="with --foreground: write to supernode.log alone")
    start.set_defaults(command=_start)
    stop = commands.add_parser("stop", help="take leave of the federation; a run goes on without this site")
    stop.set_defaults(command=_stop)
    status = commands.add_parser("status", help="is this site connected, since when, and what was the last trouble")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(command=_status)
    with_site(init, keygen, preview, preflight, start, stop, status)


def _init(options: argparse.Namespace) -> None:
    from client import init

    init.run(site_folder(options), answers_file=options.answers, pairs=options.keys, say=say)


def _keygen(options: argparse.Namespace) -> None:
    from client import keys

    private, public = keys.generate(site_folder(options))
    say(f"Send this to the coordinator: {public}")
    say("Read the fingerprint to him by telephone, so that he knows that it is yours:")
    say(f"  {keys.fingerprint_of(private)}")
    say(f"Never send this to anybody, and leave its mode as it is: {private}")
    say("Who has it can take part in your name. Lost or copied: have the coordinator `revoke` it, and make a new one.")


def _preview(options: argparse.Namespace) -> None:
    from client import preview
    from client.data_look import class_names
    from jointdiff.data import info_of

    config = site_config.read(site_folder(options))
    if config.data is None:
        raise ConfigError(f"{config.path} has no section `data`: `jointdiff-client init` writes it.")
    classes = options.classes or ",".join(class_names(config.data))
    keys = {"dataset": SITES, "num-labels": 0, "classes": classes, "channels": options.channels, "task": options.task,
            "image-size": options.size}  # fmt: skip
    wanted = info_of(parse_run_config(keys))
    found = preview.look(config, wanted, config.cache, show_names=options.show_names, progress=_count)
    say("\n".join(preview.lines(found, show_names=options.show_names)))
    page = preview.preview(config, wanted, config.folder / "preview", show_names=options.show_names)
    say(f"\nWhat the model sees, for this site alone: {page}")


def _count(done: int, total: int) -> None:
    if done % 1000 == 0 and done < total:
        say(f"{done} of {total} images read")


def _preflight(options: argparse.Namespace) -> int:
    from client import preflight

    asked = None if options.run_config is None else preflight.read_run_config(options.run_config)
    facts = preflight.Facts(site_folder(options), asked)
    if options.json:
        found = list(preflight.run(facts))
        say(json.dumps([preflight.to_json(line) for line in found], indent=2))
    else:
        found = []
        for line in preflight.run(facts):
            found.append(line)
            say("\n".join(preflight.lines([line])))
        say(preflight.verdict(found))
    return 1 if any(line.status == preflight.FIX for line in found) else 0


def _start(options: argparse.Namespace) -> None:
    from client import supernode

    config = site_config.read(site_folder(options))
    if options.foreground:
        supernode.run_in_foreground(config, echo=None if options.quiet else say)
        return
    _tell(supernode.start(config))
    say("It goes on in the background: `jointdiff-client status` shows how it stands, `jointdiff-client stop` ends it.")


def _stop(options: argparse.Namespace) -> None:
    from client import supernode

    folder = site_folder(options)
    say("Stopped." if supernode.stop(folder) else f"No SuperNode of this site runs ({folder}).")


def _status(options: argparse.Namespace) -> int:
    from client import site_process, supernode

    folder = site_folder(options)
    found = supernode.status(folder)
    if options.json:
        say(json.dumps(found, indent=2))
    else:
        _tell(found)
        say(f"Log: {folder / site_process.LOG_FILE}")
    return 0 if found["running"] else 1


def _tell(found: dict[str, Any]) -> None:
    from client import status_lines

    for line in status_lines.lines(found):
        say(line)
