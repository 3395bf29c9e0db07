"""Views of latents beside views of images, encoded: `python -m tests.benchmarks.latent_views`.

Training wants views (weak and strong) of what it sees. On latents they are made of the latents themselves
(jointdiff/augment.py). Two alternatives are measured here. `images` decodes a latent, makes the view of the picture,
mirror and rotations included, and encodes it again: views in image space, drawn anew at every step. `copies` makes
some weak and some strong views of every scan itself, encodes them once before the first round, and draws one of them
per step: a step costs nothing more, and nothing was decoded. Three hospitals on phantoms, one autoencoder for all, the
same steps, paired over draws of the labels, on the validation split.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from jointdiff import head, teachers, training
from jointdiff.augment import PIXEL_VIEWS, View, Views
from jointdiff.config import RunConfig
from jointdiff.data import hospital_data
from jointdiff.latents import FrozenAutoencoder
from jointdiff.model import to_network, to_uint8
from jointdiff.paired import paired_difference
from jointdiff.spaces import CODE_RANGE, Latents
from simulations.local import run_local
from simulations.named_run import run_named
from tests.benchmarks.measures import machine

KINDS = ("latents", "images", "copies")
NUM_COPIES = 4  # of every scan and strength
_BATCH_SIZE = 64
_TOLERANCE = 1e-6  # of that number; one step of one value changes it by more


@torch.no_grad()
def through_images(
    x: torch.Tensor, generator: torch.Generator, *, view: View, frozen: FrozenAutoencoder
) -> torch.Tensor:
    """Return the latents of a view of the pictures of latents: [N,4,h,w] as the network sees them, in [-1,1]."""
    pictures = view(frozen.to_images(x.float() * CODE_RANGE), generator)
    return (frozen.encode(pictures) / CODE_RANGE).clamp(-1, 1).to(x)


class Copies:
    """Views of scans, encoded once; a latent is known again by a number that is a sum over its values.

    Args:
        scans: uint8 [N,H,W,C], all of which training can ask for a view.
        seed: Of the views, and of the weights of the sum.
    """

    def __init__(self, scans: np.ndarray, view: View, frozen: FrozenAutoencoder, *, seed: int = 0) -> None:
        space, generator = Latents(frozen), torch.Generator().manual_seed(seed)
        codes = to_network(space.inputs(scans))
        self._weights = torch.randn(codes[0].numel(), generator=generator, dtype=torch.float64)
        self._numbers, self._place = self._number_of(codes).sort()
        copies = []
        for _ in range(NUM_COPIES):
            for start in range(0, len(scans), _BATCH_SIZE):
                seen = view(to_network(scans[start : start + _BATCH_SIZE]), generator)
                copies.append(space.inputs(to_uint8(seen)))
        self._copies = np.concatenate(copies).reshape(NUM_COPIES, len(scans), *copies[0].shape[1:])

    def __call__(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return one of the copies of each latent, drawn.

        Raises:
            ValueError: A latent is of no scan.
        """
        numbers = self._number_of(x)
        at = torch.searchsorted(self._numbers, numbers - _TOLERANCE).clamp(max=len(self._numbers) - 1)
        if ((self._numbers[at] - numbers).abs() > _TOLERANCE).any():
            raise ValueError("A view is asked of a latent of no scan.")
        drawn = torch.randint(NUM_COPIES, (len(x),), generator=generator)
        return to_network(self._copies[drawn.numpy(), self._place[at].numpy()]).to(x)

    def _number_of(self, x: torch.Tensor) -> torch.Tensor:
        return x.double().flatten(1) @ self._weights


@contextmanager
def views_in(kind: str, frozen: FrozenAutoencoder, copies: Views | None = None) -> Iterator[None]:
    """Have training make its views of latents, as it does by itself, or of images, or take copies."""
    with ExitStack() as stack:
        if kind != "latents":
            views = Views(*(partial(through_images, view=view, frozen=frozen) for view in PIXEL_VIEWS))
            if kind == "copies":
                assert copies is not None
                views = copies
            changed: Callable[..., Views] = lambda *, latent: views  # noqa: E731
            for module in (training, teachers, head):
                stack.enter_context(patch.object(module, "views_of", changed))
        yield


def copies_of(run: RunConfig, frozen: FrozenAutoencoder) -> Views:
    """Return the views of all hospitals' training scans, encoded, held-out ones included."""
    parts = [hospital_data(run, k) for k in range(run.num_hospitals)]
    # what one draw holds out for its choice of the best round, another trains on
    scans = np.concatenate([own.images for part in parts for own in (part.train, part.heldout) if own is not None])
    return Views(*(Copies(scans, view, frozen, seed=run.seed) for view in PIXEL_VIEWS))


def measure(
    run: RunConfig, draws: Sequence[int], kinds: Sequence[str] = KINDS
) -> Iterator[tuple[str, int, float, float, float]]:
    """Give kind, draw, AUC, balanced accuracy and seconds of one run after the other.

    Args:
        run: On latents of a frozen autoencoder.
    """
    frozen = FrozenAutoencoder.load(Path(run.autoencoder))
    copies = copies_of(run, frozen) if "copies" in kinds else None  # draws give the same scans to other hospitals
    for draw in draws:
        for kind in kinds:
            began = time.process_time()
            asked = replace(run, split_seed=draw, run_name=f"{kind}-{draw}")
            with views_in(kind, frozen, copies):
                found = run_named(asked, run_local)
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
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="latents, and others")
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
        for row in measure(run, range(100, 100 + options.draws), options.kinds):
            rows.append(row)
            print("| {} | {} | {:.3f} | {:.3f} | {:.0f} |".format(*row), flush=True)
    for (name, column), other in itertools.product((("AUC", 2), ("balanced accuracy", 3)), KINDS[1:]):
        of = {kind: [float(row[column]) for row in rows if row[0] == kind] for kind in KINDS}
        if of["latents"] and of[other]:
            gap = paired_difference(of[other], of["latents"])
            limits = "no interval from one draw" if gap.low is None else f"95%: {gap.low:+.3f} to {gap.high:+.3f}"
            print(f"\n{name}, views of {other} minus views of latents: {gap.value:+.3f} ({limits})")


if __name__ == "__main__":
    main()
