"""Grades of the generator: what each number means, and how the hospitals' are merged."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from jointdiff.appointed_referee import simulation_referee
from jointdiff.config import resolve
from jointdiff.data import HospitalData, hospital_data
from jointdiff.model import JointModel
from jointdiff.referee import train_referee
from jointdiff.sample_grades import grade_samples, merge_sample_grades

CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Says:
    """A referee that gives the same probabilities to every image."""

    probs: tuple[float, ...]

    def predict(self, images: np.ndarray) -> np.ndarray:
        return np.tile(np.array(self.probs, np.float32), (len(images), 1))


def grades_of(run, referee, *, data=None, task="multi-class", hospital=0, per_class=4):
    config = resolve(run, channels=1, num_outputs=2, task=task)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = JointModel(config.model)
    data = data or hospital_data(run, 0)
    return grade_samples(model, data, config, referee, hospital_index=hospital, device=CPU, per_class=per_class)


def test_every_class_gets_its_grades_and_they_are_finite(tiny_run):
    run = tiny_run(num_hospitals=1)
    referee = train_referee(hospital_data(run, 0).test, 2, "multi-class", steps=2)
    grades = grades_of(run, referee)
    names = [f"kid.{k}.{what}{end}" for k in (0, 1) for what in ("samples", "real", "noise") for end in ("", ".error")]
    assert set(grades) == {"samples.num", "samples.referee_agreement", *("samples." + name for name in names)}
    assert all(isinstance(value, float) and math.isfinite(value) for value in grades.values())
    assert grades["samples.num"] == 8 and 0 <= grades["samples.referee_agreement"] <= 1
    assert grades == grades_of(run, referee), "the same hospital draws the same samples"
    assert grades != grades_of(run, referee, hospital=1)


@pytest.mark.parametrize(
    ("task", "probs", "agreement"),
    [
        ("multi-class", (0.9, 0.1), 0.5),
        ("multi-label", (0.9, 0.1), 0.5),
        ("multi-label", (0.6, 0.7), 1.0),
        ("multi-label", (0.4, 0.3), 0.0),
    ],
)
def test_agreement_is_the_share_that_the_referee_gives_the_wanted_class(tiny_run, task, probs, agreement):
    data = hospital_data(tiny_run(num_hospitals=1), 0)
    if task == "multi-label":
        data = dataclasses.replace(data, hidden_labels=np.stack([1 - data.hidden_labels, data.hidden_labels], axis=1))
    assert grades_of(tiny_run(), Says(probs), data=data, task=task)["samples.referee_agreement"] == agreement


def test_real_is_near_to_real_and_noise_is_far(tiny_run):
    grades = grades_of(tiny_run(num_hospitals=1), Says((1.0, 0.0)))
    for k in (0, 1):
        real, noise = (grades[f"samples.kid.{k}.{name}"] for name in ("real", "noise"))
        error = grades[f"samples.kid.{k}.real.error"]
        assert abs(real) < 3 * error < noise


def test_hidden_labels_decide_which_scans_a_class_is_compared_with(tiny_run):
    """A hospital whose scans all are of class 0 has nothing to compare class 1 with."""
    data: HospitalData = hospital_data(tiny_run(num_hospitals=1), 0)
    one_class = dataclasses.replace(data, hidden_labels=np.zeros_like(data.hidden_labels))
    grades = grades_of(tiny_run(), Says((1.0, 0.0)), data=one_class)
    assert "samples.kid.0.samples" in grades and "samples.kid.1.samples" not in grades


def test_the_referee_is_trained_once_on_all_labels_of_the_official_split(tiny_run, monkeypatch):
    seen = []

    def train(train, num_outputs, task, **keys):
        seen.append(train)
        return train_referee(train, num_outputs, task, **{**keys, "steps": 1})

    monkeypatch.setattr("jointdiff.referee.train_referee", train)
    config = resolve(tiny_run(num_labels=4), channels=1, num_outputs=2, task="multi-class")
    first, again = (simulation_referee(config, CPU) for _ in range(2))
    assert len(seen) == 1 and len(seen[0]) == seen[0].num_labelled == 48
    images = seen[0].images[:4]
    np.testing.assert_array_equal(first.predict(images), again.predict(images))


def part(num, agreement, **kid):
    grades = {"num": num, "referee_agreement": agreement}
    for name, (value, error) in kid.items():
        grades |= {f"kid.{name.replace('_', '.')}": value, f"kid.{name.replace('_', '.')}.error": error}
    return {"samples." + name: value for name, value in grades.items()}


def test_merging_weights_agreement_by_samples_and_combines_errors():
    parts = [
        part(90.0, 1.0, **{"0_samples": (0.2, 0.03), "0_real": (0.0, 0.01)}),
        part(10.0, 0.5, **{"0_samples": (0.4, 0.04), "1_samples": (0.9, 0.05)}),
        {"validity": 0.9},  # a hospital that explained, but graded no sample
        {"samples.num": 50.0, "samples.kid.0.real": 9.0},  # one that sends half of what it should
    ]
    merged = merge_sample_grades(parts, ["healthy", "ill"])
    assert merged["num_samples"] == 100 and merged["referee_agreement"] == pytest.approx(0.95)
    assert merged["kid"]["healthy"]["samples"] == pytest.approx([0.3, 0.025])  # 3-4-5: sqrt(9 + 16) / 2
    assert merged["kid"]["healthy"]["real"] == [0.0, 0.01]
    assert merged["kid"]["ill"] == {"samples": pytest.approx([0.9, 0.05])}
    assert merged == merge_sample_grades(reversed(parts), ["healthy", "ill"])


def test_nobody_graded():
    assert merge_sample_grades([], ["healthy", "ill"]) == {}
    assert merge_sample_grades([{"validity": 0.9}], ["healthy", "ill"]) == {}
