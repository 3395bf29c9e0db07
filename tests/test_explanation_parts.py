"""Explanations of many scans that are interrupted and carried on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jointdiff import explanation
from jointdiff.config import Config, ModelConfig, RunConfig, TrainingConfig
from jointdiff.counterfactual import METHODS
from jointdiff.data import ImageSet
from jointdiff.explanation import explain_scans
from jointdiff.explanation_parts import FOLDER, clear
from jointdiff.model import JointModel

CPU = torch.device("cpu")
CONFIG = Config(
    run=RunConfig(image_size=16),
    model=ModelConfig(width=8, multipliers=(1,), attention_levels=(), patch_size=2, image_size=16),
    training=TrainingConfig(num_timesteps=50),
)


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = JointModel(CONFIG.model)
        torch.nn.init.normal_(model.head.linear.weight)
    return model.eval()


@pytest.fixture
def searched(monkeypatch):
    """Batches of four, and how many of them were searched."""
    monkeypatch.setattr(explanation, "BATCH_SIZE", 4)
    calls, honest = [], METHODS["inversion"]

    def counted(*arguments, **options):
        calls.append(len(arguments[1]))
        return honest(*arguments, **options)

    monkeypatch.setitem(METHODS, "inversion", counted)
    return calls


def scans(seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (10, 16, 16, 1), dtype=np.uint8)
    return ImageSet(images, np.full(10, -1))


def test_what_was_interrupted_is_carried_on_and_ends_the_same(model, searched, tmp_path):
    def interrupt(done, total):
        assert total == 10
        if done == 8:
            raise KeyboardInterrupt

    options = {"device": CPU, "method": "inversion"}
    with pytest.raises(KeyboardInterrupt):
        explain_scans(model, scans(), CONFIG, folder=tmp_path, progress=interrupt, **options)
    assert searched == [4, 4]
    resumed = explain_scans(model, scans(), CONFIG, folder=tmp_path, **options)
    assert searched == [4, 4, 2], "only what was missing"
    whole = explain_scans(model, scans(), CONFIG, **options)
    assert np.array_equal(resumed.edited, whole.edited) and np.array_equal(resumed.found, whole.found)


def test_other_scans_other_weights_and_damaged_parts_are_searched_anew(model, searched, tmp_path):
    def explain(images):
        explain_scans(model, images, CONFIG, device=CPU, method="inversion", folder=tmp_path)
        count = len(searched)
        searched.clear()
        return count

    assert explain(scans()) == 3 and explain(scans()) == 0
    assert explain(scans(seed=1)) == 3
    part = sorted((tmp_path / FOLDER).iterdir())[0]
    part.write_bytes(part.read_bytes()[:50])
    assert explain(scans()) + explain(scans(seed=1)) == 1
    with torch.no_grad():
        model.head.linear.bias += 1
    assert explain(scans()) == 3
    clear(tmp_path)
    assert not (tmp_path / FOLDER).exists() and explain(scans()) == 3
