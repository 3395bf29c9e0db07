"""A joint training step beside three plain fp32 passes: `python -m tests.benchmarks.training_step`.

First at the authors' architecture (128 channels, 3 blocks, 32 px), by turns in one process, the same number of images
everywhere. Ours is train_round itself: data, views, pseudo-labels, optimiser and all. Plain are three passes with three
backwards and one AdamW step on tensors that are there, in fp32 and the default memory format: once through the whole
network each (`full`), once without the decoder where only features are wanted (`lean`). Then seconds and memory per
step of our own networks, and the share of a step that is not the network: data, views, loss, optimiser, bookkeeping.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional as F

from jointdiff import labeller, training
from jointdiff.augment import Views, ViewSource
from jointdiff.batches import Batches
from jointdiff.config import Config, ModelConfig, RunConfig, resolve
from jointdiff.data import HospitalData, hospital_data
from jointdiff.model import JointModel, pool, to_network
from jointdiff.schedule import SCHEDULES
from jointdiff.spaces import view_source
from jointdiff.training import select_device, train_round
from tests.benchmarks.measures import CLOCKS, Clock, forget_peak, machine, memory, spread

# improved-diffusion's network for 32 px with 128 channels and three blocks, which the authors' code builds on
AUTHORS = ModelConfig(
    name="authors-32", image_size=32, patch_size=1, width=128, multipliers=(1, 2, 2, 2), num_blocks=3,
    attention_levels=(1, 2),
)  # fmt: skip


@dataclass
class StepTimes:
    """Seconds of the steps of a round, and of their parts."""

    steps: list[float] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def other_share(self) -> float:
        """The share of a step in which the network computes neither forward nor backward."""
        return 1 - self.parts["network"] / sum(self.steps)


@contextmanager
def timed_parts(clock: Clock) -> Iterator[StepTimes]:
    """Time what train_round calls, from outside: training itself carries no clock. A GPU is waited for at each border.

    Parts do not overlap: what is called inside another part counts there. The first step warms up and is left out.
    """
    found, depth, ends = StepTimes(), [0], [0.0]

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if depth[0]:
                return call(*args, **kwargs)
            depth[0] += 1
            began = clock.now()
            try:
                return call(*args, **kwargs)
            finally:
                depth[0] -= 1
                found.parts[name] = found.parts.get(name, 0.0) + clock.now() - began

        return wrapper

    def timed_source(data: HospitalData, *, latent: bool) -> ViewSource:
        source = view_source(data, latent=latent)
        return source._replace(views=Views(*(timed("augmentation", view) for view in source.views)))

    step = torch.optim.AdamW.step

    def stepped(*args: Any, **kwargs: Any) -> Any:
        result = timed("optimiser", step)(*args, **kwargs)
        now = clock.now()
        if ends[0]:
            found.steps.append(now - ends[0])
        else:
            found.parts.clear()
        ends[0] = now
        return result

    with ExitStack() as stack:
        for owner, name, part in (
            (Batches, "__init__", "data"), (Batches, "take", "data"), (Batches, "labels", "data"),
            (JointModel, "denoise", "network"), (JointModel, "classify", "network"),
            (torch.Tensor, "backward", "network"), (torch.nn.utils, "clip_grad_norm_", "optimiser"),
        ):  # fmt: skip
            stack.enter_context(patch.object(owner, name, timed(part, getattr(owner, name))))
        stack.enter_context(patch.object(training, "view_source", timed_source))
        stack.enter_context(patch.object(torch.optim.AdamW, "step", stepped))
        yield found


def configuration(model: ModelConfig | None, image_size: int, batch_size: int, **changes: Any) -> Config:
    """Return the default method's configuration, all terms of the loss on, for a network or our own of that size."""
    run = RunConfig(image_size=image_size, batch_size=batch_size, num_rounds=4, num_labels=0)
    config = resolve(run, channels=1, num_outputs=2, task="multi-class")
    terms = replace(config.training, pseudo_start_fraction=0.0, labelled_batch=batch_size, **changes)
    return Config(run=run, model=model or config.model, training=terms)


def our_steps(config: Config, device: torch.device, num_steps: int, clock: str = "wall") -> StepTimes:
    """Return the times of `num_steps` steps of train_round on phantoms, half of them labelled."""
    data = hospital_data(replace(config.run, num_labels=600), 0)
    torch.manual_seed(0)
    model = JointModel(config.model).to(device)
    config = replace(config, run=replace(config.run, local_steps=num_steps + 1))
    with timed_parts(Clock(clock, device)) as found:
        train_round(model, data, config, round_number=3, hospital_index=0, device=device, state=None)
    return found


def plain_steps(
    config: Config, device: torch.device, num_steps: int, clock_kind: str = "wall", *, full: bool
) -> StepTimes:
    """Return the times of as many steps of three passes in fp32, each with its own backward."""
    torch.manual_seed(0)
    model = JointModel(config.model).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images = hospital_data(config.run, 0).train.images[: config.run.batch_size]
    x = to_network(images, device)
    alpha_bar = SCHEDULES[config.training.schedule](config.training.num_timesteps).to(device)
    labels, t = torch.zeros(len(x), dtype=torch.int64, device=device), torch.full((len(x),), 300, device=device)
    a, eps = alpha_bar[300], torch.randn_like(x)

    def logits() -> torch.Tensor:
        if not full:
            return model.classify(x)
        emb = model.unet.embed(torch.zeros_like(t))
        maps = model.unet.encode(x, emb)
        return model.head(pool(maps)) + 0 * model.unet.decode(maps, emb).mean()

    found, clock = StepTimes(), Clock(clock_kind, device)
    for step in range(num_steps + 1):
        began = clock.now()
        optimizer.zero_grad(set_to_none=True)
        F.mse_loss(model.denoise(a.sqrt() * x + (1 - a).sqrt() * eps, t), eps).backward()
        F.cross_entropy(logits(), labels).backward()
        F.cross_entropy(logits(), labels).backward()
        optimizer.step()
        if step:
            found.steps.append(clock.now() - began)
    return found


def compare(
    model: ModelConfig, device: torch.device, *, batch_size: int, repeats: int, steps: int, clock: str = "wall"
) -> dict[str, list[float]]:
    """Return the seconds of a step, one per repeat, of each contender; they take turns."""
    kinds: dict[str, Callable[[], StepTimes]] = {
        "plain, full": lambda: plain_steps(config, device, steps, clock, full=True),
        "plain, lean": lambda: plain_steps(config, device, steps, clock, full=False),
        "ours, teacher=global": lambda: our_steps(global_teacher, device, steps, clock),
        "ours, teacher=local": lambda: our_steps(config, device, steps, clock),
    }
    config = configuration(model, model.image_size, batch_size)
    global_teacher = configuration(model, model.image_size, batch_size, teacher="global", pseudo_policy="fixed")
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    with patch.object(labeller, "predict", _constant_teacher):
        for _ in range(repeats):
            for kind, run in kinds.items():
                seconds[kind].append(statistics.median(run().steps))
    return seconds


def _constant_teacher(model: JointModel, images: Any, *, device: torch.device) -> Any:
    """Stand in for the teacher's predictions, made once a round and outside the steps: here a round is a few steps."""
    return torch.full((len(images), model.config.num_outputs), 1 / model.config.num_outputs).numpy()


def one_size(image_size: int, batch_size: int, steps: int, device: torch.device, clock: str) -> dict[str, Any]:
    """Return seconds, peak growth of memory in bytes, parts and the share outside the network, of our own network."""
    config = configuration(None, image_size, batch_size)
    hospital_data(replace(config.run, num_labels=600), 0)
    before = forget_peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    found = our_steps(config, device, steps, clock)
    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory() - before
    total = sum(found.steps)
    parts = {name: seconds / total for name, seconds in found.parts.items()}
    return {"steps": found.steps, "memory": on_device, "parts": parts, "other": found.other_share}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--authors-batch-size", type=int, default=4, help="0 leaves the comparison out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="timed steps per turn")
    parser.add_argument("--size-steps", type=int, default=10, help="timed steps at each size")
    parser.add_argument("--sizes", type=int, nargs="+", default=[28, 64, 128])
    parser.add_argument("--width", type=int, default=AUTHORS.width, help="of the authors' architecture")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="0 = torch's own choice")
    parser.add_argument("--one-size", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="cpu: the process's own seconds, for a machine that others use too; with --threads 1",
    )
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = select_device(options.device)
    if options.one_size:
        print(json.dumps(one_size(options.one_size, options.batch_size, options.size_steps, device, options.clock)))
        return
    print(machine() + "\n")
    if options.authors_batch_size:
        model = replace(AUTHORS, width=options.width)
        seconds = compare(
            model,
            device,
            batch_size=options.authors_batch_size,
            repeats=options.repeats,
            steps=options.steps,
            clock=options.clock,
        )
        millions = sum(p.numel() for p in JointModel(model).parameters()) / 1e6
        print(f"Width {model.width}, 3 blocks, 32 px, {millions:.1f} M parameters; batches of "
              f"{options.authors_batch_size}, {device}\n")  # fmt: skip
        print("| step | s, median (min to max) | times faster than plain, full | than plain, lean |\n|---|---|---|---|")
        for kind, own in seconds.items():
            ratios = [[a / b for a, b in zip(seconds[f"plain, {p}"], own, strict=True)] for p in ("full", "lean")]
            print(f"| {kind} | {spread(own)} | {spread(ratios[0], 2)} | {spread(ratios[1], 2)} |")
    print(f"\nOur own networks, batches of {options.batch_size}, {device}, each in a process of its own\n")
    print("| px | s per step, median (min to max) | peak growth, MB | not the network | data | augmentation | "
          "optimiser |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for size in options.sizes:
        command = [sys.executable, "-m", "tests.benchmarks.training_step", "--one-size", str(size)]
        for name in ("batch_size", "size_steps", "threads", "device", "clock"):
            command += ["--" + name.replace("_", "-"), str(getattr(options, name))]
        found = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        )
        shares = [f"{100 * found['parts'].get(name, 0):.1f}%" for name in ("data", "augmentation", "optimiser")]
        print(f"| {size} | {spread(found['steps'])} | {found['memory'] / 1e6:.0f} | {100 * found['other']:.1f}% | "
              f"{' | '.join(shares)} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
