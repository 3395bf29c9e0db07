"""Compare methods paired over label draws: `python -m simulations.compare --split-seeds 0-9 --run-config "..."`.

The short way for one setting and one number of labels; `jointdiff-simulate study` is the long one. Every run goes
through the same server and client code in one process. A finished run is found by its name and not repeated, so an
interrupted comparison goes on where it stopped. The evaluation split is read as each run reads it: choose settings
with eval-split=val and other split-seeds, then run the table once.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jointdiff import storage
from jointdiff.command_line import exit_code_of
from jointdiff.config import RunConfig, parse_run_config, to_mapping
from jointdiff.data import hospital_data
from jointdiff.overrides import absolute_paths, parse_overrides
from jointdiff.paired import half_width_95
from simulations.method_choice import KINDS, PIXELS, Method, parse_method, with_method
from simulations.named_run import run_named
from simulations.pixels import run_pixels
from simulations.strict import parse_numbers

METRICS = ("auc", "balanced_accuracy")


@dataclass(frozen=True)
class Row:
    """One run's result."""

    method: str
    split_seed: int
    auc: float
    balanced_accuracy: float
    steps: int  # optimiser steps per hospital
    seconds: float


def run_one(run: RunConfig, method: Method, prefix: str) -> Row:
    """Return one run's result, from its folder if it has finished before.

    Args:
        run: All other settings.
        method: As `parse_method` reads it.
        prefix: Begins the run's name.

    Raises:
        ConfigError: A run of that name has finished, with other settings.
    """
    if method.kind == PIXELS:
        found = run_pixels(run)
    else:
        from simulations.local import run_local

        run = with_method(run, method, Path(run.home, "presets"))
        name = "-".join(filter(None, (prefix, method.kind, Path(run.preset).stem, str(run.split_seed))))
        found = run_named(replace(run, run_name=name), run_local)
    return Row(
        method.name, run.split_seed, found.auc or math.nan, found.balanced_accuracy or math.nan, found.steps,
        found.seconds,
    )  # fmt: skip


def table(rows: Sequence[Row], metric: str) -> str:
    """Return a Markdown table: a row per draw, then mean, sd, and each method's paired difference to the first."""
    methods = list(dict.fromkeys(row.method for row in rows))
    values = {m: {r.split_seed: getattr(r, metric) for r in rows if r.method == m} for m in methods}
    seeds = sorted(set.intersection(*(set(v) for v in values.values())))
    lines = [f"| split-seed | {' | '.join(methods)} |", "|---" * (1 + len(methods)) + "|"]
    lines += [f"| {s} | " + " | ".join(f"{values[m][s]:.3f}" for m in methods) + " |" for s in seeds]
    columns = {m: [values[m][s] for s in seeds] for m in methods}
    if len(seeds) > 1:
        spread = {m: f"{np.mean(c):.3f} ({np.std(c, ddof=1):.3f})" for m, c in columns.items()}
        lines.append("| **mean (sd)** | " + " | ".join(spread[m] for m in methods) + " |")
    cells = [""]  # nothing to compare the first with
    for other in methods[1:]:
        gaps = [a - b for a, b in zip(columns[methods[0]], columns[other], strict=True)]
        limits = f" +- {half_width_95(gaps):.3f}" if len(gaps) > 1 else " (one draw: no interval)"
        cells.append(f"{np.mean(gaps):+.3f}{limits}")
    if len(methods) > 1:
        lines.append(f"| {methods[0]} minus it, 95% | " + " | ".join(cells) + " |")
    first = {m: next(r for r in rows if r.method == m) for m in methods}
    lines.append("| steps per hospital | " + " | ".join(str(first[m].steps) for m in methods) + " |")
    seconds = {m: np.median([r.seconds for r in rows if r.method == m]) for m in methods}
    lines.append("| seconds (median) | " + " | ".join(f"{seconds[m]:.0f}" for m in methods) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a comparison; return 0, or the error's exit code."""
    parser = argparse.ArgumentParser(prog="simulations.compare", description="Compare methods paired over label draws.")
    parser.add_argument(
        "--methods",
        default=",".join(KINDS),
        help="comma-separated, METHOD[:PRESET][+key=value]... (default: %(default)s)",
    )
    parser.add_argument("--split-seeds", default="0-9", help="label draws (default: %(default)s)")
    parser.add_argument("--run-config", "-c", action="append", default=[], metavar='"KEY=VALUE ..."')
    parser.add_argument("--name", default="compare", help="begins the runs' names (default: %(default)s)")
    parser.add_argument("--csv", default="", help="also write the rows to this file")
    options = parser.parse_args(arguments)
    return exit_code_of(lambda: _command(options))


def _command(options: argparse.Namespace) -> None:
    methods = [parse_method(text) for text in options.methods.split(",")]
    base = absolute_paths(parse_run_config({**to_mapping(RunConfig()), **parse_overrides(options.run_config)}))
    base = replace(base, home=str(storage.home(base.home)))
    seeds = parse_numbers(options.split_seeds, "--split-seeds")
    hospital_data(replace(base, split_seed=seeds[0]), 0)  # what is wrong with the data is told before anything runs
    rows: list[Row] = []
    for seed in seeds:
        for method in methods:
            row = run_one(replace(base, split_seed=seed), method, options.name)
            rows.append(row)
            print(f"{method.name:12} split-seed {seed:3}  auc {row.auc:.3f}  {row.seconds:.0f} s", flush=True)
    if options.csv:
        with open(options.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(Row.__dataclass_fields__)
            writer.writerows([getattr(r, f) for f in Row.__dataclass_fields__] for r in rows)
    for metric in METRICS:
        print(f"\n{metric} ({base.eval_split} split of {base.dataset}, {base.num_labels} labels)\n")
        print(table(rows, metric))


if __name__ == "__main__":
    sys.exit(main())
