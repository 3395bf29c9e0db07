"""A round's pseudo-labels: teachers and policies put together, and what survives from round to round."""

import copy
import dataclasses
import functools

import numpy as np
import pytest
import torch

from client import state as site_state
from jointdiff import pseudo_label_keys
from jointdiff.augment import PIXEL_VIEWS
from jointdiff.config import Config, ModelConfig, RunConfig, TrainingConfig
from jointdiff.data import hospital_data
from jointdiff.evaluation import predict
from jointdiff.labeller import PseudoLabeller, PseudoLabels, carried_over
from jointdiff.losses import pseudo_label_loss
from jointdiff.model import JointModel, to_network
from jointdiff.pseudo_labels import shares
from jointdiff.teachers import VOICES, LocalAverage

MODEL = ModelConfig(width=8, multipliers=(1, 2), attention_levels=(1,), patch_size=2)
CPU = torch.device("cpu")
TEACHERS = ("local", "global", "local-ema", "agreement")
POLICIES = ("fixed", "freematch", "flexmatch", "softmatch")
TASKS = {"multi-class": "phantom", "multi-label": "phantom:multi-label"}


@functools.cache
def site(task="multi-class"):
    """Sixty of a hospital's images, the labelled ones first: places among all and among the unlabelled differ."""
    train = hospital_data(RunConfig(dataset=TASKS[task], num_labels=12, device="cpu"), 0).train
    return train.select(np.concatenate([np.flatnonzero(train.labelled), np.flatnonzero(~train.labelled)[:56]]))


def config(task="multi-class", **training):
    return Config(
        model=dataclasses.replace(MODEL, task=task), training=TrainingConfig(**{"threshold": 0.6, **training})
    )


def fresh(cfg):
    torch.manual_seed(0)
    model = JointModel(cfg.model)
    torch.nn.init.normal_(model.head.linear.weight, std=2.0)
    return model


def labeller(model, train, cfg, state=None):
    return PseudoLabeller(model, train, cfg, state=state, device=CPU)


def batch(train, seed):
    pool = torch.as_tensor((~train.labelled).nonzero()[0])
    index = pool[torch.randint(len(pool), (12,), generator=torch.Generator().manual_seed(seed))]
    return to_network(train.images[index.numpy()]), index, torch.Generator().manual_seed(seed)


def test_the_keys_name_the_teachers():
    assert tuple(VOICES) == pseudo_label_keys.TEACHERS


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_flow_through_the_strong_view_alone(policy, teacher):
    train, cfg = site(), config(pseudo_policy=policy, teacher=teacher, alignment="uniform")
    model = fresh(cfg)
    x, index, generator = batch(train, 0)
    with torch.enable_grad():
        taught = labeller(model, train, cfg).label(x, index, generator)
    assert not any(t.requires_grad for t in taught)
    logits = torch.zeros(12, 2, requires_grad=True)
    pseudo_label_loss(logits, taught.target, torch.ones_like(taught.weight)).mean().backward()
    assert logits.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.parameters())
    assert 0.5 <= taught.confidence <= 1


@pytest.mark.parametrize(("teacher", "alignment"), [("local", "none"), ("agreement", "estimated")])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_restart_changes_no_bit(tmp_path, policy, task, teacher, alignment):
    """Four batches in a row, and two, the site's disk, two: the same labels, weights and state."""
    train = site(task)
    cfg = config(task, pseudo_policy=policy, teacher=teacher, alignment=alignment)
    model = fresh(cfg)
    whole = labeller(model, train, cfg)
    straight = [whole.label(*batch(train, n)) for n in range(4)]

    first = labeller(model, train, cfg)
    parts = [first.label(*batch(train, n)) for n in range(2)]
    site_state.save(tmp_path, "run", 1, first.state())
    again = labeller(model, train, cfg, state=site_state.load(tmp_path, "run", before=2))
    parts += [again.label(*batch(train, n)) for n in range(2, 4)]
    for one, other in zip(straight, parts, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert whole.state().keys() == again.state().keys()
    assert all(torch.equal(t, again.state()[name]) for name, t in whole.state().items())
    assert bool(whole.state()) == (policy != "fixed" or alignment != "none")
    forgetful = labeller(model, train, cfg)
    forgot = [forgetful.label(*batch(train, n)) for n in range(2, 4)]
    if whole.state():
        assert any(not torch.equal(t, forgetful.state()[name]) for name, t in whole.state().items()), forgot


def test_two_voices_remember_apart():
    train, cfg = site(), config(pseudo_policy="freematch", teacher="agreement", alignment="uniform")
    both = labeller(fresh(cfg), train, cfg)
    both.label(*batch(train, 0))
    kept = both.state()
    assert kept.keys() == {
        "thresholds.confidence", "thresholds.class_probs", "thresholds.global.confidence",
        "thresholds.global.class_probs", "alignment.mean", "alignment.global.mean",
    }  # fmt: skip
    assert not torch.equal(kept["thresholds.confidence"], kept["thresholds.global.confidence"])
    assert carried_over({**kept, "optimizer.step": torch.tensor(3)}).keys() == kept.keys()
    assert carried_over(None) == {}


def test_a_memory_of_other_images_is_not_taken_for_theirs():
    train, cfg = site(), config(pseudo_policy="flexmatch", teacher="local")
    stale = {"thresholds.settled": torch.zeros(3, 1, dtype=torch.int64)}
    kept = labeller(fresh(cfg), train, cfg, state=stale).state()["thresholds.settled"]
    assert kept.shape == (int((~train.labelled).sum()), 1) and (kept == -1).all()


def test_flexmatch_remembers_the_images_that_were_drawn():
    train, cfg = site(), config(pseudo_policy="flexmatch", teacher="global", threshold=0.5)
    one = labeller(fresh(cfg), train, cfg)
    x, index, generator = batch(train, 0)
    taught = one.label(x, index, generator)
    settled = one.state()["thresholds.settled"][:, 0]
    places = {int(i): n for n, i in enumerate((~train.labelled).nonzero()[0])}
    drawn = [places[int(i)] for i in index]
    assert [int(settled[n]) for n in drawn] == taught.target.tolist()
    assert int((settled >= 0).sum()) == len(set(drawn))


def test_the_global_teacher_is_asked_once_and_does_not_follow():
    train, cfg = site(), config(pseudo_policy="fixed", teacher="global")
    model = fresh(cfg)
    expected = torch.as_tensor(predict(model, train.images, device=CPU))
    one = labeller(model, train, cfg)
    torch.nn.init.zeros_(model.head.linear.weight)
    one.follow()
    x, index, generator = batch(train, 0)
    taught = one.label(x, index, generator)
    assert torch.equal(taught.target, expected[index].argmax(dim=1))
    torch.testing.assert_close(taught.confidence, expected[index].max(dim=1).values.mean())


def test_the_average_starts_from_the_weights_sent_and_follows_every_step():
    cfg = config()
    model = fresh(cfg)
    sent = copy.deepcopy(model.state_dict())
    average = LocalAverage(model, PIXEL_VIEWS.weak, decay=0.75)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    average.follow()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    average.follow()
    for name, parameter in average._average.named_parameters():
        # 0.75 (0.75 w + 0.25 (w + 1)) + 0.25 (w + 2)
        torch.testing.assert_close(parameter, sent[name] + 0.75 * 0.25 + 0.25 * 2)


def test_an_average_without_memory_is_the_local_model():
    train = site()
    ema = config(pseudo_policy="softmatch", teacher="local-ema", teacher_ema_decay=0.0)
    local = config(pseudo_policy="softmatch", teacher="local")
    model = fresh(ema)
    pair = labeller(model, train, ema), labeller(model, train, local)
    with torch.no_grad():
        model.head.linear.bias.copy_(torch.tensor([0.3, -0.3]))
    for one in pair:
        one.follow()
    averaged, itself = (one.label(*batch(train, 0)) for one in pair)
    torch.testing.assert_close(averaged.confidence, itself.confidence)
    torch.testing.assert_close(averaged.weight, itself.weight)


def test_estimated_alignment_draws_labels_to_the_shares_of_the_unlabelled_images():
    train = site()
    none, estimated = (config(pseudo_policy="fixed", teacher="global", alignment=a) for a in ("none", "estimated"))
    model = fresh(none)
    torch.nn.init.constant_(model.head.linear.bias[:1], 0.5)  # leans to the first class
    probs = torch.as_tensor(predict(model, train.images, device=CPU))
    unlabelled = torch.as_tensor((~train.labelled).nonzero()[0])
    share = shares(probs, torch.as_tensor(train.labels), unlabelled)
    assert abs(probs[unlabelled].mean(dim=0) - share).max() > 0.02, "there is something to align"
    one = labeller(model, train, estimated)
    for n in range(30):
        one.label(*batch(train, n))
    assert abs(one.state()["alignment.mean"] - probs[unlabelled].mean(dim=0)).max() < 0.05


def test_soft_targets_have_a_hard_side():
    hard = PseudoLabels(torch.tensor([1, 0]), torch.ones(2), torch.tensor(0.9))
    soft = PseudoLabels(torch.tensor([[0.2, 0.8], [0.7, 0.3]]), torch.ones(2), torch.tensor(0.9))
    labels = PseudoLabels(torch.tensor([[0.2, 0.8], [0.7, 0.5]]), torch.ones(2, 2), torch.tensor(0.9))
    assert hard.hard().tolist() == soft.hard().tolist() == [1, 0]
    assert labels.hard().tolist() == [[0, 1], [1, 1]]
