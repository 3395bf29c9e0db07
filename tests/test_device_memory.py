"""A device without memory for a whole batch: the passes are done in halves, and nothing else changes.

The device's limit is a real one: a count of the bytes of all living tensors, checked where torch makes them, in forward
and backward passes alike, which raises what a GPU's allocator raises.
"""

from __future__ import annotations

import logging
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from client.preflight.trial_step import random_data
from jointdiff.autoencoder import Autoencoder
from jointdiff.autoencoder_config import AutoencoderConfig
from jointdiff.autoencoder_training import _add_gradients, draw_eps, train_autoencoder_round
from jointdiff.config import Config, RunConfig, TrainingConfig
from jointdiff.device_memory import Halving, split
from jointdiff.errors import DeviceMemoryError
from jointdiff.privacy import PrivateSteps
from jointdiff.private_autoencoder import train_private_autoencoder_round
from jointdiff.private_training import JointLoss, PrivacyPlan, Randomness, _add, train_private_round
from jointdiff.training import train_round
from tests import test_privacy
from tests.test_training import MODEL, RUN, fresh

CPU = torch.device("cpu")


class Memory(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make and that live on, and raises beyond a limit."""

    def __init__(self, limit: float = float("inf")) -> None:
        super().__init__()
        self.limit, self.held, self.peak, self.refused = limit, 0, 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        if self.held > self.limit:
            self.refused += 1
            raise torch.OutOfMemoryError(f"{self.held} bytes are more than {self.limit}")
        self.peak = max(self.peak, self.held)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.held += storage.nbytes()
            weakref.finalize(storage, self._freed, key, storage.nbytes())

    def _freed(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.held -= num_bytes


def joint_round(limit: float = float("inf"), *, batch_size: int = 16, strategy: str = "fedavg", **training):
    """Train one round under a limit; return the weights, what was told, and the device's memory."""
    run = replace(RUN, batch_size=batch_size, local_steps=2, strategy=strategy)
    keys = {"pseudo_start_fraction": 0.0, "warmup_fraction": 0.0, "labelled_batch": batch_size, **training}
    keys["autocast"] = "off"  # bf16 rounds a half of a batch by more than the steps of two rounds move a weight
    model, config = fresh(), Config(run, MODEL, TrainingConfig(**keys))
    data = random_data(config, CPU)
    with Memory(limit) as memory:
        told, _ = train_round(model, data, config, round_number=3, hospital_index=0, device=CPU, state=None)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}, told, memory


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize(
    "training",
    [
        {}, {"teacher": "local", "labelled_view": "weak"}, {"class_weight": 0.0, "pseudo_weight": 0.0},
        {"diffusion_weight": 0.0, "teacher": "local"}, {"strategy": "fedprox", "unlabelled_ratio": 2.0},
    ],
)  # fmt: skip
def test_half_the_memory_gives_the_same_weights(training, caplog):
    """The whole batch does not fit, its halves do: weights and losses are those of the whole but for rounding."""
    whole, told, memory = joint_round(**training)
    assert "batch_parts" not in told and not caplog.records
    with caplog.at_level(logging.WARNING):
        halved, told_halved, tight = joint_round(0.8 * memory.peak, **training)
    assert tight.refused == 1, "one step asked for too much; the steps after it were done in halves from the start"
    assert told_halved.pop("batch_parts") == 2
    start = {name: tensor.detach() for name, tensor in fresh().state_dict().items()}
    assert largest_difference(whole, start) > 100 * largest_difference(whole, halved)
    assert largest_difference(whole, halved) < 2e-5
    for name in set(told) - {"images_per_s"}:
        assert told_halved[name] == pytest.approx(told[name], rel=1e-4), name
    (said,) = caplog.messages
    assert "batch-size 16" in said and "two halves" in said


def autoencoder_round(limit: float = float("inf"), *, noise: float = 0.0):
    """Train one round of an autoencoder under a limit; return the weights, what was told, and the device's memory."""
    design = AutoencoderConfig(image_size=16, widths=(8,), num_blocks=1)
    run = replace(RUN, method="autoencoder", batch_size=16, local_steps=2, noise_multiplier=noise)
    config = Config(run, replace(MODEL, image_size=16), TrainingConfig(head="gradient"), design)
    torch.manual_seed(0)
    model, data = Autoencoder(design), random_data(config, CPU)
    with Memory(limit) as memory:
        if noise:
            plan = PrivacyPlan(noise, 0.5, 2, run.num_rounds, 1e-4)
            draws = Randomness(*(torch.Generator().manual_seed(seed) for seed in range(3)))
            told, _ = train_private_autoencoder_round(
                model, data, config, plan, round_number=1, device=CPU, state=None, randomness=draws
            )
        else:
            told, _ = train_autoencoder_round(
                model, data, config, round_number=1, hospital_index=0, device=CPU, state=None
            )
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}, told, memory


@pytest.mark.parametrize("noise", [0.0, 1e-6], ids=["plain", "private"])
def test_half_the_memory_gives_the_same_autoencoder(noise: float):
    autoencoder_round(noise=noise)  # what is made once and kept is no part of a step
    whole, told, memory = autoencoder_round(noise=noise)
    halved, told_halved, tight = autoencoder_round(0.8 * memory.peak, noise=noise)
    assert tight.refused == 1
    assert "batch_parts" not in told and told_halved.get("batch_parts") == (None if noise else 2)
    torch.manual_seed(0)
    start = Autoencoder(AutoencoderConfig(image_size=16, widths=(8,), num_blocks=1)).state_dict()
    # Adam divides by the gradient's size: where that is nearly nothing, rounding is not; hence no single weight.
    moved, apart = (sum(float((whole[n] - other[n]).abs().sum()) for n in whole) for other in (start, halved))
    assert moved > 100 * apart


def test_the_gradients_of_an_autoencoders_batch_are_the_same_in_parts():
    design, generator = AutoencoderConfig(image_size=16, widths=(8,), num_blocks=1), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model, x = Autoencoder(design), torch.rand((7, 1, 16, 16), generator=generator) * 2 - 1
    eps, found = draw_eps(model, x, generator), []
    for parts in (1, 3):
        model.zero_grad()
        terms = _add_gradients(model, x, eps, TrainingConfig(), "off", parts)
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append((torch.cat([g.flatten() for g in grads]), torch.stack(list(terms.values()))))
    (whole, told), (parted, told_parted) = found
    assert torch.allclose(whole, parted, rtol=1e-4, atol=1e-6 * float(whole.abs().max()))
    assert torch.allclose(told, told_parted, rtol=1e-5)


def test_where_halves_do_not_fit_either_the_error_says_what_to_do():
    _, _, memory = joint_round()
    with pytest.raises(DeviceMemoryError, match=r"no memory for half a batch either \(batch-size 16\): lower that"):
        joint_round(0.45 * memory.peak)


def test_the_smallest_batches_can_be_halved():
    whole, _, memory = joint_round(batch_size=2, labelled_batch=1, teacher="local")
    halved, told, _ = joint_round(0.9 * memory.peak, batch_size=2, labelled_batch=1, teacher="local")
    assert told["batch_parts"] == 2 and largest_difference(whole, halved) < 2e-5


def test_nothing_of_the_pass_that_broke_off_is_alive_when_the_next_one_starts():
    """What the exception held is gone before the halves begin: else they would find no more room than the whole."""
    held: list[weakref.ref[torch.Tensor]] = []

    def work(parts: int) -> int:
        if parts == 1:
            large = torch.zeros(1000)
            held.append(weakref.ref(large))
            raise torch.OutOfMemoryError("full")
        assert held[0]() is None
        return parts

    undone: list[bool] = []
    halving = Halving(CPU, "batch-size 2")
    assert halving.run(work, lambda: undone.append(held[0]() is None)) == 2
    assert undone == [True] and halving.run(work, undone.clear) == 2 and undone == [True]


def test_other_errors_are_no_lack_of_memory():
    def work(_: int) -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        Halving(CPU, "batch-size 2").run(work, lambda: None)


def test_parts_hold_every_place_once():
    for total in range(1, 9):
        for parts in (1, 2, 3):
            places = [i for at in split(total, parts) for i in range(total)[at]]
            assert places == list(range(total))


def private_round(memory: TorchDispatchMode, *, noise: float = 1e-6, **training):
    """Train one private round of two steps on a memory; return the weights."""
    run = replace(RUN, noise_multiplier=noise, batch_size=24, local_steps=1)
    keys = {"head": "gradient", "pseudo_policy": "fixed", "threshold": 0.5, "pseudo_start_fraction": 0.0,
            "warmup_fraction": 0.0, "max_grad_norm": 0.05, "physical_batch": 16, **training}  # fmt: skip
    plan = PrivacyPlan(noise, 0.5, 1, run.num_rounds, 1e-4)
    randomness = Randomness(*(torch.Generator().manual_seed(seed) for seed in (1, 2, 3)))
    model, config = fresh(), Config(run, MODEL, TrainingConfig(**keys))
    with memory:
        train_private_round(
            model, random_data(config, CPU), config, plan, round_number=3, device=CPU, state=None,
            randomness=randomness,
        )  # fmt: skip
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}, model


def test_a_private_round_in_halves_ends_with_the_same_weights(caplog):
    training = {"teacher": "local", "noise_multiplicity": 2}
    memory = Memory()
    whole, _ = private_round(memory, **training)
    tight = Memory(0.75 * memory.peak)
    halved, _ = private_round(tight, **training)
    assert tight.refused == 1 and "physical-batch 16" in caplog.text
    start = {name: tensor.detach() for name, tensor in fresh().state_dict().items()}
    assert largest_difference(whole, halved) < 2e-5 < 0.05 * largest_difference(whole, start)


class FullAt(TorchDispatchMode):
    """Runs out of memory once, at the n-th operation that asks for some: neither in place nor a view."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func._schema.is_mutable and not func.is_view:
            self.left -= 1
            if self.left == 0:
                raise torch.OutOfMemoryError("full")
        return func(*args, **(kwargs or {}))


def two_chunks(full: FullAt) -> list[torch.Tensor]:
    """Take one private step on two chunks of records, the second on a device that fills up; return the weights."""
    net = test_privacy.model()
    loss = JointLoss(net, test_privacy.config(), test_privacy.WEIGHTS, torch.Generator().manual_seed(2))
    x, labels, probs = test_privacy.records()
    first, second = (loss.draw(x[at], labels[at], probs[at]) for at in (slice(0, 2), slice(2, 6)))
    halving = Halving(CPU, "physical-batch 4")
    with PrivateSteps(
        net, torch.optim.SGD(net.parameters(), lr=1.0), noise_multiplier=0.0, max_grad_norm=0.05, expected_batch=1.0,
        generator=torch.Generator(),
    ) as steps:  # fmt: skip
        halving.run(partial(_add, steps, loss, first), undo=steps.forget)
        with full:
            halving.run(partial(_add, steps, loss, second), undo=steps.forget)
        steps.finish()
    assert halving.parts == (2 if full.left <= 0 else 1)
    assert not any(getattr(module, "activations", None) for module in net.modules()), "nothing of the records is kept"
    return [parameter.detach().clone() for parameter in net.parameters()]


def test_wherever_a_private_step_breaks_off_every_record_counts_once():
    """In the forward pass, among the per-record gradients, their norms, and the clipped sums of the parameters.

    The step is a sum of clipped gradients, not more: a record that counted twice, or a first chunk that was lost, would
    move the weights by as much as the record itself does.
    """
    untouched = FullAt(10**9)
    whole = two_chunks(untouched)
    total = 10**9 - untouched.left
    start = [parameter.detach() for parameter in test_privacy.model().parameters()]
    moved = max(float((a - b).abs().max()) for a, b in zip(whole, start, strict=True))
    for share in (0.2, 0.5, 0.9, 0.97, 1.0):
        halved = two_chunks(FullAt(round(share * total)))
        apart = max(float((a - b).abs().max()) for a, b in zip(whole, halved, strict=True))
        assert apart < 1e-3 * moved, f"broken off at {share:.0%} of {total} operations"


def test_the_record_of_what_leaves_knows_that_a_batch_was_halved():
    from client import egress

    assert "batch_parts" in egress._TRAINING and "batch_parts" not in egress._PRIVATE_TRAINING
    assert RunConfig().noise_multiplier == 0
