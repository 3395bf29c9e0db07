"""`jointdiff-simulate study FILE.yaml`: methods by settings, numbers of labels and draws, and what they add up to.

The order of a study: read the file; check every combination; find what has run before; run the rest, several processes
at a time; write tables after every few runs and at the end. Interrupted, it goes on where it stopped; what fails is
named.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from jointdiff import storage
from jointdiff.command_line import exit_code_of
from jointdiff.errors import ConfigError, RunError, nearest
from jointdiff.overrides import parse_overrides
from simulations.resources import num_cpus
from simulations.study.file import FLWR, read_study
from simulations.study.running import Running

_STUDIES = Path(__file__).parents[1] / "studies"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a study; return 0 where every run has finished, else the error's exit code."""
    options = _parser().parse_args(arguments)
    with _interruptible():
        return exit_code_of(lambda: _command(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jointdiff-simulate study",
        description="Run a study: methods by settings, numbers of labels and draws. Call it again to carry it on.",
        epilog="The file's keys: docs/researcher.md. Shipped studies: simulations/studies/.",
    )
    parser.add_argument("file", help="a study file, or the name of one in simulations/studies/")
    parser.add_argument("--dry-run", action="store_true", help="check everything, list the runs, start nothing")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="runs at a time (default: the file's)")
    parser.add_argument("--home", default="", help="where runs and studies lie (default: JOINTDIFF_HOME)")
    parser.add_argument(
        "--run-config", "-c", action="append", default=[], metavar='"KEY=VALUE ..."',
        help="run-config keys that win over those of `base`, for example data-root=FOLDER",
    )  # fmt: skip
    return parser


def _command(options: argparse.Namespace) -> int:
    study = read_study(find_study(options.file), parse_overrides(options.run_config))
    home = storage.home(options.home)
    workers = options.workers or study.workers or (1 if study.runner == FLWR else num_cpus())
    running = Running(study, home, workers)
    running.look()
    if options.dry_run:
        print("\n".join(running.listing()))
        return 0
    running.folder.mkdir(parents=True, exist_ok=True)
    with _locked(running.folder):
        running.check_data()
        try:
            running.run()
        except KeyboardInterrupt:
            print(f"To carry it on, the same command again; tables so far: {running.folder}", file=sys.stderr)
            raise
    return 0


def find_study(text: str) -> Path:
    """Return the path of a study file: a path, or the name of a shipped one.

    Raises:
        ConfigError: There is no such file.
    """
    for path in (Path(text).expanduser(), _STUDIES / f"{text}.yaml"):
        if path.is_file():
            return path.absolute()
    names = [path.stem for path in _STUDIES.glob("*.yaml")]
    raise ConfigError(f"There is no study file {text!r}; of those shipped with it, {nearest(text, names)}")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(storage.run_locked(folder))
        except RunError:
            raise RunError(
                f"The study in {folder} is running already, in another process: wait for it, or give this one another "
                "name."
            ) from None
        yield


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end a study as Ctrl-C does, and Ctrl-C also where a shell started it deaf, in its background."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
