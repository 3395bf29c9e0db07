"""What a training step of either phase costs, by the size of scans: `python -m tests.benchmarks.preset_cost`.

Seconds and memory. The presets of configs/autoencoder, and the networks that `model=auto` takes on their latents and on
the pixels themselves, on random scans; each in a process of its own, whose first round warms up. Memory is the peak
growth over what was there before: of the process, or on a GPU of the device. Private steps: private_step.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from client.preflight.trial_step import random_autoencoder, random_data
from jointdiff.autoencoder_training import train_autoencoder_round
from jointdiff.config import RunConfig, resolve
from jointdiff.training import select_device, train_round
from tests.benchmarks.latent_speed import contenders
from tests.benchmarks.measures import CLOCKS, Clock, forget_peak, machine, memory, spread

PHASES = ("autoencoder", "latents", "pixels")


def rounds_of(phase: str, image_size: int, batch_size: int, device: torch.device) -> Callable[[int], None]:
    """Return what trains a phase for so many steps, on data that is there already."""
    network: torch.nn.Module
    train: Callable[..., Any]
    if phase == "autoencoder":
        run = RunConfig(image_size=image_size, batch_size=batch_size, method="autoencoder", explain=0)
        config = resolve(run, channels=1, num_outputs=2, task="multi-class")
        network, train = random_autoencoder(image_size, 1, device).autoencoder, train_autoencoder_round
        network.train().requires_grad_(True)
    else:
        own = contenders(image_size, batch_size, device)[phase]
        network, config, train = own.model, own.config, train_round
    data = random_data(config, device)

    def work(steps: int) -> None:
        asked = replace(config, run=replace(config.run, local_steps=steps))
        train(network, data, asked, round_number=3, hospital_index=0, device=device, state=None)

    return work


def measure(
    phase: str, image_size: int, batch_size: int, steps: int, device: torch.device, clock: str
) -> dict[str, Any]:
    """Return seconds per step, one for each of three rounds of `steps`, and the peak growth in bytes."""
    work, watch, seconds = rounds_of(phase, image_size, batch_size, device), Clock(clock, device), []
    before = forget_peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    work(1)
    for _ in range(3):
        took = []
        for count in (1, 1 + steps):  # what a round costs besides its steps drops out
            began = watch.now()
            work(count)
            took.append(watch.now() - began)
        seconds.append((took[1] - took[0]) / steps)
    grown = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory() - before
    return {"seconds": seconds, "memory": grown}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one row per size and phase."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 224, 256])
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES[:2])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2, help="timed steps per round, of three rounds")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="0 = torch's own choice")
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall",
        help="cpu: the process's own seconds, for a machine that others use too; with --threads 1",
    )  # fmt: skip
    parser.add_argument("--case", nargs=2, metavar=("PHASE", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = select_device(options.device)
    if options.case:
        phase, size = options.case
        print(json.dumps(measure(phase, int(size), options.batch_size, options.steps, device, options.clock)))
        return
    print(f"{machine()}\n\nBatches of {options.batch_size}; {device}, {options.clock} seconds\n")
    print("| px | training | s per step, median (min to max) | ms per scan | peak growth, MB |\n|---|---|---|---|---|")
    for size in options.sizes:
        for phase in options.phases:
            command = [sys.executable, "-m", "tests.benchmarks.preset_cost", "--case", phase, str(size)]
            for name in ("batch_size", "steps", "threads", "device", "clock"):
                command += ["--" + name.replace("_", "-"), str(getattr(options, name))]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found = json.loads(output.splitlines()[-1])
            each = 1000 * statistics.median(found["seconds"]) / options.batch_size
            print(f"| {size} | {phase} | {spread(found['seconds'])} | {each:.0f} | {found['memory'] / 1e6:.0f} |",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
