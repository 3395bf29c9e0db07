"""The short form of every benchmark, one after the other, about ten minutes: `make bench`.

Each runs in a process of its own; one that fails is named, the others go on, and the exit status says so. The full form
of each is its own command, in the first line of its file. `make bench CHECKPOINT=...` gives sample_quality a trained
network; else one is trained for a minute, whose samples say something about speed and nothing about quality.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.measures import machine

# Module, arguments. A number of samples and steps that gives a table, not an opinion.
SHORT: dict[str, tuple[str, ...]] = {
    "training_step": ("--width", "64", "--repeats", "3", "--steps", "1", "--size-steps", "3", "--batch-size", "8"),
    "round_share": ("--rounds", "3", "--local-steps", "15"),
    "hospitals_growth": ("--small", "--rounds", "3", "--local-steps", "2"),
    "sample_quality": ("--samples", "128", "--steps", "5", "10", "20", "--reference-steps", "50"),
    "latent_speed": ("--sizes", "64", "--count", "2", "--repeats", "3"),
    "preset_cost": ("--sizes", "64", "128"),
    "private_step": ("--batch-size", "16", "--repeats", "3"),
    "secure_aggregation": ("--rounds", "2", "--hospitals", "3"),
    "server_memory": ("--megabytes", "10", "--hospitals", "4", "16"),
    "round_overhead": ("--repeats", "1"),
}


def run(name: str, arguments: Sequence[str]) -> int:
    """Run one benchmark with its output on ours, and return its exit status."""
    began = time.perf_counter()
    print(f"\n## {name} {' '.join(arguments)}\n", flush=True)
    status = subprocess.run([sys.executable, "-m", f"tests.benchmarks.{name}", *arguments], check=False).returncode
    print(f"\n({time.perf_counter() - began:.0f} s)" + (f" FAILED, exit status {status}" if status else ""), flush=True)
    return status


def _checkpoint(folder: Path) -> str:
    """Train a little federation and return its last checkpoint."""
    from jointdiff.config import parse_run_config
    from simulations.local import run_local

    settings = {"home": str(folder), "num-rounds": 2, "local-steps": 10, "explain": 0}
    return str(run_local(parse_run_config(settings)) / "checkpoints" / "last.safetensors")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(SHORT), default=list(SHORT))
    parser.add_argument("--checkpoint", default="", help="for sample_quality")
    options = parser.parse_args(arguments)
    print(f"# Benchmarks, short form\n\n{machine()}", flush=True)
    failed = []
    with tempfile.TemporaryDirectory() as home:
        for name in options.only:
            own: tuple[str, ...] = SHORT[name]
            if name == "sample_quality":
                own = (options.checkpoint or _checkpoint(Path(home)), *own)
            if run(name, own):
                failed.append(name)
    if failed:
        raise SystemExit(f"Failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
