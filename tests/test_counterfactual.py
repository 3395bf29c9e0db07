"""Counterfactuals of a small model that was quickly trained to tell bright images from dark ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from jointdiff.config import Config, ModelConfig, RunConfig, TrainingConfig
from jointdiff.counterfactual import (
    DEFAULT_METHOD,
    METHODS,
    MIN_TYPICAL,
    default_targets,
    explain,
    typical_margins,
)
from jointdiff.data import hospital_data
from jointdiff.edit_task import CounterfactualSettings, EditTask, References
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
        dataset=f"npz:{path}",
        image_size=16,
        num_hospitals=1,
        num_labels=0,
        num_rounds=1,
        local_steps=40,
        batch_size=16,
        audit_holdout=0.2,
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


def test_an_image_that_is_there_already_is_not_touched(bright_or_dark):
    model, images = bright_or_dark
    own = model.classify(images[:8]).argmax(dim=1)
    stay, leave = edit(model, images[:8], own), edit(model, images[:8], 1 - own)
    assert bool(stay.found.all()) and torch.equal(stay.images, images[:8])
    assert bool((leave.images != images[:8]).flatten(1).any(dim=1).all())


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


@pytest.mark.parametrize("method", ["authors", "tweedie", "inversion"])
def test_every_method_raises_the_targets_probability(bright_or_dark, method):
    model, images = bright_or_dark
    images = images[:6]
    targets = 1 - model.classify(images).argmax(dim=1)
    result = METHODS[method](model, images, targets, ALPHA_BAR, prediction="v")
    rows = torch.arange(len(images))
    assert bool((result.probs_after[rows, targets] > result.probs_before[rows, targets] + 0.1).all())


def test_inversion_keeps_more_of_the_scan_than_noise_does(bright_or_dark):
    model, images = bright_or_dark
    targets = 1 - model.classify(images[:8]).argmax(dim=1)
    edits = {m: METHODS[m](model, images[:8], targets, ALPHA_BAR, prediction="v").images for m in METHODS}
    change = {m: (e - images[:8]).abs().mean().item() for m, e in edits.items()}
    assert change["inversion"] < 0.7 * change["tweedie"]
    assert change["inversion"] < 0.7 * change["authors"]
    assert torch.equal(explain(model, images[:8], targets, ALPHA_BAR, prediction="v").images, edits[DEFAULT_METHOD])


def test_an_l1_term_makes_the_edit_smaller(bright_or_dark):
    model, images = bright_or_dark
    targets = 1 - model.classify(images[:8]).argmax(dim=1)
    free, held = (
        METHODS["inversion"](
            model, images[:8], targets, ALPHA_BAR, prediction="v", settings=CounterfactualSettings(l1=l1)
        ).images
        for l1 in (0.0, 0.1)
    )
    assert (held - images[:8]).abs().mean() < 0.8 * (free - images[:8]).abs().mean()


def test_what_cannot_be_turned_over_is_no_explanation(bright_or_dark):
    """With guided steps of no length only the draw of a region can change the decision."""
    model, images = bright_or_dark
    targets = 1 - model.classify(images[:4]).argmax(dim=1)
    result = edit(model, images[:4], targets, max_step=0.0)
    assert not result.found.all() and bool(result.probs_after.isfinite().all())
    assert torch.equal(result.found, result.probs_after.argmax(dim=1) == targets)


def test_an_edit_goes_as_far_as_typical_scans_of_its_target_and_no_further(bright_or_dark):
    model, images = bright_or_dark
    images = images[:8]
    targets = 1 - model.classify(images).argmax(dim=1)
    rows = torch.arange(len(images))
    unsure, sure = (
        explain(
            model, images, targets, ALPHA_BAR, prediction="v", references=References(torch.full((2, 2), goal))
        ).probs_after[rows, targets]
        for goal in (0.7, 4.0)
    )  # fmt: skip
    assert bool((sure > unsure).all()) and unsure.mean() < 0.85 < sure.mean()


def test_typical_margins_are_those_of_the_models_own_decisions():
    sure, unsure = torch.tensor([[0.1, 0.9]]), torch.tensor([[0.6, 0.4]])
    few = typical_margins(torch.cat([sure.repeat(MIN_TYPICAL, 1), unsure.repeat(MIN_TYPICAL - 1, 1)]))
    assert few[1, 1].item() == pytest.approx(np.log(9), rel=1e-4) and few[0].isnan().all() and few[1, 0].isnan()
    labels = typical_margins(torch.tensor([[0.9, 0.2]]).repeat(MIN_TYPICAL, 1))
    assert labels[0, 1].item() == pytest.approx(np.log(9), rel=1e-4)
    assert labels[1, 0].item() == pytest.approx(np.log(4), rel=1e-4) and labels[1, 1].isnan()


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


def convincing(result, targets, goal):
    """Return which edits reach a margin."""
    chosen = result.probs_after.gather(1, targets[:, None])[:, 0]
    return (chosen / (1 - chosen)).log() >= goal


def test_a_distance_in_the_models_own_features_keeps_the_edit_nearer_to_its_scan(bright_or_dark):
    model, images = bright_or_dark
    images = images[:8]
    targets = 1 - model.classify(images).argmax(dim=1)

    def far(edited):
        with torch.no_grad():
            apart = (model.features(edited) - model.features(images)) / model.head.scale
        return apart.square().mean().item()

    free, held = (
        METHODS["inversion"](
            model, images, targets, ALPHA_BAR, prediction="v", settings=CounterfactualSettings(features=share)
        )
        for share in (0.0, 0.5)
    )
    assert far(held.images) < 0.9 * far(free.images)
    assert bool(held.found.all()), "what the distance takes from the margin is given back"


def test_of_several_noise_levels_the_least_edit_that_convinces_stays(bright_or_dark):
    model, images = bright_or_dark
    images = images[:8]
    targets = 1 - model.classify(images).argmax(dim=1)
    one, several = (edit(model, images, targets, depths=depths) for depths in ((), (0.2, 0.45, 0.95)))
    size = [(r.images - images).abs().mean(dim=(1, 2, 3)) for r in (one, several)]
    goal = np.log(0.95 / 0.05) - CounterfactualSettings().slack - 1e-3
    before = convincing(one, targets, goal)
    assert before.any() and bool(convincing(several, targets, goal)[before].all())
    assert bool((size[1] <= size[0])[before].all()) and bool((size[1] < size[0])[before].any())


DIFFUSE = {"diffuse": 0.0, "widest": 1.0, "most_changed": 1.0}  # every change is one, and nothing holds it back


def guided_beyond(bright_or_dark, *, others=None, **settings):
    """Return eight scans and their edits towards the other class, for modest goals."""
    model, images = bright_or_dark
    images = images[:8]
    found = explain(
        model, images, 1 - model.classify(images).argmax(dim=1), ALPHA_BAR, prediction="v",
        settings=CounterfactualSettings(**settings), references=References(torch.full((2, 2), 0.5), others),
    )  # fmt: skip
    return images, found


def test_overshoot_goes_beyond_what_is_wanted_in_the_same_region(bright_or_dark):
    sure = []
    for margin in (0.0, 1.0):
        images, found = guided_beyond(bright_or_dark, overshoot=(margin,), max_step=1.0, **DIFFUSE)
        targets = 1 - found.probs_before.argmax(dim=1)
        sure.append(found.probs_after[torch.arange(len(images)), targets])
    assert bool((sure[1] > sure[0]).all()), sure


def test_an_edit_that_would_look_like_another_scan_is_not_guided_beyond_its_goal(bright_or_dark):
    settings = DIFFUSE | {"overshoot": (3.0,)}
    images, free = guided_beyond(bright_or_dark, **settings)
    _, spot = guided_beyond(bright_or_dark, others=images, **settings | {"diffuse": 1.0})
    assert not torch.equal(free.images, spot.images)
    # The very edits that nothing held back lie among the scans: each is another patient's now.
    _, held = guided_beyond(bright_or_dark, others=torch.cat([images, free.images]), **settings)
    assert torch.equal(held.images, spot.images)
    # The scan itself, far enough from its edit, is nobody else.
    _, alone = guided_beyond(bright_or_dark, others=images[:1], **settings)
    assert torch.equal(alone.images[0], free.images[0])


def test_it_must_stay_clearly_nearer_to_its_own_scan(bright_or_dark):
    settings = DIFFUSE | {"overshoot": (3.0,)}
    images, free = guided_beyond(bright_or_dark, **settings)
    further = free.images + 1.5 * (free.images - images)  # from the edit one and a half times as far as the own scan
    _, near = guided_beyond(bright_or_dark, others=further, apart=1.0, **settings)
    _, held = guided_beyond(bright_or_dark, others=further, apart=1.6, **settings)
    assert torch.equal(near.images, free.images) and not torch.equal(held.images, free.images)


def test_of_the_margins_beyond_the_first_that_changes_little_enough_is_taken(bright_or_dark):
    def visible(found):
        return ((found.images - images).abs().amax(dim=1) > 0.1).float().mean(dim=(1, 2))

    images, far = guided_beyond(bright_or_dark, **DIFFUSE | {"overshoot": (4.0,)})
    _, near = guided_beyond(bright_or_dark, **DIFFUSE | {"overshoot": (0.0,)})
    limit = float(visible(far).median()) - 1e-4
    _, both = guided_beyond(bright_or_dark, **DIFFUSE | {"overshoot": (4.0, 0.0), "most_changed": limit})
    much = visible(far) > limit
    assert 0 < int(much.sum()) < len(images)
    assert torch.equal(both.images[~much], far.images[~much])
    fits = much & (visible(near) <= limit)
    # Drawn in a smaller batch: the same but for rounding.
    assert fits.any() and torch.allclose(both.images[fits], near.images[fits], atol=1e-3)


def test_the_mirror_image_is_looked_at_too(bright_or_dark):
    model, images = bright_or_dark
    images, targets = images[:4], torch.tensor([0, 1, 0, 1])
    goal = torch.full((4,), 2.0)

    def step(share):
        task = EditTask(
            model, images, targets, ALPHA_BAR, "v", CounterfactualSettings(mirrored=share), torch.ones(4), goal
        )
        return task.guided(mirrored=True)(images, torch.full((4,), 20))

    alone, whole = step(0.0), step(1.0)
    assert not torch.allclose(alone, whole, atol=1e-3) and not torch.allclose(step(0.5), alone, atol=1e-3)
    plain = EditTask(model, images, targets, ALPHA_BAR, "v", CounterfactualSettings(), torch.ones(4), goal)
    assert torch.equal(plain.guided()(images, torch.full((4,), 20)), alone)


def test_a_diffuse_change_gets_a_region_of_its_own_extent_and_a_spot_the_smallest_that_will_do(bright_or_dark):
    model, images = bright_or_dark
    images = images[:8]
    targets = 1 - model.classify(images).argmax(dim=1)
    spot, spot_beyond, diffuse = (
        edit(model, images, targets, **DIFFUSE | {"diffuse": limit, "overshoot": (overshoot,)}).images
        for limit, overshoot in ((1.0, 0.0), (1.0, 5.0), (0.0, 0.0))
    )
    assert torch.equal(spot, spot_beyond)  # only a diffuse change is guided beyond the goal
    changed = [((edited - images).abs() > 0.02).float().flatten(1).mean(dim=1) for edited in (spot, diffuse)]
    assert bool((changed[1] >= changed[0]).all()) and float((changed[1] - changed[0]).mean()) > 0.1
