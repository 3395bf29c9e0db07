"""`jointdiff-server runs | report | dashboard | resume | export | prune | tensorboard`: what the coordinator types."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from jointdiff import storage
from jointdiff.command_line import exit_code_of
from jointdiff.errors import ConfigError, RunError, nearest
from jointdiff.views.format import MISSING, num_bytes, number
from jointdiff.views.terminal import printable
from server import prune, resume, runs
from server.commands import certificates, deployment, hospitals

_COLUMNS = ("run", "state", "round", "method", "data", "hospitals", "AUC", "bal.acc", "started (UTC)", "size")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, or the error's exit code."""
    options = _parser().parse_args(arguments)
    return exit_code_of(lambda: options.command(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jointdiff-server", description="See, carry on and clear away runs.")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    everywhere = argparse.ArgumentParser(add_help=False)
    everywhere.add_argument(
        "--home", default="", metavar="FOLDER", help="where `runs` lies (default: $JOINTDIFF_HOME, else ~/.jointdiff)"
    )
    one_run = argparse.ArgumentParser(add_help=False)
    one_run.add_argument("run", metavar="RUN", help="the run's name, or `latest`")

    listing = commands.add_parser("runs", parents=[everywhere], help="list all runs, the newest first")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(command=_runs)

    report = commands.add_parser("report", parents=[one_run, everywhere], help="write a run's report.html again")
    report.set_defaults(command=_report)

    dashboard = commands.add_parser("dashboard", parents=[everywhere], help="watch the runs in a browser")
    dashboard.add_argument("--port", type=int, default=8050, help="on this machine only (default: %(default)s)")
    dashboard.set_defaults(command=_dashboard)

    on = commands.add_parser("resume", parents=[one_run, everywhere], help="carry on a run that stopped")
    on.add_argument(
        "--run-config", "-c", action="append", default=[], metavar='"KEY=VALUE ..."', help="keys that may change"
    )
    on.set_defaults(command=_resume)

    export = commands.add_parser("export", parents=[one_run, everywhere], help="one file: weights with a model card")
    export.add_argument("--kind", choices=("best", "last"), default="best", help="default: %(default)s")
    export.add_argument("--output", "-o", metavar="FILE", help="default: <run>-<kind>.safetensors")
    export.add_argument("--card", metavar="FILE.md", help="write the card into a file of its own too")
    export.set_defaults(command=_export)

    away = commands.add_parser("prune", parents=[everywhere], help="remove old runs; lists them unless told --yes")
    away.add_argument("names", nargs="*", metavar="RUN", help="only these; the newest run only if it is named")
    away.add_argument("--keep", type=_count, default=0, metavar="N", help="spare the newest N of all runs")
    away.add_argument("--older-than", type=_days, default=0.0, metavar="DAYS", help="only runs that started before")
    away.add_argument("--state", type=_states, default=(), metavar="S,S", help=f"only: {', '.join(runs.ENDED)}")
    away.add_argument("--dry-run", action="store_true", help="list, remove nothing")
    away.add_argument("--yes", "-y", action="store_true", help="remove without asking")
    away.set_defaults(command=_prune)

    board = commands.add_parser("tensorboard", parents=[one_run, everywhere], help="write TensorBoard files of a run")
    board.add_argument("--follow", action="store_true", help="go on until the run has ended")
    board.set_defaults(command=_tensorboard)
    for group in (certificates, hospitals, deployment):
        group.add_commands(commands)
    return parser


def _runs(options: argparse.Namespace) -> None:
    home = runs.home_folder(options.home)
    found = runs.list_runs(home)
    if options.json:
        print(json.dumps([run.to_dict() for run in found], indent=2))
        return
    if not found:
        print(f"No run yet in {home / 'runs'}.")
        return
    rows = [_COLUMNS, *map(_row, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(run: runs.RunSummary) -> tuple[str, ...]:
    counted = f"{run.round}/{MISSING if run.num_rounds is None else run.num_rounds}"
    texts = (run.name, run.state, counted, run.method or MISSING, run.dataset or MISSING)
    numbers = (number(run.num_hospitals), number(run.auc), number(run.balanced_accuracy))
    when = run.started[:16].replace("T", " ")
    return (*map(printable, texts), *numbers, when, num_bytes(run.num_bytes))


def _report(options: argparse.Namespace) -> None:
    from jointdiff.views.report import write_report

    print(write_report(_find(options)))


def _dashboard(options: argparse.Namespace) -> None:
    from server.dashboard import serve

    def say(address: str) -> None:
        print(f"Dashboard: {address} (Ctrl-C ends it)", flush=True)

    serve(runs.home_folder(options.home), options.port, ready=say)


def _resume(options: argparse.Namespace) -> int:
    folder = _find(options)
    if resume.check_resumable(folder) == "deployment":
        keys = [word for text in options.run_config for word in ("--run-config", text)]
        return main(["run", "--resume", folder.name, "--home", str(folder.parent.parent), *keys])
    return resume.launch(folder, options.run_config)


def _export(options: argparse.Namespace) -> None:
    folder = _find(options)
    output = storage.writable(options.output or f"{folder.name}-{options.kind}.safetensors")
    card = storage.writable(options.card) if options.card else None
    from server.export import export

    print(export(folder, options.kind, output, card))
    if card is not None:
        print(card)


def _prune(options: argparse.Namespace) -> None:
    if not (options.names or options.keep or options.older_than or options.state):
        raise ConfigError("Say which runs may go: their names, --keep N, --older-than DAYS, or --state failed,...")
    home = runs.home_folder(options.home)
    names = [runs.find_run(home, name).name for name in options.names]
    found = runs.list_runs(home)
    for run in found:
        if run.name in names and run.state == runs.RUNNING:
            raise RunError(f"The run '{run.name}' is being written and cannot be removed. Wait until it has ended.")
    chosen = prune.choose(
        found, now=datetime.now(UTC), latest=(home / "runs" / storage.LATEST).resolve().name, names=names,
        keep=options.keep, older_than_days=options.older_than, states=options.state,
    )  # fmt: skip
    for run in chosen:
        size = num_bytes(sum(map(runs.num_bytes_below, prune.parts_of(home, run.name))))
        print(f"{printable(run.name)}  {run.state}  {run.started[:10]}  {size}")
    if options.dry_run or not (options.yes or _agreed(len(chosen))):
        print(f"{len(chosen)} of {len(found)} runs. Nothing was removed; with --yes they would be.")
        return
    freed = prune.sweep(home) + sum(prune.remove(home, run.name) for run in chosen)
    print(f"{len(chosen)} runs removed, {num_bytes(freed)} freed.")
    compacted = prune.compact(home)
    if compacted.num_files:
        print(f"Flower's databases: {compacted.num_files} compacted, {num_bytes(compacted.num_bytes)} freed.")
    for line in compacted.skipped:
        print(f"Not compacted: {line}")


def _agreed(count: int) -> bool:
    return count > 0 and sys.stdin.isatty() and input(f"Remove these {count} runs? [y/N] ").strip().lower() == "y"


def _tensorboard(options: argparse.Namespace) -> None:
    from server.tracking import follow, write_tensorboard

    folder = _find(options)
    target = folder / "tensorboard"
    command = f"tensorboard --logdir {shlex.quote(str(target))}"
    if options.follow:
        print(f"Writing until the run ends. Look at it with: {command}", flush=True)
        follow(folder)
        return
    write_tensorboard(folder)
    print(command)


def _find(options: argparse.Namespace) -> Path:
    return runs.find_run(runs.home_folder(options.home), options.run)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no count: give a whole number from 0")
    return int(text)


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days < 36_500:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days")
    return days


def _states(text: str) -> tuple[str, ...]:
    states = tuple(text.split(","))
    for state in states:
        if state not in runs.ENDED:
            raise argparse.ArgumentTypeError(f"unknown state {state!r}: {nearest(state, runs.ENDED)}")
    return states


if __name__ == "__main__":
    sys.exit(main())
