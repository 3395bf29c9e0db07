"""Latents beside pixels, by size: seconds per training step, sample and counterfactual, and their ratios.

`python -m tests.benchmarks.latent_speed`. Networks and autoencoders are those of the presets with random weights, and
inputs are random: what is computed is the same for trained ones, but for the number of regions that a counterfactual
tries. Samples and counterfactuals of latents count until they are pictures, so decoding is in them; what encoding costs
once per scan stands beside. Contenders take turns in one process.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from client.preflight.trial_step import random_autoencoder, random_data
from jointdiff.config import Config, RunConfig, resolve
from jointdiff.data import ImageSet
from jointdiff.explanation import explain_scans
from jointdiff.latent_run import model_keys
from jointdiff.model import JointModel
from jointdiff.showcase import NUM_STEPS, guided_samples
from jointdiff.spaces import PIXELS, Latents, Space
from jointdiff.training import select_device, train_round
from tests.benchmarks.measures import CLOCKS, Clock, machine, spread

UNITS = ("training step", "sample", "counterfactual")


@dataclass(frozen=True)
class Contender:
    """One network and where it works."""

    config: Config
    model: JointModel
    space: Space


def contenders(image_size: int, batch_size: int, device: torch.device) -> dict[str, Contender]:
    """Return both kinds of one size, by name."""
    run = RunConfig(image_size=image_size, batch_size=batch_size, num_rounds=4, local_steps=1, explain=4)
    pixels = resolve(run, channels=1, num_outputs=2, task="multi-class")
    frozen = random_autoencoder(image_size, 1, device)
    size = frozen.latent_shape[1]
    latents = resolve(replace(run, image_size=size), channels=1, num_outputs=2, task="multi-class")
    told = {name.replace("-", "_"): value for name, value in model_keys(frozen).items()}
    latents = replace(latents, run=run, model=replace(latents.model, image_size=image_size, **told))  # type: ignore[arg-type]
    found = {}
    for name, config, space in (("pixels", pixels, PIXELS), ("latents", latents, Latents(frozen))):
        torch.manual_seed(0)
        model = JointModel(config.model).to(device)
        torch.nn.init.normal_(model.head.linear.weight, std=0.1)
        found[name] = Contender(config, model, space)
    return found


def seconds_of(own: Contender, unit: str, *, count: int, clock: Clock) -> float:
    """Return the seconds of one training step, or of one sample or counterfactual out of a batch of `count`."""
    device = own.model.head.mean.device
    if unit == "training step":
        data = random_data(own.config, device)
        took = []
        for steps in (1, 1 + count):  # what a round costs besides its steps drops out
            config = replace(own.config, run=replace(own.config.run, local_steps=steps))
            work = partial(train_round, own.model, data, config, round_number=3, hospital_index=0, device=device)
            took.append(_timed(partial(work, state=None), clock))
        return (took[1] - took[0]) / count
    if unit == "sample":
        generator = torch.Generator().manual_seed(0)
        targets = np.arange(count) % 2
        return (
            _timed(
                lambda: guided_samples(
                    own.model, own.config, targets, device=device, generator=generator, space=own.space
                ),
                clock,
            )
            / count
        )
    size = own.config.model.image_size
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 1), dtype=np.uint8)
    scans = ImageSet(images, np.zeros(count, np.int64))
    own.model.eval()
    return _timed(lambda: explain_scans(own.model, scans, own.config, device=device, space=own.space), clock) / count


def _timed(work: Callable[[], object], clock: Clock) -> float:
    began = clock.now()
    work()
    return clock.now() - began


def measure(
    image_size: int, *, batch_size: int, count: int, repeats: int, device: torch.device, clock: str
) -> dict[str, dict[str, list[float]]]:
    """Return seconds by unit and contender, one per repeat; and under `encoding` those of one scan's latents."""
    both, watch = contenders(image_size, batch_size, device), Clock(clock, device)
    found: dict[str, dict[str, list[float]]] = {unit: {name: [] for name in both} for unit in UNITS}
    found["encoding"] = {"latents": []}
    images, encode = np.zeros((max(16, count), image_size, image_size, 1), np.uint8), both["latents"].space.inputs
    for _ in range(repeats):
        for unit in UNITS:
            for name, own in both.items():
                found[unit][name].append(seconds_of(own, unit, count=count, clock=watch))
        found["encoding"]["latents"].append(_timed(partial(encode, images), watch) / len(images))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--count", type=int, default=4, help="timed steps; samples and counterfactuals of a batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="0 = torch's own choice")
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall",
        help="cpu: the process's own seconds, for a machine that others use too; with --threads 1",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = select_device(options.device)
    print(f"{machine()}\n\nBatches of {options.batch_size}; samples of {NUM_STEPS} steps; {device}, {options.clock}\n")
    print("| px | one | s on pixels, median (min to max) | s on latents | times faster |\n|---|---|---|---|---|")
    for size in options.sizes:
        found = measure(
            size, batch_size=options.batch_size, count=options.count, repeats=options.repeats, device=device,
            clock=options.clock,
        )  # fmt: skip
        for unit in UNITS:
            pixels, latents = found[unit]["pixels"], found[unit]["latents"]
            ratio = statistics.median(pixels) / statistics.median(latents)
            print(f"| {size} | {unit} | {spread(pixels)} | {spread(latents)} | {ratio:.1f} |", flush=True)
        print(f"| {size} | scan encoded, once | - | {spread(found['encoding']['latents'])} | - |", flush=True)


if __name__ == "__main__":
    main()
