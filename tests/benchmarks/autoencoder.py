"""The federated autoencoder against one trained on pooled scans: `python -m tests.benchmarks.autoencoder`.

Three hospitals with a scanner each, phantoms, the same number of steps at every hospital as at the pooled run. Both are
measured on the test scans of all hospitals, and on new phantoms taken with a scanner that no site has.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from jointdiff.config import RunConfig
from jointdiff.data import HospitalData, ImageSet, hospital_data
from jointdiff.data.phantom import draw_scans, phantom_info
from jointdiff.data.scanner import Scanner, render
from jointdiff.latents import FrozenAutoencoder
from jointdiff.model import to_uint8
from jointdiff.reproducibility import seed_for
from jointdiff.standalone import train_on
from simulations.local import run_local
from tests.benchmarks.measures import machine

FOREIGN = Scanner(gain=0.8, gamma=1.35, blur=0.7, noise=0.05)  # nothing like the three of `partition=scanner`
NUM_FOREIGN = 200


@dataclass(frozen=True)
class Row:
    """PSNR of one autoencoder, in dB, as the mean over scans."""

    who: str  # federated | pooled
    seed: int
    sites: float  # on the test scans of all hospitals
    foreign: float  # on a scanner that no site has


def pooled(parts: Sequence[HospitalData]) -> HospitalData:
    """Return all hospitals' scans in one place."""

    def joined(sets: Sequence[ImageSet]) -> ImageSet:
        return ImageSet(np.concatenate([s.images for s in sets]), np.concatenate([s.labels for s in sets]))

    return HospitalData(
        info=parts[0].info, train=joined([p.train for p in parts]), heldout=None, test=joined([p.test for p in parts]),
        hidden_labels=np.concatenate([p.hidden_labels for p in parts]),
    )  # fmt: skip


def foreign_scans(size: int, seed: int) -> np.ndarray:
    """Return new phantoms as FOREIGN shows them, uint8 [N,H,W,1]."""
    rng = np.random.default_rng(seed_for(seed, 0, 0, "foreign scans"))
    return render(draw_scans(phantom_info(image_size=size), NUM_FOREIGN, rng).images, FOREIGN, seed=seed)


def measure(run: RunConfig, *, pictures: Path | None = None) -> list[Row]:
    """Train both and measure them.

    Args:
        run: Of the federation; its home gets both runs.
        pictures: Folder for one PNG each, the scan above its reconstruction; None = none.
    """
    everything = pooled([hospital_data(run, k) for k in range(run.num_hospitals)])
    foreign = foreign_scans(run.image_size, run.seed)
    folders = {"federated": run_local(replace(run, run_name=f"federated-{run.seed}"))}
    alone = replace(run, num_hospitals=1, partition="iid", run_name=f"pooled-{run.seed}")
    folders["pooled"] = train_on(alone, everything, name="everybody")
    rows = []
    for who, folder in folders.items():
        frozen = FrozenAutoencoder.load(folder / "checkpoints" / "last.safetensors")
        found = [float(frozen.psnr(images).mean()) for images in (everything.test.images, foreign)]
        rows.append(Row(who, run.seed, *found))
        if pictures:
            _draw(frozen, everything.test.images[:6], pictures / f"{who}-{run.seed}-sites.png")
            _draw(frozen, foreign[:6], pictures / f"{who}-{run.seed}-foreign.png")
    return rows


def _draw(frozen: FrozenAutoencoder, images: np.ndarray, path: Path) -> None:
    given = to_uint8(frozen.to_images(frozen.to_latents(images)))
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in (images, given)], axis=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet[..., 0]).save(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one row per autoencoder and seed, then the mean difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=30, help="per hospital and round, and of the pooled run")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seeds", default="0", help="FIRST-LAST or one")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args(arguments)
    first, _, final = options.seeds.partition("-")
    print(machine() + "\n")
    print("| trained | seed | PSNR, sites' test scans | PSNR, a scanner that no site has |\n|---|---|---|---|")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as home:
        for seed in range(int(first), int(final or first) + 1):
            run = RunConfig(
                image_size=options.size, method="autoencoder", partition="scanner", num_rounds=options.rounds,
                local_steps=options.steps, batch_size=options.batch_size, explain=0, seed=seed, split_seed=seed,
                device=options.device, home=home,
            )  # fmt: skip
            for row in measure(run, pictures=options.pictures):
                rows.append(row)
                print(f"| {row.who} | {row.seed} | {row.sites:.2f} | {row.foreign:.2f} |", flush=True)
    gaps = [a.sites - b.sites for a, b in zip(rows[::2], rows[1::2], strict=True)]
    spread = f" (from {min(gaps):+.2f} to {max(gaps):+.2f})" if len(gaps) > 1 else ""
    print(f"\nFederated minus pooled: {statistics.mean(gaps):+.2f} dB{spread}.")


if __name__ == "__main__":
    main()
