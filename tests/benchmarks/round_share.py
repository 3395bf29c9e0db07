"""Where the time of a run's rounds went: `python -m tests.benchmarks.round_share RUN`.

RUN is a run's folder or its events.jsonl. The share in which no hospital trains, adds up features or evaluates, round
by round with its spread, and what it went into. Made of the run's own events; without RUN a short federation in one
process is measured, which has neither Flower's transport nor processes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jointdiff.config import parse_run_config
from jointdiff.events import read_events
from jointdiff.history import effective
from jointdiff.round_profile import PARTS, hospital_seconds, round_profiles, share_without_work, total_parts
from tests.benchmarks.measures import machine, spread


def print_share(path: Path) -> None:
    """Print the tables of one run."""
    events = effective(read_events(path / "events.jsonl" if path.is_dir() else path))
    profiles = round_profiles(events)
    if not profiles:
        raise SystemExit(f"{path}: no round of this run was evaluated, so there is nothing to profile.")
    parts = total_parts(profiles)
    whole = sum(parts.values())
    print(f"{len(profiles)} rounds, {whole:.0f} s. No hospital at work: {100 * share_without_work(parts):.1f}% of it; "
          f"by round {spread([100 * p.other_share for p in profiles], 1)}%\n")  # fmt: skip
    print("| what | s, all rounds | share | s per round, median (min to max) |\n|---|---|---|---|")
    for name, text in PARTS.items():
        if parts[name]:
            each = spread([profile.parts[name] for profile in profiles], 2)
            print(f"| {text} | {parts[name]:.1f} | {100 * parts[name] / whole:.1f}% | {each} |")
    for hospital, seconds in hospital_seconds(events).items():
        print(f"\n{hospital} says: " + ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()), end="")
    print()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print where the time went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=3, help="of the short federation")
    parser.add_argument("--local-steps", type=int, default=30)
    options = parser.parse_args(arguments)
    print(machine() + "\n")
    if options.run:
        print_share(options.run)
        return
    from simulations.local import run_local

    with tempfile.TemporaryDirectory() as home:
        settings = {"home": home, "num-rounds": options.rounds, "local-steps": options.local_steps, "explain": 0}
        print_share(run_local(parse_run_config(settings)))


if __name__ == "__main__":
    main()
