import copy
import dataclasses

import numpy as np
import pytest
import torch

from jointdiff.config import Config, ModelConfig, RunConfig, TrainingConfig
from jointdiff.data import hospital_data
from jointdiff.errors import ConfigError
from jointdiff.model import JointModel
from jointdiff.training import (
    add_proximal_gradient,
    head_is_calibrated_after,
    head_is_solved_after,
    learning_rate_at,
    rate_factor,
    select_device,
    term_weights,
    train_round,
)
from jointdiff.training_keys import check_rates

RUN = RunConfig(num_rounds=4, local_steps=2, batch_size=4, num_labels=12, device="cpu")
MODEL = ModelConfig(width=8, multipliers=(1, 2), attention_levels=(1,), patch_size=2)
CPU = torch.device("cpu")


def config(**training):
    return Config(run=RUN, model=MODEL, training=TrainingConfig(**{"pseudo_start_fraction": 0.0, **training}))


def fresh():
    torch.manual_seed(0)
    model = JointModel(MODEL)
    torch.nn.init.normal_(model.head.linear.weight, std=0.1)
    return model


def train(model, cfg, number, state=None, hospital=0):
    return train_round(
        model, hospital_data(RUN, hospital), cfg, round_number=number, hospital_index=hospital, device=CPU, state=state
    )


def test_a_round_repeats_bit_for_bit_and_differs_between_hospitals():
    cfg = config()
    first, second, other = fresh(), fresh(), fresh()
    train(first, cfg, 3)
    train(second, cfg, 3)
    train(other, cfg, 3, hospital=1)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert not torch.equal(first.unet.conv_in.weight, other.unet.conv_in.weight)


def test_the_state_carries_the_optimiser_from_round_to_round():
    """With the moments of round 1, round 2 takes other steps than an optimiser that starts afresh."""
    cfg = config()
    model = fresh()
    _, state = train(model, cfg, 1)
    assert state["optimizer.step"] == RUN.local_steps
    again = fresh()
    again.load_state_dict(model.state_dict())
    _, later = train(model, cfg, 2, state)
    train(again, cfg, 2, None)
    assert later["optimizer.step"] == 2 * RUN.local_steps
    assert not torch.equal(model.unet.conv_in.weight, again.unet.conv_in.weight)


def test_the_head_learns_where_labels_count_and_only_there():
    two_stage, joint = fresh(), fresh()
    before = two_stage.head.linear.weight.detach().clone()
    train(two_stage, config(class_weight=0.0, pseudo_weight=0.0, warmup_fraction=0.0), 1)
    train(joint, config(warmup_fraction=0.0), 1)
    assert torch.equal(two_stage.head.linear.weight, before)
    assert not torch.equal(joint.head.linear.weight, before)


def test_when_the_server_asks_for_head_statistics():
    assert [head_is_solved_after(r, config(head="ridge")) for r in range(4)] == [True] * 4
    gradient = config(head="gradient", warmup_fraction=0.5)
    assert [head_is_solved_after(r, gradient) for r in range(4)] == [False, False, True, False]
    assert head_is_solved_after(0, config(head="gradient", warmup_fraction=0.0))
    start = config(head="ridge-start", warmup_fraction=gradient.training.warmup_fraction)
    assert [head_is_solved_after(r, start) for r in range(4)] == [True, True, True, False]
    last, own = RUN.num_rounds, dataclasses.replace(RUN, personal="head")
    ends = config(head="ridge-start", warmup_fraction=0.5, head_calibration=True)
    assert not head_is_solved_after(last, start) and not head_is_calibrated_after(last - 1, ends)
    assert head_is_solved_after(last, ends) and head_is_calibrated_after(last, ends)
    three = dataclasses.replace(ends, model=dataclasses.replace(ends.model, num_outputs=3))
    never = config(head="ridge-start", warmup_fraction=1.0, head_calibration=True)
    for other in (three, never, dataclasses.replace(ends, run=own)):
        assert not head_is_calibrated_after(last, other)


def test_the_warm_up_denoises_alone():
    metrics, _ = train(fresh(), config(warmup_fraction=0.5), 2)
    assert "loss_class" not in metrics and "loss_pseudo" not in metrics
    metrics, _ = train(fresh(), config(warmup_fraction=0.5), 3)
    assert {"loss_diffusion", "loss_class", "loss_pseudo", "pseudo_coverage"} <= metrics.keys()
    assert [term_weights(config(warmup_fraction=0.5), r).label for r in (1, 2, 3, 4)] == [0, 0, 0.01, 0.01]


def test_labels_come_before_pseudo_labels():
    cfg = config(warmup_fraction=0.25, pseudo_start_fraction=0.75)
    assert [term_weights(cfg, r).label > 0 for r in (1, 2, 3, 4)] == [False, True, True, True]
    assert [term_weights(cfg, r).pseudo > 0 for r in (1, 2, 3, 4)] == [False, False, False, True]
    never_before = config(warmup_fraction=0.5, pseudo_start_fraction=0.0)
    assert [term_weights(never_before, r).pseudo > 0 for r in (1, 2, 3, 4)] == [False, False, True, True]


def test_the_loss_is_the_weighted_sum_of_its_terms():
    cfg = config(class_weight=0.5, pseudo_weight=0.25, warmup_fraction=0.0)
    m, _ = train(fresh(), cfg, 1)
    assert m["loss"] == pytest.approx(m["loss_diffusion"] + 0.5 * m["loss_class"] + 0.25 * m["loss_pseudo"], rel=1e-5)


def test_hidden_labels_change_the_telemetry_and_nothing_else():
    cfg = config(warmup_fraction=0.0)
    data = hospital_data(RUN, 0)
    lied = dataclasses.replace(data, hidden_labels=1 - data.hidden_labels)
    models, accuracies = [], []
    for told in (data, lied):
        model = fresh()
        m, _ = train_round(model, told, cfg, round_number=1, hospital_index=0, device=CPU, state=None)
        models.append(model)
        accuracies.append(m["pseudo_accuracy"])
    assert accuracies[0] == pytest.approx(1 - accuracies[1])
    assert torch.equal(models[0].unet.conv_in.weight, models[1].unet.conv_in.weight)


def test_pseudo_labels_teach_and_their_state_goes_on_from_round_to_round():
    """What a policy learned in one round is carried through a round without pseudo-labels into the next."""
    cfg = config(pseudo_policy="freematch", teacher="local-ema", threshold=0.5, warmup_fraction=0.0)
    model = fresh()
    metrics, state = train(model, cfg, 1)
    assert metrics["pseudo_coverage"] > 0 and 0.5 <= metrics["pseudo_confidence"] <= 1 and metrics["loss_pseudo"] > 0
    assert (state["thresholds.class_probs"] != 0.5).any()
    _, without = train(model, config(pseudo_weight=0.0, warmup_fraction=0.0), 2, state)
    assert torch.equal(without["thresholds.class_probs"], state["thresholds.class_probs"])
    _, going_on = train(copy.deepcopy(model), cfg, 3, without)
    _, afresh = train(copy.deepcopy(model), cfg, 3)
    assert not torch.equal(going_on["thresholds.confidence"], afresh["thresholds.confidence"])


def test_the_average_of_the_weights_is_another_teacher_than_the_last_ones():
    """With decay 0 the average is the local model to the last bit of what it teaches; with a large one it is not."""
    moved = {}
    for teacher, decay in (("local", 0.0), ("local-ema", 0.0), ("local-ema", 0.99)):
        cfg = config(pseudo_policy="softmatch", teacher=teacher, teacher_ema_decay=decay, warmup_fraction=0.0,
                     learning_rate=0.05, pseudo_weight=1.0)  # fmt: skip
        moved[teacher, decay] = train(fresh(), cfg, 1)[0]["pseudo_confidence"]
    assert moved["local", 0.0] == pytest.approx(moved["local-ema", 0.0], abs=1e-6)
    assert moved["local", 0.0] != pytest.approx(moved["local-ema", 0.99], abs=1e-6)


def test_the_ramp_raises_the_pseudo_labels_weight_linearly():
    def ramp(**training):
        return [term_weights(config(pseudo_weight=0.6, **training), r).pseudo for r in (1, 2, 3, 4)]

    assert ramp(warmup_fraction=0.0) == [0.6] * 4, "0: as without a ramp"
    assert ramp(warmup_fraction=0.0, pseudo_ramp_fraction=0.5) == pytest.approx([0.2, 0.4, 0.6, 0.6])
    assert ramp(warmup_fraction=0.25, pseudo_ramp_fraction=0.25) == pytest.approx([0, 0.3, 0.6, 0.6])
    late = {"warmup_fraction": 0.25, "pseudo_start_fraction": 0.5, "pseudo_ramp_fraction": 0.25}
    assert ramp(**late) == pytest.approx([0, 0, 0.3, 0.6])
    assert [term_weights(config(**late), r).label > 0 for r in (1, 2, 3, 4)] == [False, True, True, True]


def test_a_multi_label_rgb_round_runs():
    run = dataclasses.replace(RUN, dataset="phantom:multi-label")
    cfg = Config(
        run=run,
        model=dataclasses.replace(MODEL, task="multi-label"),
        training=TrainingConfig(warmup_fraction=0.0, pseudo_start_fraction=0.0),
    )
    model = JointModel(cfg.model)
    metrics, _ = train_round(
        model, hospital_data(run, 0), cfg, round_number=1, hospital_index=0, device=CPU, state=None
    )
    assert np.isfinite(metrics["loss"]) and 0 <= metrics["pseudo_accuracy"] <= 1


def test_the_learning_rate_rises_then_falls_to_nothing():
    t = TrainingConfig(learning_rate=1e-3, lr_warmup_fraction=0.1)
    rates = [learning_rate_at(s, 100, t) for s in range(100)]
    assert rates[0] == pytest.approx(1e-4) and max(rates) == pytest.approx(1e-3, rel=0.05)
    assert rates[-1] < 1e-5


def test_after_the_warm_up_the_learning_rate_is_scaled():
    def moved(scale, number):
        cfg, model = config(warmup_fraction=0.5, label_lr_scale=scale), fresh()
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        metrics, _ = train(model, cfg, number)
        return metrics["learning_rate"], [(p - start[n]).norm().item() for n, p in model.named_parameters()]

    rounds = [rate_factor(config(warmup_fraction=0.5, label_lr_scale=4.0), number) for number in (1, 2, 3, 4)]
    assert rounds == [1, 1, 4, 4]
    assert moved(4.0, 2) == moved(1.0, 2)
    (rate, far), (plain, near) = moved(4.0, 3), moved(1.0, 3)
    assert rate == pytest.approx(4 * plain) and sum(far) > 2 * sum(near)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"label_lr_scale": 0.0}, "label-lr-scale must be above 0, not 0.0"),
        ({"learning_rate": float("nan")}, "learning-rate must be above 0, not nan"),
        ({"label_lr_scale": 4.0, "warmup_fraction": 0.0}, "is for the rounds after a denoising warm-up"),
        ({"label_lr_scale": 4.0, "warmup_fraction": 1.0}, "Set learning-rate instead"),
    ],
)
def test_rates_that_cannot_be_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        check_rates(TrainingConfig(**keys))


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device("auto") == CPU
    with pytest.raises(ConfigError, match=r"device 'cuda:1' was asked for, but torch sees no GPU"):
        select_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert select_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(ConfigError, match=r"sees 1 GPU\(s\), numbered from 0"):
        select_device("cuda:1")


def test_fedprox_holds_a_hospitals_training_back_the_more_the_larger_mu():
    """Several steps away from the weights sent: the way is shorter the larger mu is; mu = 0 is fedavg."""

    def ways(strategy, mu):
        run = dataclasses.replace(RUN, strategy=strategy, proximal_mu=mu, local_steps=12)
        cfg = dataclasses.replace(config(learning_rate=0.003, lr_warmup_fraction=0.0), run=run)
        model = fresh()
        start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        train(model, cfg, 1)
        return torch.cat([(t - start[name]).flatten() for name, t in model.state_dict().items()])

    free = ways("fedavg", 5.0)
    assert torch.equal(ways("fedprox", 0.0), free)
    lengths = [float(ways("fedprox", mu).norm()) for mu in (0.0, 0.3, 3.0)]
    assert lengths[2] < 0.8 * lengths[0] and lengths[2] < lengths[1] < lengths[0]


def test_the_proximal_gradient_is_mu_times_the_way_from_the_start():
    start = [torch.tensor([1.0, -2.0]), torch.tensor([3.0])]
    moved = [torch.nn.Parameter(torch.tensor([1.5, -2.0])), torch.nn.Parameter(torch.tensor([1.0]))]
    loss = (moved[0] ** 2).sum()
    loss.backward()
    add_proximal_gradient(moved, start, 0.1)
    torch.testing.assert_close(moved[0].grad, 2 * torch.tensor([1.5, -2.0]) + 0.1 * torch.tensor([0.5, 0.0]))
    assert moved[1].grad is None, "what has no gradient is not moved"
