"""`jointdiff-simulate`: check, start, follow and judge one simulation, and leave no process behind.

The order of a run: read the app's defaults and the overrides; check everything that can be checked; start a Flower
daemon of its own; submit; show progress; ask how it ended; stop the daemon; exit with the truth.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import yaml

from jointdiff import storage
from jointdiff.config import RunConfig, to_mapping
from jointdiff.errors import JointDiffError, RunError
from jointdiff.views.terminal import ProgressPrinter
from server.follow import Follower, Verdict, record_end
from simulations import checks, resources
from simulations.flower_daemon import FlowerDaemon

_KEYS_SHOWN = ("dataset", "num-hospitals", "num-labels", "partition", "method", "num-rounds", "local-steps", "device")


class Interrupted(BaseException):
    """A signal asks the launcher to stop. Not an Exception: nothing on the way may swallow it."""

    def __init__(self, number: int) -> None:
        """Remember the signal's number."""
        super().__init__(number)
        self.number = number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one simulation.

    Args:
        arguments: Of the command line; None = those of this process.

    Returns:
        0 for a run that finished; else the error's exit code, or 128 + the signal that stopped it.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["study"]:
        from simulations.study import command

        return command.main(arguments[1:])
    options = _parser().parse_args(arguments)
    started = time.monotonic()
    run: RunConfig | None = None
    try:
        app = checks.find_app(options.simulation)
        if options.resume:
            run, config = checks.prepare_resume(options.resume, options.run_config)
        else:
            run = checks.prepare(app, options.run_config)
            config = checks.check(run)
        if options.dry_run:
            print(yaml.safe_dump(config.to_dict(), sort_keys=False), end="")
            return 0
        verdict = _simulate(app, run)
        if verdict.ok:
            print(f"Done in {time.monotonic() - started:.0f} s, Flower and Ray stopped. Report: {verdict.report}")
            return 0
        for line in verdict.log_lines:
            print(f"  | {line}", file=sys.stderr)
        how = f" To carry it on: {_how_to_resume(run)}" if _can_resume(run) else ""
        raise RunError(f"The run '{run.run_name}' failed: {verdict.cause}{how}")
    except JointDiffError as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (Interrupted, KeyboardInterrupt) as stop:
        number = stop.number if isinstance(stop, Interrupted) else signal.SIGINT
        sys.stdout.flush()
        print(f"stopped by {signal.Signals(number).name}: the run and all its processes have ended.", file=sys.stderr)
        if run is not None and _can_resume(run):
            print(f"to carry it on from its last complete round: {_how_to_resume(run)}", file=sys.stderr)
        return 128 + number


def _can_resume(run: RunConfig) -> bool:
    return (storage.run_path(Path(run.home), run.run_name) / "events.jsonl").exists()


def _how_to_resume(run: RunConfig) -> str:
    """Return the command; the home only where it is not the one that a command without it would take."""
    where = f' -c "home={run.home}"' if Path(run.home) != storage.home() else ""
    return f"jointdiff-simulate --resume {run.run_name}{where}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jointdiff-simulate",
        description="Train several hospitals together on this machine, and write the report.",
        epilog="The keys are described in simulations/3_hospitals/README.md. `jointdiff-simulate study FILE` runs a "
        "whole study: methods by settings, numbers of labels and draws (docs/researcher.md).",
    )
    parser.add_argument(
        "simulation",
        nargs="?",
        default="3_hospitals",
        help="a folder of simulations/, or a path (default: %(default)s)",
    )
    parser.add_argument(
        "--run-config",
        "-c",
        action="append",
        default=[],
        metavar='"KEY=VALUE ..."',
        help="set run-config keys; may be repeated, the last one wins",
    )
    parser.add_argument(
        "--resume",
        default="",
        metavar="RUN-NAME",
        help="carry on an unfinished run from its last complete round, with its own settings",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the configuration, start nothing"
    )
    return parser


def _simulate(app: Path, run: RunConfig) -> Verdict:
    """Start, follow and stop; a run that did not end well leaves Flower's logs."""
    run_folder = Path(run.home, "runs", run.run_name)
    flower_home = Path(run.home, "flower", run.run_name)
    if run.resume:
        shutil.rmtree(flower_home, ignore_errors=True)  # of the attempt that ended early; only its logs are of use
    shared = resources.of_this_machine(run.device, run.num_hospitals)
    _announce(app, run, run_folder)
    events = run_folder / "events.jsonl"
    position = events.stat().st_size if events.exists() else 0
    verdict = Verdict(False, "stopped before its end")
    with _signals_interrupt(), contextlib.ExitStack() as stack:
        try:
            daemon = stack.enter_context(FlowerDaemon(flower_home, extra_environment=shared.environment))
            stack.callback(_ignore_signals)  # runs before the daemon is stopped: cleaning must not end half done
            run_id = daemon.submit(app, to_mapping(run), shared.federation)
            show = stack.enter_context(ProgressPrinter())
            verdict = Follower(daemon, run_id, run_folder, show, position=position).wait()
        except Interrupted as stop:
            verdict = Verdict(False, f"stopped by {signal.Signals(stop.number).name}")
            raise
        finally:
            stack.close()
            record_end(run_folder, verdict)
            if verdict.ok:
                shutil.rmtree(flower_home, ignore_errors=True)
                with contextlib.suppress(OSError):
                    flower_home.parent.rmdir()  # unless another run uses it
            elif flower_home.exists():
                print(f"Flower's logs: {flower_home}", file=sys.stderr)
    return verdict


def _announce(app: Path, run: RunConfig, run_folder: Path) -> None:
    values = to_mapping(run)
    print(f"JointDiff simulation {app.name}: " + " ".join(f"{key}={values[key]}" for key in _KEYS_SHOWN))
    print(f"Run folder: {run_folder}")
    print("Starting Flower and Ray (10 to 20 s) ...", flush=True)


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into Interrupted, once."""

    def interrupt(number: int, _: FrameType | None) -> None:
        _ignore_signals()
        print("\nStopping the run, Flower and Ray ...", file=sys.stderr, flush=True)
        raise Interrupted(number)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
