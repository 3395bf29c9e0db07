import dataclasses

import numpy as np
import pytest
import torch

from jointdiff import storage
from jointdiff.config import resolve
from jointdiff.errors import ConfigError
from jointdiff.head_calibration import calibrated
from jointdiff.head_sums import add_sums, head_sums
from jointdiff.standalone import train_alone
from jointdiff.trained import open_trained

D = 12


def head(rng, *, sure=1.0, like=None):
    """A head of two outputs; `like` another one, but for a little noise."""
    weight = (
        rng.normal(size=(2, D)) if like is None else like["head.linear.weight"].numpy() + 0.1 * rng.normal(size=(2, D))
    )
    return {
        "head.mean": torch.from_numpy(rng.normal(size=D)).float(),
        "head.scale": torch.from_numpy(rng.uniform(0.5, 2, size=D)).float(),
        "head.linear.weight": torch.from_numpy(sure * weight).float(),
        "head.linear.bias": torch.from_numpy(rng.normal(size=2)).float(),
    }


def margins(head, x):
    z = (torch.from_numpy(x) - head["head.mean"]) / head["head.scale"]
    logits = z.double() @ head["head.linear.weight"].double().T + head["head.linear.bias"].double()
    return (logits[:, 1] - logits[:, 0]).numpy()


def sums_of(x):
    """Of three hospitals, added up: two images of each class are labelled."""
    labels = np.array([0, 1, 0, 1])
    return add_sums([head_sums(part, part[:4], labels, 2) for part in np.array_split(x, 3)])


@pytest.fixture
def features():
    rng = np.random.default_rng(1)
    return (rng.normal(size=(900, D)) @ rng.normal(size=(D, D)) + rng.normal(size=D)).astype(np.float32)


def test_factor_and_offset_are_those_of_least_squares_over_all_images(features):
    rng = np.random.default_rng(0)
    learned = head(rng, sure=9.0)
    solved = head(rng, like=learned, sure=0.2)
    before, wanted = margins(learned, features), margins(solved, features)
    factor, offset = np.polyfit(before, wanted, 1)
    found = margins(calibrated(learned, solved, sums_of(features)), features)
    np.testing.assert_allclose(found, factor * before + offset, rtol=1e-3, atol=1e-3)
    assert np.mean((found - wanted) ** 2) < np.mean((before - wanted) ** 2) / 10


def test_a_solved_head_that_contradicts_is_not_followed(features):
    learned = head(np.random.default_rng(0))
    opposite = {**learned, "head.linear.weight": -learned["head.linear.weight"]}
    nothing = {**learned, "head.linear.weight": torch.zeros(2, D)}
    for solved in (opposite, nothing):
        found = calibrated(learned, solved, sums_of(features))
        assert all(torch.equal(found[name], learned[name]) for name in learned)


def test_a_run_ends_with_the_order_of_the_learned_head_and_the_border_of_the_solved_one(tiny_run, tmp_path):
    """The same training with and without: equal networks and AUC, other decisions."""
    models, aucs = {}, {}
    for on in (False, True):
        preset = tmp_path / f"{on}.yaml".lower()
        preset.write_text(
            "class-weight: 0.5\nhead: ridge-start\nwarmup-fraction: 0.5\nhead-self-training: 2\nlearning-rate: 0.01\n"
            f"head-calibration: {str(on).lower()}\n"
        )
        run = dataclasses.replace(
            tiny_run(preset=str(preset), num_rounds=2, local_steps=8, batch_size=8), run_name=f"run-{on}"
        )
        folder = train_alone(run)
        models[on] = open_trained(folder / "checkpoints" / "last.safetensors", device="cpu").model.state_dict()
        aucs[on] = storage.read_json(folder / "metrics.json")["rounds"][-1]["pooled"]["auc"]
    same = [name for name in models[True] if not name.startswith("head.linear")]
    assert all(torch.equal(models[True][name], models[False][name]) for name in same)
    (w_on, b_on), (w_off, b_off) = (
        (m["head.linear.weight"][1] - m["head.linear.weight"][0], m["head.linear.bias"][1] - m["head.linear.bias"][0])
        for m in (models[True], models[False])
    )
    factor = (w_on @ w_off) / (w_off @ w_off)
    torch.testing.assert_close(w_on, factor * w_off, rtol=1e-3, atol=1e-5)
    assert factor > 0 and abs(float(b_on - factor * b_off)) > 1e-4
    assert aucs[True] == pytest.approx(aucs[False], abs=1e-6)


@pytest.mark.parametrize("kind", ["ridge", "gradient"])
def test_it_is_for_heads_that_are_solved_first_and_then_learn(tmp_path, tiny_run, kind):
    preset = tmp_path / "bad.yaml"
    preset.write_text(f"head: {kind}\nhead-calibration: true", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"ridge-start, or head-calibration to false, with head: {kind}"):
        resolve(tiny_run(preset=str(preset)), channels=1, num_outputs=2, task="multi-class")
