"""Counterfactuals of a small model that was quickly trained to tell bright images from dark ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from jointdiff.config import Config, ModelConfig, RunConfig, TrainingConfig
from jointdiff.counterfactual import CounterfactualSettings, default_targets, explain, smallest_region
from jointdiff.data import hospital_data
from jointdiff.head import head_statistics, solve_head
from jointdiff.model import JointModel, to_network
from jointdiff.schedule import cosine_alpha_bar
from jointdiff.training import train_round

CPU = torch.device("cpu")
MODEL = ModelConfig(width=8, multipliers=(1,), attention_levels=(), patch_size=2, image_size=16)
ALPHA_BAR = cosine_alpha_bar(1000)


def trained(run, task="multi-class"):
    """Return a model after a few steps of denoising with a solved head, and the hospital's training images."""
    data = hospital_data(run, 0)
    config = Config(run=run, model=dataclasses.replace(MODEL, task=task), training=TrainingConfig(warmup_fraction=1.0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = JointModel(config.model)
    train_round(model, data, config, round_number=1, hospital_index=0, device=CPU, state=None)
    model.load_state_dict({**model.state_dict(), **solve_head(head_statistics(model, data, config, CPU), config)})
    model.zero_grad(set_to_none=True)
    return model.eval(), to_network(data.train.images)


def one_hospital(path):
    return RunConfig(
        dataset=f"npz:{path}", image_size=16, num_hospitals=1, num_labels=0, num_rounds=1, local_steps=40, batch_size=16
    )


@pytest.fixture(scope="module")
def bright_or_dark(tiny_files):
    return trained(one_hospital(tiny_files / "data.npz"))


def edit(model, images, targets, **settings):
    settings = CounterfactualSettings(**settings)
    return explain(model, images, targets, ALPHA_BAR, prediction="v", settings=settings)


def test_the_edit_makes_the_model_decide_for_the_target(bright_or_dark):
    model, images = bright_or_dark
    images = images[:12]
    before = model.probabilities(model.classify(images)).detach()
    targets = default_targets(before, task="multi-class")
    assert torch.equal(targets, 1 - before.argmax(dim=1)) and len(targets.unique()) == 2
    result = edit(model, images, targets)
    rows = torch.arange(len(images))
    assert bool((result.probs_after[rows, targets] > result.probs_before[rows, targets] + 0.2).all())
    assert bool(result.found.all()) and torch.equal(result.probs_after.argmax(dim=1), targets)
    torch.testing.assert_close(result.probs_before, before)
    torch.testing.assert_close(result.probs_after, model.probabilities(model.classify(result.images)).detach())
    brighter = (result.images - images).mean(dim=(1, 2, 3))
    assert bool(((brighter > 0) == (targets == 1)).all()), "what makes an image ill here is its brightness"
    assert result.images.abs().max() <= 1 + 1e-5 and result.seconds_per_image > 0


def test_an_image_that_is_there_already_is_hardly_touched(bright_or_dark):
    model, images = bright_or_dark
    probs = model.probabilities(model.classify(images)).detach()
    sure = images[probs.max(dim=1).values > 0.9][:8]
    own = model.classify(sure).argmax(dim=1)
    stay, leave = edit(model, sure, own), edit(model, sure, 1 - own)
    assert len(sure) == 8 and bool(stay.found.all())
    assert (stay.images - sure).abs().mean() < 0.1 * (leave.images - sure).abs().mean()


def test_the_same_images_give_the_same_edits_and_leave_the_model_alone(bright_or_dark):
    model, images = bright_or_dark
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    targets = 1 - model.classify(images[:4]).argmax(dim=1)
    torch.manual_seed(1)
    first = edit(model, images[:4], targets)
    torch.manual_seed(2)
    again = edit(model, images[:4], targets)
    assert torch.equal(first.images, again.images) and not first.images.requires_grad
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_no_strength_that_convinces_is_no_explanation(bright_or_dark):
    model, images = bright_or_dark
    targets = 1 - model.classify(images[:4]).argmax(dim=1)
    result = edit(model, images[:4], targets, scales=(0.0,))
    assert not result.found.any() and bool(result.probs_after.isfinite().all())


def test_a_label_is_turned_over_in_either_direction(tmp_path):
    """Two findings: brightness, and grain."""
    rng = np.random.default_rng(0)
    labels = np.stack([np.arange(64) % 2, np.arange(64) // 2 % 2], axis=1)
    grain = rng.normal(0, 1, (64, 16, 16)) * np.where(labels[:, 1], 45, 15)[:, None, None]
    images = np.clip(90 + 60 * labels[:, 0, None, None] + grain, 0, 255).astype(np.uint8)
    path = tmp_path / "findings.npz"
    np.savez(path, train_images=images, train_labels=labels, test_images=images[:8], test_labels=labels[:8])
    model, images = trained(one_hospital(path), "multi-label")
    images = images[:12]
    for label in (0, 1):
        result = edit(model, images, torch.full((12,), label))
        was, now = (p[:, label] > 0.5 for p in (result.probs_before, result.probs_after))
        assert was.any() and not was.all()
        assert result.found.float().mean() >= 0.75
        assert torch.equal(result.found, was != now)


def test_the_default_target_is_the_nearest_other_decision():
    assert default_targets(torch.tensor([[0.9, 0.45, 0.1], [0.3, 0.98, 0.99]]), task="multi-label").tolist() == [1, 0]
    assert default_targets(torch.tensor([[0.7, 0.1, 0.2], [0.3, 0.6, 0.1]]), task="multi-class").tolist() == [2, 0]


BLOB = (slice(None), slice(None), slice(4, 8), slice(4, 8))


def blob_log_prob(x):
    """The classifier looks at a 4 x 4 blob alone: p = its mean."""
    return x[BLOB].mean(dim=(1, 2, 3)).clamp(min=1e-6).log()


def blob_edit():
    """Return black images and edits: white at the blob, faint everywhere."""
    images = torch.zeros(3, 1, 16, 16)
    edited = images + 0.05
    edited[BLOB] = 1.0
    return images, edited


def test_the_smallest_region_convinces_and_nothing_outside_it_changes():
    images, edited = blob_edit()
    result = smallest_region(images, edited, blob_log_prob, confidence=0.75, shares=(0.02, 0.1, 0.15, 0.25, 0.5))
    assert bool((blob_log_prob(result).exp() >= 0.75).all())
    outside = torch.ones_like(images, dtype=torch.bool)
    outside[:, :, 1:11, 1:11] = False  # the blob, the smoothing of the change, and the soft edge
    assert torch.equal(result[outside], images[outside])
    assert not torch.equal(edited[outside], images[outside])


def test_the_first_share_that_convinces_is_taken():
    images, edited = blob_edit()
    small, large = (
        smallest_region(images, edited, blob_log_prob, confidence=c, shares=(0.03, 0.1, 0.25)) for c in (0.2, 0.9)
    )
    assert 0 < (small != images).sum() < (large != images).sum() < images.numel()


def test_an_edit_that_never_convinced_is_returned_whole():
    images, edited = blob_edit()
    edited[1][BLOB[1:]] = 0.3
    result = smallest_region(images, edited, blob_log_prob, confidence=0.75, shares=(0.1, 0.25))
    assert torch.equal(result[1], edited[1])
    assert not torch.equal(result[0], edited[0])
