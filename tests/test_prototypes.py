"""Prototypes: typical and confident, repeatable, and only what the model itself gives the class."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

from jointdiff.config import Config, ModelConfig, TrainingConfig
from jointdiff.evaluation import predict
from jointdiff.model import JointModel, to_network
from jointdiff.prototypes import draw_prototypes, most_typical
from jointdiff.showcase import guided_samples

CPU = torch.device("cpu")


def test_the_middle_of_a_cloud_is_most_typical_where_all_are_equally_sure():
    features = np.random.default_rng(0).normal(size=(50, 8))
    chosen, distances = most_typical(features, np.ones(50), 5)
    wanted = np.sqrt(((features - features.mean(axis=0)) ** 2).mean(axis=1))
    np.testing.assert_array_equal(chosen, np.argsort(wanted)[:5])
    np.testing.assert_allclose(distances, np.sort(wanted)[:5])


def test_the_surest_come_first_where_all_are_equally_near():
    features = np.array([[1.0], [-1.0], [1.0], [-1.0]])
    assert most_typical(features, np.array([0.6, 0.9, 0.7, 0.8]), 3)[0].tolist() == [1, 3, 2]


def test_an_extreme_is_not_chosen_for_its_confidence_alone():
    """Nor the least sure for its place in the middle: by the sum of the ranks all four would be equal."""
    features = np.array([[1.0], [2.0], [3.0], [30.0]])
    assert most_typical(features, np.array([0.92, 0.91, 0.9, 1.0]), 2)[0].tolist() == [1, 0]


def test_fewer_than_asked_for_where_there_are_fewer():
    assert len(most_typical(np.zeros((2, 3)), np.ones(2), 5)[0]) == 2


@pytest.fixture(scope="module")
def config() -> Config:
    model = ModelConfig(image_size=16, width=8, multipliers=(1,), patch_size=2, num_blocks=1, attention_levels=())
    return Config(model=model, training=TrainingConfig(num_timesteps=50))


def model_of(config: Config, *, bias: tuple[float, float] = (0.0, 0.0)) -> JointModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = JointModel(config.model)
        model.head.linear.weight.data.normal_()
    model.head.linear.bias.data = torch.tensor(bias)
    return model.eval()


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Guided sampling has tests of its own; few steps, hardly guided, tell the same here."""
    monkeypatch.setattr("jointdiff.prototypes.guided_samples", partial(guided_samples, num_steps=4, scale=0.01))


def test_prototypes_are_those_that_the_model_gives_the_class_and_repeat_with_their_seed(config):
    everything = model_of(config, bias=(-1e4, 0.0))
    images = draw_prototypes(everything, config, 1, per_class=12, num_candidates=12, seed=0, device=CPU).images
    assert len(images) == 12
    with torch.no_grad():
        logits = model_of(config).classify(to_network(images))
    model = model_of(config, bias=(float((logits[:, 1] - logits[:, 0]).median()), 0.0))

    def draw(target: int, seed: int):
        return draw_prototypes(model, config, target, per_class=3, num_candidates=12, seed=seed, device=CPU)

    for found in (draw(1, 0), draw(1, 7)):
        assert len(found.images) == min(3, found.num_decided) and found.num_candidates == 12
        assert 0 < found.num_decided < 12  # so that there is something to pass over
        assert found.images.dtype == np.uint8 and found.images.shape[1:] == (16, 16, 1)
        probs = predict(model, found.images, device=CPU)
        assert (probs.argmax(axis=1) == 1).all()
        np.testing.assert_allclose(found.probs, probs[:, 1], atol=1e-6)
    assert (np.isfinite(found.distances)).all() and len(found.distances) == len(found.images)
    np.testing.assert_array_equal(found.images, draw(1, 7).images)
    assert not np.array_equal(found.images, draw(1, 0).images)


def test_a_class_that_the_model_gives_nothing_has_no_prototype(config):
    found = draw_prototypes(
        model_of(config, bias=(1e4, 0.0)), config, 1, per_class=2, num_candidates=4, seed=0, device=CPU
    )
    assert (len(found.images), found.num_decided, found.num_candidates) == (0, 0, 4)
    assert found.images.shape[1:] == (16, 16, 1)


def test_a_finding_of_a_multi_label_task_is_one_above_one_half(config):
    multi = dataclasses.replace(config, model=dataclasses.replace(config.model, task="multi-label"))
    model = model_of(multi, bias=(1.0, 3.0))
    model.head.linear.weight.data *= 0.01
    found = draw_prototypes(model, multi, 0, per_class=2, num_candidates=4, seed=0, device=CPU)
    assert len(found.images) == 2 and (predict(model, found.images, device=CPU)[:, 0] > 0.5).all()
