"""Batches: drawn before the first step, images as bytes on the device, and no step that waits for the device."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from client.preflight.trial_step import random_data
from jointdiff import batches
from jointdiff.batches import Batches, fits
from jointdiff.config import Config, RunConfig, TrainingConfig
from jointdiff.data import hospital_data
from jointdiff.data.base import ImageSet
from jointdiff.model import to_network
from jointdiff.training import train_round
from tests.test_training import MODEL, RUN, config, fresh, train

CPU = torch.device("cpu")
WANTED = {"all": 5, "labelled": 3, "unlabelled": 4}


def some_images() -> ImageSet:
    rng = np.random.default_rng(0)
    labels = np.where(np.arange(20) % 4 == 0, np.arange(20) % 2, -1)
    return ImageSet(rng.integers(0, 256, (20, 8, 8, 1), dtype=np.uint8), labels)


def some_batches(wanted=WANTED, seed=7, num_steps=3) -> Batches:
    return Batches(
        some_images(), wanted, num_steps=num_steps, device=CPU, generator=torch.Generator().manual_seed(seed),
        memory_format=torch.channels_last,
    )  # fmt: skip


def test_the_draws_of_a_round_are_those_of_its_steps_one_after_another():
    found, generator = some_batches(), torch.Generator().manual_seed(7)
    labelled = np.flatnonzero(some_images().labelled)
    for step in range(3):
        assert torch.equal(found.index("all", step), torch.randint(20, (5,), generator=generator))
        at = torch.randint(len(labelled), (3,), generator=generator)
        assert found.index("labelled", step).tolist() == labelled[at].tolist()
        torch.randint(20 - len(labelled), (4,), generator=generator)
        assert not some_images().labelled[found.index("unlabelled", step).numpy()].any()
        assert (found.labels("labelled", step) >= 0).all()
    assert not some_batches({"all": 5}).has("labelled")


@pytest.mark.parametrize("resident", [True, False])
def test_the_images_lie_where_they_fit_as_bytes(resident, monkeypatch):
    monkeypatch.setattr(batches, "fits", lambda *_: resident)
    found = some_batches()
    assert found._images.dtype == torch.uint8
    x = found.take("all", 1)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, to_network(some_images().images[found.index("all", 1).numpy()]))


def test_where_images_do_not_fit_training_is_the_same(monkeypatch):
    ends = []
    for resident in (True, False):
        monkeypatch.setattr(batches, "fits", lambda *_, resident=resident: resident)
        model = fresh()
        train(model, config(warmup_fraction=0.0), 3)
        ends.append(model)
    assert all(torch.equal(a, b) for a, b in zip(ends[0].parameters(), ends[1].parameters(), strict=True))


def test_a_gpu_holds_a_quarter_of_what_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (4_000, 16_000))
    assert fits(1_000, torch.device("cuda")) and not fits(1_001, torch.device("cuda"))
    assert fits(10**15, CPU)


class Waits(TorchDispatchMode):
    """Counts the operations that make a host wait for a GPU: values read, and shapes that depend on values."""

    NAMES = (
        "_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim", "bincount",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        chosen = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in chosen)
        if name in self.NAMES or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def waits_of(num_steps: int, **training) -> int:
    """Return how often a round of so many steps waits."""
    cfg = config(warmup_fraction=0.0, **training)
    cfg = replace(cfg, run=replace(RUN, local_steps=num_steps))
    model, data = fresh(), random_data(cfg, torch.device("cpu"))
    with Waits() as mode:
        train_round(model, data, cfg, round_number=3, hospital_index=0, device=CPU, state=None)
    return len(mode.found)


@pytest.mark.parametrize(
    "training",
    [
        {}, {"teacher": "local"}, {"teacher": "local-ema", "pseudo_policy": "softmatch", "alignment": "estimated"},
        {"teacher": "agreement", "pseudo_policy": "flexmatch", "alignment": "uniform"}, {"pseudo_policy": "mixture"},
    ],
)  # fmt: skip
def test_no_step_waits_for_the_device(training):
    """What a round reads from the device is the same for one step and for four: its sums, at its end."""
    assert waits_of(1, **training) == waits_of(4, **training) > 0


def test_the_count_of_waits_sees_one():
    """The yardstick itself: what waits on a GPU is counted."""
    x = torch.arange(4.0)
    with Waits() as mode:
        float(x[0])
        x[x > 1]
        bool((x == 1).any())
        x[torch.tensor([0, 1])]
    assert mode.found == ["_local_scalar_dense", "index", "_local_scalar_dense"]


@pytest.mark.gpu
def test_on_a_gpu_no_step_synchronises():
    """CUDA itself raises where a step waits. Never run so far: there was no GPU."""
    device, settings = torch.device("cuda"), Config(RUN, MODEL, TrainingConfig(warmup_fraction=0.0))
    model, data = fresh().to(device), hospital_data(RunConfig(num_labels=12), 0)
    step = torch.optim.AdamW.step
    calls: list[int] = []

    def watched(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        calls.append(1)
        torch.cuda.set_sync_debug_mode("error" if len(calls) < settings.run.local_steps else "default")
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", watched)
        try:
            train_round(model, data, settings, round_number=3, hospital_index=0, device=device, state=None)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(calls) == settings.run.local_steps > 1
