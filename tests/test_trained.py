"""A checkpoint as commands open it: what its outputs are called, and whether it can be explained at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jointdiff import checkpoint
from jointdiff.config import parse_run_config, resolve
from jointdiff.errors import CheckpointError
from jointdiff.model import JointModel
from jointdiff.trained import Trained, open_trained


@pytest.fixture
def trained(tiny_files, tmp_path):
    """A function that writes a checkpoint whose head has these weights, one number a class, and opens it."""

    def make(*weights: float, task: str = "multi-class", **changes: object) -> Trained:
        keys = {"dataset": f"npz:{tiny_files / 'data.npz'}", "image-size": 16, "model": str(tiny_files / "model.yaml")}
        run = parse_run_config({**keys, **changes})
        config = resolve(run, channels=1, num_outputs=len(weights), task=task)
        with torch.random.fork_rng():
            model = JointModel(config.model)
        model.head.linear.weight.data = torch.tensor(weights)[:, None].expand_as(model.head.linear.weight).clone()
        model.head.linear.bias.data[:] = 1.0  # a bias makes no classifier
        path = checkpoint.save(tmp_path / "c.safetensors", model.state_dict(), config, round_number=0)
        return open_trained(path, device="cpu")

    return make


@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.5, 0.5)])
def test_a_head_that_tells_no_class_from_another_is_no_classifier(trained, weights):
    with pytest.raises(CheckpointError, match="has no classifier: the weights of its head were never"):
        trained(*weights).check_classifies()


def test_any_difference_between_the_classes_is_a_classifier(trained):
    trained(0.0, 1e-6).check_classifies()


def test_of_a_multi_label_task_the_asked_finding_counts(trained):
    some = trained(0.0, 1.0, task="multi-label", dataset="npz:/gone.npz")
    some.check_classifies()
    some.check_classifies(1)
    with pytest.raises(CheckpointError, match="no classifier for 'class 0'"):
        some.check_classifies(0)
    with pytest.raises(CheckpointError, match="has no classifier:"):
        trained(0.0, 0.0, task="multi-label").check_classifies()


def test_two_stage_before_its_head_has_none_and_before_that_nothing_is_drawn_at_random(trained):
    before = torch.random.get_rng_state()
    found = trained(0.0, 0.0, method="two-stage")
    assert torch.equal(before, torch.random.get_rng_state()) and not found.model.training
    found.check_denoises()
    with pytest.raises(CheckpointError, match="method two-stage"):
        found.check_classifies()


def test_names_come_from_the_data_and_are_numbers_where_these_are_gone_or_others(trained, tmp_path):
    assert trained(0.0, 1.0).class_names == ("healthy", "ill")
    assert trained(0.0, 1.0, dataset="npz:/gone.npz").class_names == ("class 0", "class 1")
    assert trained(0.0, 1.0, 2.0).class_names == ("class 0", "class 1", "class 2")
    assert trained(0.0, 1.0).decision(np.array([0.2, 0.8])) == "ill"
    multi = trained(0.0, 1.0, task="multi-label")
    assert [multi.decision(p) for p in ([0.6, 0.7], [0.5, 0.4])] == ["healthy; ill", "none"]
