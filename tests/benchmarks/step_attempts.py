"""What was tried to make a step faster, beside three lean fp32 passes: `python -m tests.benchmarks.step_attempts`.

The same images, network and losses everywhere, the optimiser included and data left out, by turns in one process.
`shared` puts labelled and strong views into one encoder pass (as train_round does), `one encode` the noised images too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch.nn import functional as F

from jointdiff.model import JointModel, pool
from jointdiff.training import select_device
from tests.benchmarks.measures import CLOCKS, Clock, machine, spread
from tests.benchmarks.training_step import AUTHORS

ATTEMPTS = {
    "three lean passes, fp32": {},
    "shared": {"shared": True},
    "shared, channels last": {"shared": True, "channels_last": True},
    "one encode, channels last": {"shared": True, "one_encode": True, "channels_last": True},
    "shared, bf16": {"shared": True, "bf16": True},
    "shared, bf16, channels last": {"shared": True, "bf16": True, "channels_last": True},
    "shared, compiled": {"shared": True, "compiled": True},
    "shared, compiled, channels last": {"shared": True, "compiled": True, "channels_last": True},
    "shared, compiled, bf16, channels last": {"shared": True, "compiled": True, "bf16": True, "channels_last": True},
}


def make_step(
    width: int,
    batch_size: int,
    device: torch.device,
    *,
    shared: bool = False,
    one_encode: bool = False,
    channels_last: bool = False,
    bf16: bool = False,
    compiled: bool = False,
) -> Callable[[], None]:
    """Return a function that does one step."""
    torch.manual_seed(0)
    model = JointModel(replace(AUTHORS, width=width)).to(device).train()
    form = torch.channels_last if channels_last else torch.contiguous_format
    model.to(memory_format=form)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=shared)
    x = torch.rand(3 * batch_size, 1, 32, 32, device=device).mul(2).sub(1).contiguous(memory_format=form)
    t = torch.cat([torch.full((batch_size,), 300), torch.zeros(2 * batch_size)]).long().to(device)
    labels = torch.zeros(2 * batch_size, dtype=torch.int64, device=device)
    noised, views, target = x[:batch_size], x[batch_size:], torch.randn_like(x[:batch_size])
    denoise = torch.compile(model.denoise) if compiled else model.denoise
    classify = torch.compile(model.classify) if compiled else model.classify

    def outputs() -> tuple[torch.Tensor, torch.Tensor]:
        if one_encode:
            emb = model.unet.embed(t)
            maps = model.unet.encode(x, emb)
            drawn = model.unet.decode([m[:batch_size] for m in maps], emb[:batch_size])
            return drawn, model.head(pool([m[batch_size:] for m in maps]))
        return denoise(noised, t[:batch_size]), classify(views)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            if shared:
                drawn, logits = outputs()
                (F.mse_loss(drawn.float(), target) + 2 * F.cross_entropy(logits.float(), labels)).backward()
            else:
                F.mse_loss(denoise(noised, t[:batch_size]), target).backward()
                for half in (0, 1):
                    part = slice(half * batch_size, (half + 1) * batch_size)
                    F.cross_entropy(classify(views[part]), labels[part]).backward()
        optimizer.step()

    return step


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, row by row: every attempt is measured right beside the lean passes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--width", type=int, default=AUTHORS.width)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(ATTEMPTS), help="names of attempts")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = select_device(options.device)
    clock = Clock(options.clock, device)
    print(machine() + "\n")
    print("| attempt | first step, s | s, median (min to max) | times faster, median (min to max) |\n|---|---|---|---|")
    lean = make_step(options.width, options.batch_size, device)
    _seconds(lean, clock)
    for name in options.only:
        step = make_step(options.width, options.batch_size, device, **ATTEMPTS[name])
        first = _seconds(step, clock)
        pairs = [(_seconds(lean, clock), _seconds(step, clock)) for _ in range(options.repeats)]
        own, ratios = [b for _, b in pairs], [a / b for a, b in pairs]
        print(f"| {name} | {first:.1f} | {spread(own, 2)} | {spread(ratios, 2)} |", flush=True)


def _seconds(step: Callable[[], None], clock: Clock) -> float:
    began = clock.now()
    step()
    return clock.now() - began


if __name__ == "__main__":
    main()
