"""Bytes per hospital and round of each codec beside fp32: `python -m tests.benchmarks.update_bytes`.

Counted from the events of short runs of the default model, all questions of a round together: weights down for
training, for the head and for the evaluation; the update, the head's sums and the counts up. Beside it the seconds
that encoding and decoding one model's change take, and the codec's relative error.

With --train the runs are whole ones over several training seeds, and the table says too what the classifier reached:

    python -m tests.benchmarks.update_bytes --train --seeds 0 1 2 -c "dataset=pneumoniamnist data-root=FOLDER \
        num-labels=60 preset=joint-warmup num-rounds=14 local-steps=30 explain=0"
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jointdiff import codec_wire, codecs
from jointdiff.config import parse_run_config
from jointdiff.events import read_events
from jointdiff.overrides import parse_overrides
from jointdiff.preparation import initial_weights, prepare
from simulations.local import run_local
from tests.benchmarks.measures import machine, spread

PLAIN = "upload=fp32"
SETTINGS = (
    PLAIN,
    "upload=bf16 download=bf16",
    "upload=int8 download=bf16",
    "upload=int8 download=int8",
    "upload=top-k:0.05 download=int8",
    "share=decoder-every:4",
    "share=decoder-every:4 upload=int8 download=int8",
    "share=decoder-every:4 upload=top-k:0.05 download=int8",
)
SHORT = {"num-rounds": 4, "local-steps": 1, "batch-size": 4, "explain": 0}  # a whole period of decoder-every:4


def measure(setting: str, seed: int, home: Path, changes: Mapping[str, Any]) -> dict[str, float]:
    """Run a federation and return its bytes per hospital and round, and what it reached."""
    name = "".join(c if c.isalnum() else "-" for c in f"{setting}-{seed}")
    values = {**changes, **parse_overrides([setting]), "seed": seed, "home": str(home), "run-name": name}
    began = time.perf_counter()
    folder = run_local(parse_run_config(values))
    seconds = time.perf_counter() - began
    events = read_events(folder / "events.jsonl")
    replies = [e for e in events if e["event"] == "hospital_replied" and e["kind"] in ("train", "head", "evaluate")]
    run = parse_run_config(values)
    share = run.num_hospitals * run.num_rounds
    final = json.loads((folder / "metrics.json").read_text())["final"]
    found = {
        "seconds": seconds,
        "down": sum(e["bytes_in"] for e in replies) / share,
        "up": sum(e["bytes_out"] for e in replies) / share,
        "update": sum(e["bytes_out"] for e in replies if e["kind"] == "train") / share,
        "error": statistics.fmean([e["metrics"].get("upload_error", 0.0) for e in replies if e["kind"] == "train"]),
        "auc": final["pooled"]["auc"],
        "lost": float(sum(e["event"] in ("hospital_failed", "hospital_refused", "update_rejected") for e in events)),
    }
    print(f"<!-- {name}: {json.dumps({k: round(v, 4) for k, v in found.items()})} -->", flush=True)
    return found


def encoding_seconds(setting: str, home: Path, repeats: int) -> tuple[float, float]:
    """Return the median seconds of encoding and of decoding one change of the default model."""
    asked = parse_overrides([setting])
    codec = codecs.parse(str(asked.get("upload", codecs.PLAIN)))
    name = f"sizes-{time.monotonic_ns()}"
    weights = initial_weights(prepare(parse_run_config({"home": str(home), "run-name": name}))[0])
    rng = np.random.default_rng(0)
    change = {name: rng.normal(0, 1e-3, array.shape).astype(np.float32) for name, array in weights.items()}
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        began = time.perf_counter()
        packed = codec_wire.pack(codec, change)
        between = time.perf_counter()
        codec_wire.unpack(codec, packed, codecs.layout_of(change))
        seconds[0].append(between - began)
        seconds[1].append(time.perf_counter() - between)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def _kilobytes(number: float) -> str:
    return f"{number / 1000:,.0f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), help="texts of key=value pairs; fp32 is added")
    parser.add_argument("--train", action="store_true", help="whole runs, and their AUC")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="training seeds")
    parser.add_argument("--repeats", type=int, default=5, help="of encoding and decoding")
    parser.add_argument("-c", "--change", action="append", default=[], help="run-config keys of every run")
    options = parser.parse_args(arguments)
    changes = {**({"explain": 0} if options.train else SHORT), **parse_overrides(options.change)}
    settings = [PLAIN, *(setting for setting in options.settings if setting != PLAIN)]
    print(f"{machine()}\n\nKilobytes per hospital and round; in brackets how many times fewer than fp32.\n")
    with tempfile.TemporaryDirectory() as folder:
        found = {s: [measure(s, seed, Path(folder), changes) for seed in options.seeds] for s in settings}
        times = {s: encoding_seconds(s, Path(folder), options.repeats) for s in settings}
    auc = "AUC, median (range) | seconds of a run | " if options.train else ""
    print(f"\n| setting | up | of it the update | down | encode, s | decode, s | relative error | {auc}")
    print("|---" * (9 if options.train else 7) + "|")
    for setting, runs in found.items():
        cells = []
        for key in ("up", "update", "down"):
            own, full = (statistics.fmean([run[key] for run in part]) for part in (runs, found[PLAIN]))
            cells.append(f"{_kilobytes(own)} ({full / own:.1f}x)")
        cells += [f"{seconds:.3f}" for seconds in times[setting]]
        cells.append(f"{statistics.fmean([run['error'] for run in runs]):.4f}")
        if options.train:
            cells += [spread([run["auc"] for run in runs]), f"{statistics.median([r['seconds'] for r in runs]):.0f}"]
        lost = sum(run["lost"] for run in runs)
        print(f"| `{setting}`{f', {lost:.0f} answers lost' if lost else ''} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
