"""Attacks find an overfitted model's members, and nothing in a model that has seen no data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from jointdiff import diffusion
from jointdiff.attacks import membership, scores
from jointdiff.attacks.references import halves, hide_labels, train_references
from jointdiff.config import Config, ModelConfig, RunConfig, TrainingConfig
from jointdiff.data import UNKNOWN, HospitalData, ImageSet
from jointdiff.data.phantom import load_phantom
from jointdiff.losses import classification_loss, denoising_loss
from jointdiff.model import JointModel, to_network
from jointdiff.schedule import SCHEDULES

CPU = torch.device("cpu")
MODEL = ModelConfig(width=16, multipliers=(1,), attention_levels=(), patch_size=2, image_size=16)
RUN = RunConfig(num_rounds=1, local_steps=3, batch_size=8, image_size=16, device="cpu")
CONFIG = Config(RUN, MODEL, TrainingConfig(head="gradient", warmup_fraction=0.0, num_timesteps=200))


@pytest.fixture(scope="module")
def records() -> HospitalData:
    """140 scans; the labels say nothing about the picture, so that only memory can know them."""
    drawn = load_phantom(image_size=16, sizes={"train": 140, "val": 1, "test": 4})
    labels = np.random.default_rng(0).integers(0, 2, 140)
    train = replace(drawn.train, labels=labels, masks=None, twins=None)
    return HospitalData(drawn.info, train, labels, None, drawn.test)


def fresh(seed: int = 0) -> JointModel:
    torch.manual_seed(seed)
    model = JointModel(MODEL)
    for parameter in model.parameters():  # layers that begin at zero would make every score the same
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def auc_of(values: np.ndarray, num_members: int) -> membership.Membership:
    return membership.measure(values[:num_members], values[num_members:], rng=np.random.default_rng(0))


def test_an_overfitted_classifier_gives_its_members_away(records: HospitalData) -> None:
    model = fresh()
    x, y = to_network(records.train.images[:16]), torch.from_numpy(records.train.labels[:16])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        classification_loss(model.classify(x), y).mean().backward()
        optimizer.step()
    found = scores.classification_scores(model, records.train.images[:76], records.train.labels[:76], device=CPU)
    assert auc_of(found, 16).auc.value > 0.8 and auc_of(found, 16).auc.low > 0.6
    with torch.no_grad():
        losses = classification_loss(model.classify(to_network(records.train.images[16:76])),
                                     torch.from_numpy(records.train.labels[16:76]))  # fmt: skip
    np.testing.assert_allclose(np.log1p(np.exp(-found[16:])), losses, rtol=1e-3, atol=1e-5)


def test_an_overfitted_denoiser_gives_its_members_away(records: HospitalData) -> None:
    model, draws, training = fresh(), torch.Generator().manual_seed(0), CONFIG.training
    x, alpha_bar = to_network(records.train.images[:16]), SCHEDULES[training.schedule](training.num_timesteps)
    optimizer = torch.optim.Adam(model.parameters(), lr=6e-3)
    for _ in range(240):
        t, eps = torch.randint(10, 150, (16,), generator=draws), torch.randn(x.shape, generator=draws)
        output = model.denoise(diffusion.add_noise(x, eps, t, alpha_bar), t)
        goal = diffusion.target(x, eps, t, alpha_bar, prediction=training.prediction)
        optimizer.zero_grad()
        denoising_loss(output, goal, torch.ones(16)).mean().backward()
        optimizer.step()
    found = auc_of(scores.denoising_scores(model, records.train.images[:76], CONFIG, device=CPU), 16).auc
    assert found.value > 0.7 and found.low > 0.6


def test_random_weights_know_nobody(records: HospitalData) -> None:
    model, train = fresh(1), records.train
    of_classes = scores.classification_scores(model, train.images, train.labels, device=CPU)
    of_denoising = scores.denoising_scores(model, train.images, CONFIG, device=CPU)
    for found in (auc_of(of_classes, 70).auc, auc_of(of_denoising, 70).auc):
        assert found.low < 0.5 < found.high and found.high - found.low < 0.25
    assert np.ptp(of_classes) > 0.01 and np.ptp(of_denoising) > 0.001


def test_scores_do_not_depend_on_the_company(records: HospitalData) -> None:
    model, images = fresh(), records.train.images
    together = scores.denoising_scores(model, images[:9], CONFIG, device=CPU)
    alone = scores.denoising_scores(model, images[4:5], CONFIG, device=CPU)
    np.testing.assert_allclose(together[4], alone[0], rtol=1e-4)
    np.testing.assert_allclose(together, scores.denoising_scores(model, images[:9], CONFIG, device=CPU, batch_size=4),
                               rtol=1e-4)  # fmt: skip


def test_a_score_of_several_findings_is_the_mean_of_theirs() -> None:
    torch.manual_seed(0)
    model = JointModel(replace(MODEL, task="multi-label"))
    model.head.linear.bias.data = torch.tensor([2.0, -1.0])
    images = np.zeros((2, 16, 16, 1), np.uint8)
    found = scores.classification_scores(model, images, np.array([[1, 0], [0, 0]]), device=CPU)
    np.testing.assert_allclose(found, [1.5, -0.5], rtol=1e-5)


def test_every_record_is_unknown_to_one_of_each_pair() -> None:
    chosen = halves(7, 6, seed=0)
    assert (chosen[0::2] ^ chosen[1::2]).all() and set(chosen[0::2].sum(axis=1)) == {3}
    assert (chosen[0] != chosen[2]).any()
    with pytest.raises(ValueError, match="pairs"):
        halves(7, 3, seed=0)


def references(pool: ImageSet, trained_on: np.ndarray, data: HospitalData) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    train_references(
        pool, trained_on, data, CONFIG, hospital_index=0, device=CPU,
        callback=lambda model: found.append(torch.cat([p.detach().flatten() for p in model.parameters()]).clone()),
    )  # fmt: skip
    return found


def test_a_reference_model_sees_its_half_and_nothing_else(records: HospitalData) -> None:
    pool, trained_on = records.train.select(np.arange(40)), halves(40, 2, seed=0)
    first = references(pool, trained_on, records)
    assert len(first) == 2 and not torch.equal(*first)
    spoiled = np.where(trained_on[0][:, None, None, None], pool.images, 255 - pool.images)
    second = references(replace(pool, images=spoiled), trained_on, records)
    assert torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])


def test_labels_are_hidden_at_the_rate_of_the_members() -> None:
    labels = np.ones((2000, 2), np.int64)
    shown = hide_labels(labels, share=0.25, rng=np.random.default_rng(0))
    known = (shown == 1).all(axis=1)
    assert abs(known.mean() - 0.25) < 0.04 and (shown[~known] == UNKNOWN).all()
