"""What a private step costs beside a plain one: `python tests/benchmarks/private_step.py`.

The joint loss on the same records of the default model, K = 1 and 4 noised copies each, by turns in one process: CPU
seconds (the ratio's median and range over the repeats), and the peak memory of each kind in a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from jointdiff.config import RunConfig, resolve
from jointdiff.joint_step import TermWeights
from jointdiff.model import JointModel
from jointdiff.privacy import PrivateSteps
from jointdiff.private_training import JointLoss


def make_step(kind: str, batch_size: int, multiplicity: int):
    """Return a function that does one step, and what has to be kept alive."""
    data = {"channels": 1, "num_outputs": 2, "task": "multi-class"}
    config = resolve(RunConfig(noise_multiplier=1.0), **data)
    training = config.training.__class__(**{**vars(config.training), "noise_multiplicity": multiplicity})
    config = config.__class__(config.run, config.model, training)
    torch.manual_seed(0)
    model = JointModel(config.model).train()
    loss = JointLoss(model, config, TermWeights(1.0, 1.0, 1.0), torch.Generator().manual_seed(0))
    x, labels = torch.rand(batch_size, 1, 28, 28) * 2 - 1, torch.randint(-1, 2, (batch_size,))
    probs = torch.rand(batch_size, 2).softmax(dim=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if kind == "plain":

        def plain() -> None:
            optimizer.zero_grad(set_to_none=True)
            loss(loss.draw(x, labels, probs)).mean().backward()
            optimizer.step()

        return plain
    steps = PrivateSteps(
        model, optimizer, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch=batch_size,
        generator=torch.Generator(),
    )  # fmt: skip

    def private() -> None:
        steps.add(loss(loss.draw(x, labels, probs)))
        steps.finish()

    return private


def peak_mb() -> float:
    """Return this process's peak of resident memory (Linux)."""
    (line,) = (row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def peak_growth_of(kind: str, multiplicity: int, batch_size: int) -> float:
    """Return the peak growth over three steps in MB, in a process of its own."""
    command = [sys.executable, __file__, "--batch-size", str(batch_size), "--peak-of", f"{kind}:{multiplicity}"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak-of", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak_of:
        kind, multiplicity = options.peak_of.split(":")
        step = make_step(kind, options.batch_size, int(multiplicity))
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten: a child begins with its parent's
        before = peak_mb()
        for _ in range(3):
            step()
        print(peak_mb() - before)
        return
    print("| K | plain, CPU s | private, CPU s | ratio, median (min to max) | growth of memory, MB: plain | private |")
    print("|---|---|---|---|---|---|")
    for multiplicity in (1, 4):
        steps = {kind: make_step(kind, options.batch_size, multiplicity) for kind in ("plain", "private")}
        seconds: dict[str, list[float]] = {kind: [] for kind in steps}
        for repeat in range(options.repeats + 1):
            for kind, step in steps.items():
                began = time.process_time()
                step()
                if repeat:  # the first one warms up
                    seconds[kind].append(time.process_time() - began)
        ratios = [b / a for a, b in zip(seconds["plain"], seconds["private"], strict=True)]
        peaks = [peak_growth_of(kind, multiplicity, options.batch_size) for kind in steps]
        plain, private = (statistics.median(seconds[kind]) for kind in steps)
        print(
            f"| {multiplicity} | {plain:.2f} | {private:.2f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) | {peaks[0]:.0f} | {peaks[1]:.0f} |"
        )


if __name__ == "__main__":
    main()
