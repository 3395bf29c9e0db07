import dataclasses

import numpy as np
import pytest
import torch

from jointdiff.config import Config, ModelConfig, TrainingConfig
from jointdiff.head import solve_head
from jointdiff.head_sums import add_sums
from jointdiff.head_sums import head_sums as sums_of

MULTI_CLASS = Config(training=TrainingConfig(ridge=0.1))
MULTI_LABEL = dataclasses.replace(MULTI_CLASS, model=ModelConfig(task="multi-label"))


def head_sums(x, y, num_outputs):
    known = y >= 0 if y.ndim == 1 else (y >= 0).all(axis=1)
    return sums_of(x, x[known], y[known], num_outputs)


def draw(n=300, d=20, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * 3 + 1
    labels = (x[:, 0] + 0.1 * rng.normal(size=n) > 1).astype(np.int64)
    hidden = labels.copy()
    hidden[100:] = -1
    return x, labels, hidden


def logits(head, x):
    z = (torch.tensor(x).float() - head["head.mean"]) / head["head.scale"]
    return z @ head["head.linear.weight"].T + head["head.linear.bias"]


def test_hospitals_sums_give_exactly_the_head_of_pooled_images():
    x, _, y = draw()
    pooled = solve_head(head_sums(x, y, 2), MULTI_CLASS)
    parts = [head_sums(x[part], y[part], 2) for part in (slice(0, 10), slice(10, 110), slice(110, 300))]
    merged = solve_head(add_sums(parts), MULTI_CLASS)
    for name, tensor in pooled.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-6)


def test_the_solution_is_class_balanced_ridge_regression():
    """Against the formula written with the features themselves instead of with sums."""
    x, _, y = draw()
    z = ((x - x.mean(0)) / x.std(0))[:100]
    weight = np.where(y[:100] == 1, 0.5 / (y == 1).sum(), 0.5 / (y == 0).sum())
    z = z - weight @ z
    signs = np.where(y[:100] == 1, 1.0, -1.0)
    wanted = np.linalg.solve(z.T @ (z * weight[:, None]) + 0.1 * np.eye(20), z.T @ (weight * signs))
    solved = solve_head(head_sums(x, y, 2), MULTI_CLASS)["head.linear.weight"]
    ratio = (solved[1] - solved[0]).numpy() / wanted
    assert ratio.min() > 0
    assert ratio.std() / ratio.mean() < 1e-4


def test_it_classifies_what_it_can():
    x, truth, y = draw()
    out = logits(solve_head(head_sums(x, y, 2), MULTI_CLASS), x)
    assert (out.argmax(dim=1).numpy() == truth).mean() > 0.9
    assert (out[:, 1] - out[:, 0]).std().item() == pytest.approx(2.5, rel=0.02)


def test_each_finding_of_a_multi_label_task_has_its_own_solution():
    x, truth, y = draw()
    both = np.stack([y, np.where(y < 0, -1, x[:, 1] > 1)], axis=1).astype(np.int64)
    out = logits(solve_head(head_sums(x, both, 2), MULTI_LABEL), x)
    assert ((out[:, 0] > 0).numpy() == truth).mean() > 0.9
    assert ((out[:, 1] > 0).numpy() == (x[:, 1] > 1)).mean() > 0.9


def test_a_gradient_head_gets_the_standardisation_alone():
    x, _, y = draw()
    config = dataclasses.replace(MULTI_CLASS, training=TrainingConfig(head="gradient"))
    solved = solve_head(head_sums(x, y, 2), config)
    assert set(solved) == {"head.mean", "head.scale"}
    np.testing.assert_allclose(solved["head.mean"].numpy(), x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(solved["head.scale"].numpy(), x.std(0), rtol=1e-5)


def test_a_hospital_without_labels_changes_the_standardisation_alone():
    x, _, y = draw()
    nobody = np.full(100, -1)
    merged = add_sums([head_sums(x, y, 2), head_sums(x[:100] + 5, nobody, 2)])
    assert merged["group_count"].sum() == 100
    assert solve_head(merged, MULTI_CLASS)["head.mean"][0] > x.mean(0)[0] + 1


def test_sums_that_do_not_fit_are_refused():
    x, _, y = draw()
    with pytest.raises(ValueError, match="shapes"):
        add_sums([head_sums(x, y, 2), head_sums(x[:, :5], y, 2)])
    with pytest.raises(ValueError, match="no sums"):
        add_sums([])
