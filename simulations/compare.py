"""Compare methods paired over label draws: `python -m simulations.compare --split-seeds 0-9 --run-config "..."`.

Every run goes through the same server and client code in one process. A finished run is found by its name and not
repeated, so an interrupted comparison goes on where it stopped. The evaluation split is read as each run reads it:
choose settings with eval-split=val and other split-seeds, then run the table once.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml

from jointdiff import storage
from jointdiff.config import (
    RunConfig,
    TrainingConfig,
    from_mapping,
    parse_run_config,
    read_preset,
    resolve,
    to_mapping,
)
from jointdiff.data import hospital_data, info_of
from jointdiff.errors import ConfigError, JointDiffError
from jointdiff.events import read_events
from jointdiff.overrides import absolute_paths, parse_overrides

PIXELS = "pixels"  # logistic regression on pixels, all hospitals' kept labels in one place
METHODS = ("joint", "two-stage", "fixmatch", "supervised", PIXELS)
METRICS = ("auc", "balanced_accuracy")
# Two-sided 95% quantiles of Student's t by degrees of freedom; beyond the table the normal quantile.
_T95 = (
    12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09,
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One run's result."""

    method: str
    split_seed: int
    auc: float
    balanced_accuracy: float
    steps: int  # optimiser steps per hospital
    seconds: float


def half_width_95(values: Sequence[float]) -> float:
    """Return half the width of the 95% confidence interval of a mean (Student's t); infinite for one value.

    >>> round(half_width_95([1.0, 2.0, 3.0]), 2)
    2.48
    """
    n = len(values)
    if n < 2:
        return math.inf
    quantile = _T95[n - 2] if n - 2 < len(_T95) else 1.96
    return quantile * float(np.std(values, ddof=1)) / math.sqrt(n)


def parse_seeds(text: str) -> list[int]:
    """Read `0-9` or `0,3,5-7`.

    Raises:
        ConfigError: Something in it is no number and no range.

    >>> parse_seeds("0,3,5-7")
    [0, 3, 5, 6, 7]
    """
    seeds: list[int] = []
    try:
        for part in text.split(","):
            low, _, high = part.partition("-")
            seeds += range(int(low), int(high or low) + 1)
    except ValueError:
        raise ConfigError(f"--split-seeds takes numbers and ranges such as 0-9 or 0,3,5-7, not {text!r}.") from None
    return seeds


def run_one(run: RunConfig, method: str, prefix: str) -> Row:
    """Return one run's result, from its folder if it has finished before.

    Args:
        run: All other settings.
        method: As `choice` reads it.
        prefix: Begins the run's name.

    Raises:
        ConfigError: A run of that name has finished, with other settings.
    """
    kind, preset = choice(method, Path(run.home, "presets"))
    if kind == PIXELS:
        return _pixels(run)
    name = "-".join(filter(None, (prefix, kind, Path(preset).stem, str(run.split_seed))))
    folder = Path(run.home, "runs", name)
    run = absolute_paths(replace(run, method=kind, preset=preset or run.preset, run_name=name))
    if _finished(folder):
        _check_same(folder, run)
    else:
        from simulations.local import run_local

        if folder.exists():  # interrupted: it goes on after its last complete round
            _check_same(folder, run)
        run_local(replace(run, resume=folder.exists()))
    metrics = storage.read_json(folder / "metrics.json")
    pooled = metrics["final"]["pooled"]
    steps = run.num_rounds * run.local_steps
    return Row(method, run.split_seed, pooled["auc"], pooled["balanced_accuracy"], steps, _seconds(folder))


def choice(method: str, folder: Path) -> tuple[str, str]:
    """Read `kind[:preset][+key=value]...`; return the method's kind and its training preset ('' = the kind's own).

    Args:
        method: As the user types it: `joint`, `joint:joint-warmup`, `supervised+learning-rate=0.002+ema-decay=0`.
        folder: A changed preset is written here as a file, named by its content: the same changes, the same file.

    Raises:
        ConfigError: No such method, preset or key, or a value of the wrong type.
    """
    base, *pairs = method.split("+")
    kind, _, preset = base.partition(":")
    if kind not in METHODS:
        raise ConfigError(f"Unknown method '{kind}': known are {', '.join(METHODS)}.")
    if not pairs:
        return kind, preset
    if not all("=" in pair for pair in pairs):
        raise ConfigError(f"Changes to a method are written METHOD+key=value+key=value, not {method!r}.")
    changes = {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    tree = {**read_preset("training", preset or kind), **changes}
    from_mapping(TrainingConfig, tree, f"'{method}'")  # a typo is told before anything is written
    text = yaml.safe_dump(tree)
    path = folder / f"{Path(preset or kind).stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    storage.write_atomic(path, text)
    return kind, str(path)


def _finished(folder: Path) -> bool:
    path = folder / "events.jsonl"
    return path.is_file() and any(event["event"] == "run_finished" for event in read_events(path))


def _check_same(folder: Path, run: RunConfig) -> None:
    """Refuse to take an old run's numbers for those of a run with other settings, presets included."""
    info = info_of(run)
    wanted = resolve(run, channels=info.channels, num_outputs=info.num_outputs, task=info.task).to_dict()
    found = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    for section, values in wanted.items():
        for key, value in values.items():
            if found.get(section, {}).get(key) != value:
                raise ConfigError(
                    f"{folder} has finished with {section} {key}={found.get(section, {}).get(key)!r}, now {value!r} is "
                    "asked for: give another --name, or remove that folder."
                )


def _seconds(folder: Path) -> float:
    (end,) = (e for e in read_events(folder / "events.jsonl") if e["event"] == "run_finished")
    return float(end["duration_s"])


def _pixels(run: RunConfig) -> Row:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    parts = [hospital_data(run, k) for k in range(run.num_hospitals)]
    if parts[0].info.num_outputs != 2 or parts[0].info.task != "multi-class":
        raise ConfigError("The method 'pixels' is for two classes.")
    began = time.perf_counter()
    x = np.concatenate([p.train.images[p.train.labelled] for p in parts]).reshape(-1, parts[0].train.images[0].size)
    y = np.concatenate([p.train.labels[p.train.labelled] for p in parts])
    test = np.concatenate([p.test.images for p in parts]).reshape(-1, x.shape[1])
    truth = np.concatenate([p.test.labels for p in parts])
    model = LogisticRegression(C=0.01, class_weight="balanced", max_iter=5000).fit(x / 127.5 - 1, y)
    scores = model.predict_proba(test / 127.5 - 1)[:, 1]
    auc, balanced = roc_auc_score(truth, scores), balanced_accuracy_score(truth, scores > 0.5)
    return Row(PIXELS, run.split_seed, float(auc), float(balanced), 0, time.perf_counter() - began)


def table(rows: Sequence[Row], metric: str) -> str:
    """Return a Markdown table: a row per draw, then mean, sd, and each method's paired difference to the first."""
    methods = list(dict.fromkeys(row.method for row in rows))
    values = {m: {r.split_seed: getattr(r, metric) for r in rows if r.method == m} for m in methods}
    seeds = sorted(set.intersection(*(set(v) for v in values.values())))
    lines = [f"| split-seed | {' | '.join(methods)} |", "|---" * (1 + len(methods)) + "|"]
    lines += [f"| {s} | " + " | ".join(f"{values[m][s]:.3f}" for m in methods) + " |" for s in seeds]
    columns = {m: [values[m][s] for s in seeds] for m in methods}
    sd = {m: float(np.std(c, ddof=1)) if len(c) > 1 else math.nan for m, c in columns.items()}
    lines.append("| **mean (sd)** | " + " | ".join(f"{np.mean(columns[m]):.3f} ({sd[m]:.3f})" for m in methods) + " |")
    cells = [""]  # nothing to compare the first with
    for other in methods[1:]:
        gaps = [a - b for a, b in zip(columns[methods[0]], columns[other], strict=True)]
        cells.append(f"{np.mean(gaps):+.3f} +- {half_width_95(gaps):.3f}")
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
        default=",".join(METHODS),
        help="comma-separated, METHOD[:PRESET][+key=value]... (default: %(default)s)",
    )
    parser.add_argument("--split-seeds", default="0-9", help="label draws (default: %(default)s)")
    parser.add_argument("--run-config", "-c", action="append", default=[], metavar='"KEY=VALUE ..."')
    parser.add_argument("--name", default="compare", help="begins the runs' names (default: %(default)s)")
    parser.add_argument("--csv", default="", help="also write the rows to this file")
    options = parser.parse_args(arguments)
    try:
        methods = options.methods.split(",")
        base = absolute_paths(parse_run_config({**to_mapping(RunConfig()), **parse_overrides(options.run_config)}))
        base = replace(base, home=str(storage.home(base.home)))
        for method in methods:  # a typo in the last one is told before the first one runs
            choice(method, Path(base.home, "presets"))
        rows: list[Row] = []
        for seed in parse_seeds(options.split_seeds):
            for method in methods:
                row = run_one(replace(base, split_seed=seed), method, options.name)
                rows.append(row)
                print(f"{method:12} split-seed {seed:3}  auc {row.auc:.3f}  {row.seconds:.0f} s", flush=True)
        if options.csv:
            with open(options.csv, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(Row.__dataclass_fields__)
                writer.writerows([getattr(r, f) for f in Row.__dataclass_fields__] for r in rows)
        for metric in METRICS:
            print(f"\n{metric} ({base.eval_split} split of {base.dataset}, {base.num_labels} labels)\n")
            print(table(rows, metric))
        return 0
    except JointDiffError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
