"""Samples by evaluations of the network: `python -m tests.benchmarks.sample_quality CHECKPOINT`.

KID on the fixed feature net, with its standard error, of samples against as many real images that the model may have
seen (a simulated run's training images, all hospitals together), for DDIM and DPM-Solver++ at few evaluations beside
ancestral sampling at many, and real images against real ones. All samplers start from the same noise. Seconds per image
are of the whole sampler, on the device, in this process.

With --keep FILE.jsonl rows, and the batches of the row under way, are written down as they come; the same command
takes up where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jointdiff import fidelity
from jointdiff.data import hospital_data
from jointdiff.fidelity import FeatureNet
from jointdiff.showcase import GUIDANCE, guided_samples
from jointdiff.storage import atomic_path
from jointdiff.trained import Trained, open_trained
from tests.benchmarks.measures import machine

FEW = ("ddim", "dpm-solver")


def measure(
    trained: Trained,
    *,
    num_samples: int,
    steps: Sequence[int],
    reference_steps: int,
    scale: float = 0.0,
    seed: int = 0,
    batch_size: int = 64,
    kept: Kept | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield one row per sampler and number of evaluations: sampler, evaluations, kid, error, difference, s_per_image.

    What is `kept` is not done again. `difference` is to the reference's KID,
    in standard errors of the difference of two independent ones: an upper bound of its spread, since real images and
    first noise are shared.
    """
    run, num_outputs, kept = trained.config.run, trained.config.model.num_outputs, kept or Kept(None, {})
    images = np.concatenate([hospital_data(run, k).train.images for k in range(run.num_hospitals)])
    chosen = np.random.default_rng(seed).permutation(len(images))
    half = min(num_samples, len(images) // 2)
    net = FeatureNet(trained.config.model.channels)
    real, others = (net.features(images[part]) for part in (chosen[:half], chosen[half : 2 * half]))
    targets = np.arange(num_samples) % num_outputs
    found = fidelity.kid(others, real)
    yield {"sampler": "real images", "evaluations": 0, "kid": found.value, "error": found.standard_error}
    reference: dict[str, Any] = {}
    for sampler, count in [("ddpm", reference_steps), *((name, n) for n in steps for name in FEW)]:
        row = kept.rows.get((sampler, count))
        if row is None:
            generator = torch.Generator(trained.device).manual_seed(seed)
            samples, seconds = kept.batches((sampler, count), generator)
            while (done := sum(map(len, samples))) < num_samples:
                began = time.perf_counter()
                samples.append(guided_samples(
                    trained.model, trained.config, targets[done : done + batch_size], device=trained.device,
                    generator=generator, num_steps=count, scale=scale, sampler=sampler, batch_size=batch_size,
                ))  # fmt: skip
                seconds += time.perf_counter() - began
                kept.add_batches((sampler, count), samples, seconds, generator)
            found = fidelity.kid(net.features(np.concatenate(samples)), real)
            row = {"sampler": sampler, "evaluations": count, "kid": found.value, "error": found.standard_error,
                   "s_per_image": seconds / num_samples}  # fmt: skip
        reference = reference or row
        error = float(np.hypot(row["error"], reference["error"]))
        yield {**row, "difference": (row["kid"] - reference["kid"]) / error}


class Kept:
    """Rows in a file, one a line, under a heading that says what they are rows of; beside it the row under way.

    Args:
        path: None: nothing is kept.
        heading: Whatever decides the rows.

    Raises:
        SystemExit: The file holds rows of something else.
    """

    def __init__(self, path: Path | None, heading: Mapping[str, Any]) -> None:
        self._path = path
        self.rows: dict[tuple[str, int], dict[str, Any]] = {}
        if path is None:
            return
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if not lines:
            path.write_text(json.dumps(heading) + "\n", encoding="utf-8")
        elif json.loads(lines[0]) != heading:
            raise SystemExit(f"{path} holds rows of other settings ({lines[0]}): name another file.")
        for line in lines[1:]:
            row = json.loads(line)
            self.rows[row["sampler"], row["evaluations"]] = row

    def batches(self, key: tuple[str, int], generator: torch.Generator) -> tuple[list[np.ndarray], float]:
        """Return the batches of a row that are there, and their seconds; the generator goes on from behind them."""
        path = self._under_way
        if path is None or not path.exists():
            return [], 0.0
        with np.load(path) as file:
            if (str(file["sampler"]), int(file["evaluations"])) != key:
                return [], 0.0
            generator.set_state(torch.from_numpy(file["generator"]))
            return [file["samples"]], float(file["seconds"])

    def add_batches(
        self, key: tuple[str, int], samples: Sequence[np.ndarray], seconds: float, generator: torch.Generator
    ) -> None:
        """Write down the row under way."""
        if self._under_way is not None:
            with atomic_path(self._under_way) as temporary, temporary.open("wb") as file:
                np.savez(
                    file, sampler=key[0], evaluations=key[1], samples=np.concatenate(samples), seconds=seconds,
                    generator=generator.get_state().numpy(),
                )  # fmt: skip

    @property
    def _under_way(self) -> Path | None:
        return self._path and self._path.with_suffix(".under-way.npz")

    def add(self, row: dict[str, Any]) -> None:
        """Write a row down, unless it is there."""
        key = row["sampler"], row["evaluations"]
        if self._path is not None and key not in self.rows:
            self.rows[key] = row
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 15, 20, 50])
    parser.add_argument("--reference-steps", type=int, default=250, help="of ancestral sampling (default: 250)")
    parser.add_argument("--guidance", type=float, default=0.0, help=f"0 = unconditional; showcases take {GUIDANCE:g}")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0 = torch's own choice")
    parser.add_argument("--keep", type=Path, help="file of rows that are done; the same command goes on from there")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    trained = open_trained(options.checkpoint, device=options.device)
    trained.check_denoises()
    kept = Kept(options.keep, {
        "checkpoint": hashlib.sha256(Path(options.checkpoint).read_bytes()).hexdigest(), "samples": options.samples,
        "reference_steps": options.reference_steps, "guidance": options.guidance, "seed": options.seed,
        "batch_size": options.batch_size, "device": str(trained.device),
    })  # fmt: skip
    print(machine() + "\n")
    print(f"{options.samples} samples, guidance {options.guidance:g}, {trained.config.run.dataset}, {trained.device}. "
          f"KID: {FeatureNet(trained.config.model.channels).name}\n")  # fmt: skip
    print("| sampler | network evaluations | KID | s.e. | difference to the reference, in s.e. | s per image |")
    print("|---|---|---|---|---|---|")
    rows = measure(
        trained, num_samples=options.samples, steps=options.steps, reference_steps=options.reference_steps,
        scale=options.guidance, seed=options.seed, batch_size=options.batch_size, kept=kept,
    )  # fmt: skip
    for row in rows:
        kept.add(row)
        last = f"{row['difference']:+.1f} | {row['s_per_image']:.4f}" if "s_per_image" in row else "| "
        print(f"| {row['sampler']} | {row['evaluations'] or ''} | {row['kid']:.4f} | {row['error']:.4f} | {last} |",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
