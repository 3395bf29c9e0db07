"""Differential privacy of one step: per-record gradients, clipping, noise and Poisson batches are right."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from jointdiff.config import Config, ModelConfig, RunConfig, TrainingConfig, resolve
from jointdiff.errors import ConfigError
from jointdiff.joint_step import TermWeights
from jointdiff.model import JointModel
from jointdiff.privacy import PoissonBatches, PrivateSteps, refuse_what_cannot_be_private, system_generator
from jointdiff.private_training import JointLoss

MODEL = ModelConfig(image_size=16, width=8, multipliers=(1, 2), attention_levels=(1,))
NUM_RECORDS = 6
WEIGHTS = TermWeights(diffusion=1.0, label=1.0, pseudo=0.5)


def config(multiplicity: int = 1, **changes: object) -> Config:
    training = TrainingConfig(
        head="gradient", pseudo_policy="fixed", threshold=0.5, noise_multiplicity=multiplicity, **changes
    )
    return Config(RunConfig(image_size=16, noise_multiplier=1.0), MODEL, training)


def model() -> JointModel:
    torch.manual_seed(0)
    made = JointModel(MODEL)
    for parameter in made.parameters():  # the zero-initialised layers would hide wrong gradients
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return made.train()


def records() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(NUM_RECORDS, 1, 16, 16, generator=generator) * 2 - 1
    labels = torch.tensor([0, 1, -1, -1, 1, -1])
    return x, labels, torch.rand(NUM_RECORDS, 2, generator=generator).softmax(dim=1)


def losses(net: JointModel, multiplicity: int) -> torch.Tensor:
    x, labels, probs = records()
    loss = JointLoss(net, config(multiplicity), WEIGHTS, torch.Generator().manual_seed(2))
    return loss(loss.draw(x, labels, probs))


def gradients_one_by_one(net: JointModel, multiplicity: int) -> list[list[torch.Tensor]]:
    """Return each record's gradient by a backward pass of its own, through plain autograd: [N][parameters]."""
    return [
        [g.clone() for g in torch.autograd.grad(losses(net, multiplicity)[i], list(net.parameters()))]
        for i in range(NUM_RECORDS)
    ]


@pytest.mark.parametrize("multiplicity", [1, 4])
def test_per_record_gradients_of_the_joint_loss_are_those_of_a_loop(multiplicity):
    net = model()
    wanted = gradients_one_by_one(copy.deepcopy(net), multiplicity)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    with PrivateSteps(
        net, optimizer, noise_multiplier=0.0, max_grad_norm=1e9, expected_batch=1.0, generator=torch.Generator()
    ):
        losses(net, multiplicity).sum().backward()
        for number, (name, parameter) in enumerate(net.named_parameters()):
            got, loop = parameter.grad_sample, torch.stack([grads[number] for grads in wanted])
            assert got.shape == loop.shape, name
            # A bias before a normalisation by channel has no gradient but rounding: 1e-6 is far below any other.
            error = (got - loop).norm() / loop.norm().clamp(min=1e-2)
            assert error < 1e-4, (name, float(error))


def test_a_record_is_clipped_as_a_whole_over_all_its_passes():
    net, bound = model(), 0.05
    wanted = gradients_one_by_one(copy.deepcopy(net), 4)
    total = [torch.zeros_like(p) for p in net.parameters()]
    for grads in wanted:
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
        assert norm > bound
        for entry, grad in zip(total, grads, strict=True):
            entry += grad * bound / norm
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    with PrivateSteps(
        net, optimizer, noise_multiplier=0.0, max_grad_norm=bound, expected_batch=4.0, generator=torch.Generator()
    ) as steps:
        steps.add(losses(net, 4))
        steps.finish()
    for old, parameter, entry in zip(before, net.parameters(), total, strict=True):
        assert torch.allclose(old - parameter, entry / 4, atol=1e-6)


def test_without_noise_and_clipping_a_private_step_is_the_plain_step():
    plain, private = model(), model()
    steps_of = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (plain, private)]
    (losses(plain, 2).sum() / NUM_RECORDS).backward()
    steps_of[0].step()
    with PrivateSteps(
        private, steps_of[1], noise_multiplier=0.0, max_grad_norm=1e9, expected_batch=NUM_RECORDS,
        generator=torch.Generator(),
    ) as steps:  # fmt: skip
        steps.add(losses(private, 2))
        steps.finish()
    for (name, a), b in zip(plain.named_parameters(), private.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name
    assert not any(getattr(m, "activations", None) for m in private.modules()), "nothing of the records is kept"
    losses(private, 1).sum().backward()
    assert not any(getattr(p, "grad_sample", None) is not None for p in private.parameters())


class Dense(torch.nn.Module):
    """Many parameters, cheap."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(500, 200)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).square().mean(dim=1)


@pytest.mark.parametrize("num_parts", [0, 1, 3])
def test_the_noise_has_the_standard_deviation_sigma_c_and_is_added_once(num_parts):
    sigma, bound, expected = 1.7, 0.3, 8.5
    torch.manual_seed(0)
    net = Dense()
    x = torch.randn(3, 4, 500)
    clipped = torch.zeros_like(net.linear.weight)
    for part in x[:num_parts]:
        for record in part:
            grads = torch.autograd.grad(net(record[None]).sum(), list(net.parameters()))
            norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
            clipped += grads[0] * min(1.0, bound / norm)
    before = net.linear.weight.detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    with PrivateSteps(
        net, optimizer, noise_multiplier=sigma, max_grad_norm=bound, expected_batch=expected,
        generator=torch.Generator().manual_seed(3),
    ) as steps:  # fmt: skip
        for part in x[:num_parts]:
            steps.add(net(part))
        steps.finish()
    noise = (before - net.linear.weight.detach()) * expected - clipped
    assert float(noise.std()) == pytest.approx(sigma * bound, rel=0.02)
    assert abs(float(noise.mean())) < 4 * sigma * bound / math.sqrt(noise.numel())


def test_poisson_batches_hold_every_record_with_the_same_probability_and_independently():
    batches = PoissonBatches(40, 0.25, torch.Generator().manual_seed(0))
    draws = [batches.draw() for _ in range(4000)]
    seen = torch.stack([torch.bincount(d, minlength=40) for d in draws]).double()
    assert seen.max() == 1, "a record is in a batch once or not at all"
    assert torch.allclose(seen.mean(dim=0), torch.tensor(0.25, dtype=torch.float64), atol=0.035)  # 5 sd
    assert float(seen.sum(dim=1).var()) == pytest.approx(40 * 0.25 * 0.75, rel=0.12), "sizes vary as a binomial's"
    assert len(PoissonBatches(3, 1e-9, torch.Generator()).draw()) == 0
    assert PoissonBatches(3, 1.0, torch.Generator()).draw().tolist() == [0, 1, 2]


def test_where_patients_are_known_a_patient_counts_once():
    patients = np.array([7, 7, 7, 7, 3, 9, 9, 3, 7])
    batches = PoissonBatches(len(patients), 0.5, torch.Generator().manual_seed(0), patients=patients)
    assert batches.num_units == 3
    counts = np.zeros(len(patients))
    for _ in range(6000):
        drawn = batches.draw().numpy()
        assert len(set(patients[drawn])) == len(drawn)
        counts[drawn] += 1
    for patient, images in ((7, 5), (3, 2), (9, 2)):
        assert np.allclose(counts[patients == patient] / 6000, 0.5 / images, atol=0.035)


def test_the_systems_generators_are_never_the_same():
    first, second = (torch.rand(4, generator=system_generator()) for _ in range(2))
    assert not torch.equal(first, second)


def test_what_cannot_be_private_is_refused_with_the_reason():
    refuse_what_cannot_be_private(config())
    run = config().run
    for changed, part in (
        (replace(config(), training=replace(config().training, head="ridge")), "head=ridge: it is solved from sums"),
        (
            replace(config(), training=replace(config().training, pseudo_policy="freematch")),
            "pseudo-policy=freematch: it learns from all",
        ),
        (
            replace(config(), training=replace(config().training, pseudo_policy="mixture")),
            "pseudo-policy=mixture: it learns from all",
        ),
        (
            replace(config(), training=replace(config().training, alignment="uniform")),
            "alignment=uniform: it learns from all",
        ),
        (
            replace(config(), training=replace(config().training, teacher="agreement")),
            "teacher=agreement: it is not built for private steps",
        ),
        (replace(config(), training=replace(config().training, autocast="bf16")), "autocast=bf16"),
        (replace(config(), run=replace(run, weighting="labels")), "weighting=labels"),
        (replace(config(), run=replace(run, weighting="confidence")), "weighting=confidence"),
        (replace(config(), run=replace(run, decoder_weighting="labels")), "decoder-weighting=labels"),
    ):
        with pytest.raises(ConfigError, match="cannot have") as error:
            refuse_what_cannot_be_private(changed)
        assert part in str(error.value) and "Take" in str(error.value)


def test_a_layer_without_per_record_gradients_is_refused():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    with pytest.raises(ConfigError, match="cannot be trained privately"):
        PrivateSteps(
            net, torch.optim.SGD(net.parameters(), lr=1.0), noise_multiplier=1.0, max_grad_norm=1.0,
            expected_batch=1.0, generator=torch.Generator(),
        )  # fmt: skip


def test_methods_have_presets_that_can_be_private_or_say_why_not():
    data = {"channels": 1, "num_outputs": 2, "task": "multi-class"}
    for method in ("joint", "fixmatch", "supervised"):
        refuse_what_cannot_be_private(resolve(RunConfig(method=method, target_epsilon=8.0), **data))
    with pytest.raises(ConfigError, match="head=ridge"):
        refuse_what_cannot_be_private(resolve(RunConfig(method="two-stage", target_epsilon=8.0), **data))
