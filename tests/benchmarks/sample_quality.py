"""Samples by evaluations of the network: `python -m tests.benchmarks.sample_quality CHECKPOINT`.

KID on the fixed feature net, with its standard error, of samples against as many real images that the model may have
seen (a simulated run's training images, all hospitals together), for DDIM and DPM-Solver++ at few evaluations beside
ancestral sampling at many, and real images against real ones. All samplers start from the same noise. Seconds per image
are of the whole sampler, on the device, in this process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from jointdiff import fidelity
from jointdiff.data import hospital_data
from jointdiff.fidelity import FeatureNet
from jointdiff.showcase import GUIDANCE, guided_samples
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
) -> Iterator[dict[str, Any]]:
    """Yield one row per sampler and number of evaluations: sampler, evaluations, kid, error, difference, s_per_image.

    `difference` is to the reference's KID, in standard errors of the difference of two independent ones: an upper
    bound of its spread, since real images and first noise are shared.
    """
    run, num_outputs = trained.config.run, trained.config.model.num_outputs
    images = np.concatenate([hospital_data(run, k).train.images for k in range(run.num_hospitals)])
    chosen = np.random.default_rng(seed).permutation(len(images))
    half = min(num_samples, len(images) // 2)
    net = FeatureNet(trained.config.model.channels)
    real, others = (net.features(images[part]) for part in (chosen[:half], chosen[half : 2 * half]))
    targets = np.arange(num_samples) % num_outputs
    found = fidelity.kid(others, real)
    yield {"sampler": "real images", "evaluations": 0, "kid": found.value, "error": found.standard_error}
    reference = None
    for sampler, count in [("ddpm", reference_steps), *((name, n) for n in steps for name in FEW)]:
        generator = torch.Generator(trained.device).manual_seed(seed)
        began = time.perf_counter()
        samples = guided_samples(
            trained.model, trained.config, targets, device=trained.device, generator=generator, num_steps=count,
            scale=scale, sampler=sampler, batch_size=batch_size,
        )  # fmt: skip
        seconds = (time.perf_counter() - began) / num_samples
        found = fidelity.kid(net.features(samples), real)
        reference = reference or found
        error = float(np.hypot(found.standard_error, reference.standard_error))
        yield {
            "sampler": sampler, "evaluations": count, "kid": found.value, "error": found.standard_error,
            "difference": (found.value - reference.value) / error, "s_per_image": seconds,
        }  # fmt: skip


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
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    trained = open_trained(options.checkpoint, device=options.device)
    trained.check_denoises()
    print(machine() + "\n")
    print(f"{options.samples} samples, guidance {options.guidance:g}, {trained.config.run.dataset}, {trained.device}. "
          f"KID: {FeatureNet(trained.config.model.channels).name}\n")  # fmt: skip
    print("| sampler | network evaluations | KID | s.e. | difference to the reference, in s.e. | s per image |")
    print("|---|---|---|---|---|---|")
    rows = measure(
        trained, num_samples=options.samples, steps=options.steps, reference_steps=options.reference_steps,
        scale=options.guidance, seed=options.seed, batch_size=options.batch_size,
    )  # fmt: skip
    for row in rows:
        last = f"{row['difference']:+.1f} | {row['s_per_image']:.4f}" if "s_per_image" in row else "| "
        print(f"| {row['sampler']} | {row['evaluations'] or ''} | {row['kid']:.4f} | {row['error']:.4f} | {last} |",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
