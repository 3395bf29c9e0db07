"""Views of latents beside views of images, encoded: `python -m tests.benchmarks.latent_views`.

Training wants views (weak and strong) of what it sees. On latents they are made of the latents themselves
(jointdiff/augment.py). The alternative measured here decodes a latent, makes the view of the picture, mirror and
rotations included, and encodes it again: views in image space, drawn anew at every step. Three hospitals on phantoms,
one autoencoder for all, the same steps, paired over draws of the labels, on the validation split.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch

from jointdiff import head, teachers, training
from jointdiff.augment import PIXEL_VIEWS, View, Views
from jointdiff.config import RunConfig
from jointdiff.latents import FrozenAutoencoder
from jointdiff.paired import paired_difference
from jointdiff.spaces import CODE_RANGE
from simulations.local import run_local
from simulations.named_run import run_named
from tests.benchmarks.measures import machine

KINDS = ("latents", "images")


@torch.no_grad()
def through_images(
    x: torch.Tensor, generator: torch.Generator, *, view: View, frozen: FrozenAutoencoder
) -> torch.Tensor:
    """Return the latents of a view of the pictures of latents: [N,4,h,w] as the network sees them, in [-1,1]."""
    pictures = view(frozen.to_images(x.float() * CODE_RANGE), generator)
    return (frozen.encode(pictures) / CODE_RANGE).clamp(-1, 1).to(x)


@contextmanager
def views_in(kind: str, frozen: FrozenAutoencoder) -> Iterator[None]:
    """Have training make its views of latents, as it does by itself, or of images."""
    with ExitStack() as stack:
        if kind == "images":
            views = Views(*(partial(through_images, view=view, frozen=frozen) for view in PIXEL_VIEWS))
            changed: Callable[..., Views] = lambda *, latent: views  # noqa: E731
            for module in (training, teachers, head):
                stack.enter_context(patch.object(module, "views_of", changed))
        yield


def measure(run: RunConfig, draws: Sequence[int]) -> Iterator[tuple[str, int, float, float, float]]:
    """Give kind, draw, AUC, balanced accuracy and seconds of one run after the other.

    Args:
        run: On latents of a frozen autoencoder.
    """
    frozen = FrozenAutoencoder.load(Path(run.autoencoder))
    for draw in draws:
        for kind in KINDS:
            began = time.process_time()
            with views_in(kind, frozen):
                found = run_named(replace(run, split_seed=draw, run_name=f"{kind}-{draw}"), run_local)
            yield kind, draw, found.auc or 0.0, found.balanced_accuracy or 0.0, time.process_time() - began


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row per run, then the paired differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--draws", type=int, default=4, help="of the labels, from 100 on")
    parser.add_argument("--autoencoder-rounds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=30, help="per hospital and round, in both phases")
    parser.add_argument("--labels", type=int, default=12)
    parser.add_argument("--model", default="auto", help="of the joint model, as the run's key")
    options = parser.parse_args(arguments)
    print(machine() + "\n")
    with tempfile.TemporaryDirectory() as home:
        run = RunConfig(image_size=options.size, num_labels=options.labels, local_steps=options.steps, explain=0,
                        eval_split="val", device="cpu", home=home)  # fmt: skip
        first = replace(run, method="autoencoder", num_rounds=options.autoencoder_rounds, run_name="autoencoder")
        trained = run_local(first) / "checkpoints" / "last.safetensors"
        run = replace(run, autoencoder=str(trained), num_rounds=options.rounds, model=options.model)
        print("| views of | draw | AUC | balanced accuracy | processor s |\n|---|---|---|---|---|")
        rows = []
        for row in measure(run, range(100, 100 + options.draws)):
            rows.append(row)
            print("| {} | {} | {:.3f} | {:.3f} | {:.0f} |".format(*row), flush=True)
    for name, column in (("AUC", 2), ("balanced accuracy", 3)):
        of = {kind: [float(row[column]) for row in rows if row[0] == kind] for kind in KINDS}
        gap = paired_difference(of["images"], of["latents"])
        limits = "no interval from one draw" if gap.low is None else f"95%: {gap.low:+.3f} to {gap.high:+.3f}"
        print(f"\n{name}, views of images minus views of latents: {gap.value:+.3f} ({limits})")


if __name__ == "__main__":
    main()
