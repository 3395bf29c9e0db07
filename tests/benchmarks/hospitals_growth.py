"""What a round costs by the number of hospitals: `python -m tests.benchmarks.hospitals_growth`.

A federation in one process, each hospital with as many images, steps and labels as in every other case, each number of
hospitals in a process of its own. One round warms up. Seconds per hospital are a round's, shared by its hospitals;
`not at work` is the share in which none trains, adds up features or evaluates: what grows there is the server's. With
--clock cpu the seconds are the process's own, for a machine that others use too (with OMP_NUM_THREADS=1); the share
stays one of the wall's.
Peak memory is the growth over what was there before the run, and includes the images of all hospitals. With --small the
network has a few thousand weights: what is not the network counts the more, and 100 hospitals are done in a minute.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jointdiff.config import parse_run_config
from jointdiff.events import read_events
from jointdiff.history import effective
from jointdiff.round_profile import round_profiles, share_without_work, total_parts
from tests.benchmarks.measures import CLOCKS, forget_peak, machine, memory, spread

SMALL = "width: 8\nmultipliers: [1]\npatch-size: 4\nnum-blocks: 1\nattention-levels: []\n"
IMAGES = 60  # of each hospital: 40 to train on, 20 to test


def one_case(
    num_hospitals: int, num_rounds: int, local_steps: int, clock: str = "wall", small: bool = False
) -> dict[str, Any]:
    """Run a federation and return the seconds of its rounds after the first, the share without work, the growth."""
    starts: list[float] = []
    ends: list[float] = []

    def follow(event: dict[str, Any]) -> None:
        if event["event"] == "round_started":
            starts.append(CLOCKS[clock]())
        elif event["event"] in ("evaluated", "checkpoint_saved"):  # the last of a round's counts
            ends[len(starts) - 1 :] = [CLOCKS[clock]()]

    from simulations.local import run_local

    with tempfile.TemporaryDirectory() as home:
        rng, count = np.random.default_rng(0), IMAGES * num_hospitals
        images, labels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count) % 2
        train = 2 * count // 3
        parts = {"train_images": images[:train], "train_labels": labels[:train], "test_images": images[train:],
                 "test_labels": labels[train:]}  # fmt: skip
        np.savez(f"{home}/data.npz", **parts)
        settings: dict[str, Any] = {
            "dataset": f"npz:{home}/data.npz", "num-hospitals": num_hospitals, "num-labels": 4 * num_hospitals,
            "num-rounds": num_rounds + 1, "local-steps": local_steps, "explain": 0, "device": "cpu", "home": home,
        }  # fmt: skip
        if small:
            Path(home, "small.yaml").write_text(SMALL, encoding="utf-8")
            settings["model"] = f"{home}/small.yaml"
        before = forget_peak()
        folder = run_local(parse_run_config(settings), callback=follow)
        profiles = round_profiles(effective(read_events(folder / "events.jsonl")))[1:]
        return {
            "rounds": [end - start for start, end in zip(starts, ends, strict=True)][1:],
            "other": share_without_work(total_parts(profiles)),
            "memory": memory() - before,
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one row per number of hospitals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hospitals", type=int, nargs="+", default=[3, 10, 30, 100])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--local-steps", type=int, default=3)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--small", action="store_true", help="a network of a few thousand weights")
    parser.add_argument("--case", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case:
        print(json.dumps(one_case(options.case, options.rounds, options.local_steps, options.clock, options.small)))
        return
    print(machine() + "\n")
    print("| hospitals | s per round | s per hospital and round, median (min to max) | not at work | peak growth, MB | "
          "MB per hospital |\n|---|---|---|---|---|---|")  # fmt: skip
    for count in options.hospitals:
        command = [
            sys.executable, "-m", "tests.benchmarks.hospitals_growth", "--case", str(count), "--rounds",
            str(options.rounds), "--local-steps", str(options.local_steps), "--clock", options.clock,
            *(["--small"] if options.small else []),
        ]  # fmt: skip
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found = json.loads(output.splitlines()[-1])
        each = spread([seconds / count for seconds in found["rounds"]], 3)
        print(f"| {count} | {statistics.median(found['rounds']):.1f} | {each} | {100 * found['other']:.1f}% | "
              f"{found['memory'] / 1e6:.0f} | {found['memory'] / 1e6 / count:.1f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
