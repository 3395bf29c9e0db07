"""One image is redrawn from its gradient in the clear, and not from a noised or masked one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jointdiff import diffusion, losses
from jointdiff.attacks import inversion
from jointdiff.config import Config, ModelConfig, TrainingConfig
from jointdiff.data.phantom import load_phantom
from jointdiff.model import JointModel, to_network
from jointdiff.schedule import SCHEDULES

CPU = torch.device("cpu")
MODEL = ModelConfig(width=8, multipliers=(1,), attention_levels=(0,), image_size=16)
CONFIG = Config(model=MODEL, training=TrainingConfig(class_weight=0.5, diffusion_weight=0.25, num_timesteps=100))


@pytest.fixture(scope="module")
def scans() -> np.ndarray:
    return load_phantom(image_size=16, sizes={"train": 60, "val": 1, "test": 1}).train.images


@pytest.fixture(scope="module")
def model() -> JointModel:
    torch.manual_seed(0)
    model = JointModel(MODEL).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def attack(model: JointModel, loss: inversion.Loss, update: inversion.Update, scans: np.ndarray) -> inversion.Inversion:
    mean = scans[1:].mean(axis=0).round().astype(np.uint8)[None]
    drawn = inversion.invert(loss, list(model.parameters()), update, to_network(mean), num_steps=60)
    return inversion.graded(drawn, scans[0], mean, scans, loss="classification", view="clear", label_read=None)


@pytest.mark.parametrize("name", inversion.LOSSES)
def test_the_gradient_in_the_clear_shows_the_image(model: JointModel, scans: np.ndarray, name: str) -> None:
    labels = torch.tensor([1])
    loss = inversion.classification_loss(model, labels)
    if name == "joint":
        loss = inversion.joint_loss(model, labels, CONFIG, generator=generator(), device=CPU)
    update = inversion.update_of(loss, list(model.parameters()), to_network(scans[:1]))
    found = attack(model, loss, update, scans)
    assert found.psnr > found.psnr_guess + 4 and found.ssim > found.ssim_guess
    assert found.recognised


def test_noise_and_masks_hide_it(model: JointModel, scans: np.ndarray) -> None:
    loss = inversion.classification_loss(model, torch.tensor([1]))
    update = inversion.update_of(loss, list(model.parameters()), to_network(scans[:1]))
    for hidden in (
        inversion.clipped_and_noised(update, 1.0, generator=generator()),
        inversion.masked(update, generator=generator()),
    ):
        found = attack(model, loss, hidden, scans)
        assert found.psnr < found.psnr_guess


def test_the_joint_loss_is_the_one_of_training(model: JointModel, scans: np.ndarray) -> None:
    x, labels, training = to_network(scans[:3]), torch.tensor([0, 1, -1]), CONFIG.training
    found = inversion.joint_loss(model, labels, CONFIG, generator=generator(), device=CPU)(x)
    alpha_bar = SCHEDULES[training.schedule](training.num_timesteps)
    t, eps = torch.full((3,), 30), torch.randn(x.shape, generator=generator())
    weight = diffusion.min_snr_weight(t, alpha_bar, gamma=training.snr_gamma, prediction=training.prediction)
    goal = diffusion.target(x, eps, t, alpha_bar, prediction=training.prediction)
    output = model.denoise(diffusion.add_noise(x, eps, t, alpha_bar), t)
    wanted = 0.25 * losses.denoising_loss(output, goal, weight).sum()
    wanted = wanted + 0.5 * losses.classification_loss(model.classify(x), labels).sum()
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_the_update_is_the_gradient_and_a_sum_is_the_sum(model: JointModel, scans: np.ndarray) -> None:
    x, labels, parameters = to_network(scans[:2]), torch.tensor([0, 1]), list(model.parameters())
    together = inversion.update_of(inversion.classification_loss(model, labels), parameters, x)
    single = [
        inversion.update_of(inversion.classification_loss(model, labels[k : k + 1]), parameters, x[k : k + 1])
        for k in range(2)
    ]
    model.zero_grad()
    inversion.classification_loss(model, labels)(x).backward()
    for parameter, total, a, b in zip(parameters, together, *single, strict=True):
        torch.testing.assert_close(a + b, total, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(total, torch.zeros_like(total) if parameter.grad is None else parameter.grad,
                                   rtol=1e-4, atol=1e-6)  # fmt: skip


def test_noise_has_the_deviation_that_was_asked_for() -> None:
    update = [torch.full((100, 100), 0.03), torch.zeros(5)]  # norm 3
    noised = inversion.clipped_and_noised(update, 0.5, generator=generator())
    assert float((noised[0] - update[0]).std()) == pytest.approx(1.5, rel=0.03)
    assert not noised[1].any()  # the attacker knows that nothing is there
    mask = inversion.masked(update, generator=generator(1))[0]
    assert abs(float((mask * update[0]).mean())) < 0.001


@pytest.mark.parametrize("label", [0, 1])
def test_the_label_stands_in_the_gradient_of_the_bias(model: JointModel, scans: np.ndarray, label: int) -> None:
    loss = inversion.classification_loss(model, torch.tensor([label]))
    (bias,) = inversion.update_of(loss, [model.head.linear.bias], to_network(scans[:1]))
    assert inversion.label_in(bias) == label


def test_grades_of_pictures(scans: np.ndarray) -> None:
    a, b = scans[0], scans[1]
    assert inversion.psnr(a, a) == pytest.approx(60) and inversion.ssim(a, a) == pytest.approx(1)
    assert inversion.psnr(a, b) == pytest.approx(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))
    noise = np.random.default_rng(0).integers(0, 256, a.shape).astype(np.uint8)
    assert inversion.ssim(noise, a) < 0.3 < inversion.ssim(b, a) < 1


def test_of_several_reconstructions_the_best_counts(scans: np.ndarray) -> None:
    found = inversion.graded(
        to_network(scans[[5, 0, 7]]), scans[0], scans[[1, 2]], scans, loss="joint", view="sum", label_read=None
    )
    assert found.psnr == pytest.approx(60) and found.recognised
    assert found.psnr_guess == max(inversion.psnr(scans[k], scans[0]) for k in (1, 2))
    wrong = inversion.graded(
        to_network(scans[[5]]), scans[0], scans[[1]], scans, loss="joint", view="sum", label_read=None
    )
    assert not wrong.recognised
