"""A round by the run-config key `speed`, by turns in one process: `python -m tests.benchmarks.speed_setting`.

The network and the keys are a default run's, at an image size; the images are random, half of them labelled. `first` is
the first round, in which a compiler works; seconds per step are of the rounds after it, each a train_round as it is.
Ratios are to the turn of `plain` right beside. A setting that had no compiler says so on standard error.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch

from client.preflight.trial_step import random_data
from jointdiff.config import Config, RunConfig, resolve
from jointdiff.model import JointModel
from jointdiff.run_keys import SPEEDS
from jointdiff.training import select_device, train_round
from tests.benchmarks.measures import CLOCKS, Clock, machine, spread

YARDSTICK = "plain"


def one_round(config: Config, speed: str, device: torch.device, clock: Clock) -> float:
    """Return the seconds of a late round, in which every term counts."""
    run = replace(config.run, speed=speed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = JointModel(config.model).to(device)
    data = random_data(config, device)
    began = clock.now()
    train_round(
        model, data, replace(config, run=run), round_number=run.num_rounds, hospital_index=0, device=device, state=None
    )
    return clock.now() - began


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one row per setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-size", type=int, default=28)
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--local-steps", type=int, default=10, help="of a turn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a network that a compiler is done with in minutes")
    parser.add_argument("--only", nargs="+", choices=SPEEDS, default=list(SPEEDS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="0 = torch's own choice")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = select_device(options.device)
    clock = Clock(options.clock, device)
    run = RunConfig(image_size=options.image_size, batch_size=options.batch_size, local_steps=options.local_steps)
    config = resolve(run, channels=1, num_outputs=2, task="multi-class")
    if options.small:
        small = replace(config.model, name="small", width=8, multipliers=(1, 2), attention_levels=(1,), patch_size=2)
        config = replace(config, model=small)
    print(machine() + "\n")
    print(f"{config.model.name}, {options.image_size} px, batches of {options.batch_size}, {device}, {options.clock}\n")
    print("| speed | first, s | s per step, median (min to max) | times faster than plain |\n|---|---|---|---|")
    one_round(config, YARDSTICK, device, clock)
    for speed in options.only:
        first = one_round(config, speed, device, clock)
        pairs = [[one_round(config, s, device, clock) for s in (YARDSTICK, speed)] for _ in range(options.repeats)]
        steps = [own / options.local_steps for _, own in pairs]
        print(f"| {speed} | {first:.1f} | {spread(steps)} | {spread([a / b for a, b in pairs], 2)} |", flush=True)


if __name__ == "__main__":
    main()
