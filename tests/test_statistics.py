"""Merged metrics equal the pooled ones exactly, and scikit-learn's."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics

from jointdiff.score_histogram import score_bin
from jointdiff.statistics import ClassificationStatistics

Stats = ClassificationStatistics


def softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(1, keepdims=True)
    return (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)


def draw(rng: np.random.Generator, n: int, k: int, task: str, skill: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    if task == "multi-label":
        labels = (rng.random((n, k)) < 0.4).astype(np.int64)
        return (1 / (1 + np.exp(-rng.normal(size=(n, k)) - skill * labels))).astype(np.float32), labels
    labels = rng.integers(0, k, n)
    return softmax(rng.normal(size=(n, k)) + skill * np.eye(k)[labels]), labels


def binary(scores: np.ndarray) -> np.ndarray:
    return np.stack([1 - scores, scores], 1)


# Every family of score distributions that a network produces, the awkward ones included.
FAMILIES = {
    "ordinary": lambda rng, y: 1 / (1 + np.exp(-rng.normal(size=len(y)) * 2 - y)),
    "near one": lambda rng, y: 1 - 10 ** (-3 - 3 * rng.random(len(y)) - y),
    "narrow, near one": lambda rng, y: 0.9990 + 1e-4 * np.clip(rng.normal(0.4 + 0.1 * y, 0.1), 0, 1),
    "tiny": lambda rng, y: 10 ** (-12 + 4 * rng.random(len(y)) + y),
    "untrained": lambda rng, y: 0.5 + 1e-5 * rng.normal(0.5 * y),
    "two clumps": lambda rng, y: np.abs((rng.random(len(y)) < 0.3 + 0.4 * y) - 1e-6 * rng.random(len(y))),
    "ties": lambda rng, y: np.clip(rng.integers(0, 4, len(y)) + y, 0, 4) / 4,
    "constant": lambda rng, y: np.full(len(y), 0.3),
    "zeros and ones": lambda rng, y: (rng.random(len(y)) < 0.3 + 0.4 * y).astype(float),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [8, 30, 624])
def test_pooled_auc_is_within_a_thousandth_of_the_exact_one(family: str, size: int) -> None:
    rng = np.random.default_rng(size)
    for _ in range(20):
        labels = np.concatenate([[0, 1], rng.integers(0, 2, size - 2)])
        scores = FAMILIES[family](rng, labels).astype(np.float32)
        hospitals = np.array_split(rng.permutation(size), 3)
        parts = [Stats.from_predictions(binary(scores[i]), labels[i], task="multi-class") for i in hospitals]
        pooled = parts[0].merge(parts[1:]).finish()["auc"]
        assert pooled == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-3)


def test_few_bins_are_still_good_for_ordinary_scores() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = rng.integers(0, 2, 300)
        scores = FAMILIES["ordinary"](rng, labels)
        coarse = Stats.from_predictions(binary(scores), labels, task="multi-class", num_bins=4096)
        assert coarse.finish()["auc"] == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-3)
        assert coarse.finish()["sensitivity"] == metrics.recall_score(labels, scores > 0.5)


def test_bins_keep_the_order_and_split_at_one_half() -> None:
    scores = np.sort(np.concatenate([[0, 0.5, 1], 10.0 ** -np.arange(1, 40), np.random.default_rng(0).random(500)]))
    assert (np.diff(score_bin(scores)) > 0).all()
    assert score_bin(np.nextafter(np.array([0.5], np.float32), 1), 4096)[0] == score_bin(np.array([0.5]), 4096)[0] + 1


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("task", ["multi-class", "multi-label"])
def test_metrics_against_scikit_learn(task: str, k: int) -> None:
    probs, labels = draw(np.random.default_rng(k), 400, k, task)
    exact = probs.astype(np.float64) / (1 if task == "multi-label" else probs.astype(np.float64).sum(1, keepdims=True))
    got = Stats.from_predictions(probs, labels, task=task).finish()
    if task == "multi-label":
        hard = probs > 0.5
        each = range(k)
        expected = {
            "auc": np.mean([metrics.roc_auc_score(labels[:, j], probs[:, j]) for j in each]),
            "accuracy": (hard == labels).mean(),
            "balanced_accuracy": np.mean([metrics.balanced_accuracy_score(labels[:, j], hard[:, j]) for j in each]),
            "log_loss": np.mean([metrics.log_loss(labels[:, j], exact[:, j]) for j in each]),
            "sensitivity": np.mean([metrics.recall_score(labels[:, j], hard[:, j]) for j in each]),
            "specificity": np.mean([metrics.recall_score(1 - labels[:, j], ~hard[:, j]) for j in each]),
        }
        assert got["confusion_matrix"] == metrics.multilabel_confusion_matrix(labels, hard).tolist()
    else:
        hard = probs.argmax(1)
        recall = metrics.recall_score(labels, hard, average=None)
        cells = metrics.multilabel_confusion_matrix(labels, hard)
        scores = exact[:, 1] if k == 2 else exact
        expected = {
            "auc": metrics.roc_auc_score(labels, scores, multi_class="ovr"),
            "accuracy": metrics.accuracy_score(labels, hard),
            "balanced_accuracy": metrics.balanced_accuracy_score(labels, hard),
            "log_loss": metrics.log_loss(labels, exact),
            "sensitivity": recall[1] if k == 2 else recall.mean(),
            "specificity": recall[0] if k == 2 else (cells[:, 0, 0] / cells[:, 0].sum(1)).mean(),
        }
        assert got["confusion_matrix"] == metrics.confusion_matrix(labels, hard).tolist()
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=1e-6), name
    assert got["num_images"] == 400


def test_calibration_error_by_hand() -> None:
    # Three decisions at confidence 0.8, two right: |0.8 - 2/3|; one at 0.6, wrong: 0.6. Weighted by their number.
    probs = np.array([[0.8, 0.2], [0.2, 0.8], [0.8, 0.2], [0.6, 0.4]])
    got = Stats.from_predictions(probs, np.array([0, 1, 1, 1]), task="multi-class").finish()
    assert got["calibration_error"] == pytest.approx((3 * (0.8 - 2 / 3) + 0.6) / 4, abs=1e-9)


def test_log_loss_of_a_certain_error_is_clipped_as_by_scikit_learn() -> None:
    probs, labels = np.array([[1, 0], [0, 1]], np.float32), np.array([1, 1])
    expected = metrics.log_loss(labels, probs, labels=[0, 1])
    got = Stats.from_predictions(probs, labels, task="multi-class").finish()
    assert got["log_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("task", "k"), [("multi-class", 2), ("multi-class", 4), ("multi-label", 3)])
def test_merging_is_exact_in_any_order_and_grouping(task: str, k: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(10):
        probs, labels = draw(rng, 200, k, task)
        pooled = Stats.from_predictions(probs, labels, task=task)
        parts = [
            Stats.from_predictions(probs[i], labels[i], task=task)
            for i in np.array_split(rng.permutation(200), np.sort(rng.integers(0, 200, 4)))
        ]
        a, b, *rest = parts
        for merged in (a.merge([b, *rest]), b.merge(a.merge(rest)), rest[-1].merge([*rest[:-1], a]).merge(b)):
            expected = pooled.to_arrays()
            assert all(np.array_equal(array, expected[name]) for name, array in merged.to_arrays().items())
            assert merged.finish() == pooled.finish()


def test_unknown_labels_are_left_out_and_nothing_is_neutral() -> None:
    probs, labels = draw(np.random.default_rng(2), 50, 3, "multi-class")
    hidden = labels.copy()
    hidden[::2] = -1
    got = Stats.from_predictions(probs, hidden, task="multi-class")
    kept = Stats.from_predictions(probs[1::2], labels[1::2], task="multi-class")
    assert got.finish() == kept.finish()
    none = Stats.from_predictions(probs[:0], labels[:0], task="multi-class")
    assert none.merge(kept).finish() == kept.finish()
    assert none.finish()["auc"] is None and none.finish()["accuracy"] is None and none.finish()["num_images"] == 0


def test_classes_without_positives_are_skipped_and_counted() -> None:
    probs, labels = draw(np.random.default_rng(3), 60, 4, "multi-class")
    labels = np.where(labels == 3, 0, labels)
    got = Stats.from_predictions(probs, labels, task="multi-class").finish()
    assert got["auc_num_skipped"] == 1 and got["auc_per_class"][3] is None
    assert got["auc"] == pytest.approx(np.mean([metrics.roc_auc_score(labels == c, probs[:, c]) for c in range(3)]))
    recalls = [(probs[labels == c].argmax(1) == c).mean() for c in range(3)]
    assert got["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    one_class = Stats.from_predictions(binary(np.array([0.2, 0.7])), np.array([1, 1]), task="multi-class").finish()
    assert one_class["auc"] is None and one_class["specificity"] is None and one_class["sensitivity"] == 0.5


def test_another_operating_point_needs_no_second_look_at_the_images() -> None:
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 2, 300)
    scores = FAMILIES["ordinary"](rng, labels)
    got = Stats.from_predictions(binary(scores), labels, task="multi-class").finish(threshold=0.8)
    assert got["sensitivity"] == pytest.approx((scores[labels == 1] > 0.8).mean())
    assert got["specificity"] == pytest.approx((scores[labels == 0] <= 0.8).mean())
    assert got["operating_point"] == "p > 0.8"


@pytest.mark.parametrize(("task", "k"), [("multi-class", 3), ("multi-label", 2)])
def test_arrays_travel(task: str, k: int) -> None:
    stats = Stats.from_predictions(*draw(np.random.default_rng(5), 80, k, task), task=task)
    read = Stats.from_arrays({name: array.copy() for name, array in stats.to_arrays().items()})
    assert read.finish() == stats.finish()
    assert json.loads(json.dumps(read.finish(), allow_nan=False)) == read.finish()


def damage(name: str, change) -> dict[str, np.ndarray]:  # type: ignore[no-untyped-def]
    predictions = draw(np.random.default_rng(6), 40, 3, "multi-class")
    arrays = Stats.from_predictions(*predictions, task="multi-class").to_arrays()
    arrays[name] = change(arrays[name].copy())
    return arrays


def put(index, value):  # type: ignore[no-untyped-def]
    def change(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return change


@pytest.mark.parametrize(("name", "change", "message"), [
    ("confusion", lambda a: a[:2], "shape"),
    ("confusion", put((0, 0), -1), ">= 0"),
    ("confusion", lambda a: np.where(a > 5, np.nan, a), "whole numbers"),
    ("confusion", lambda a: a + 1, "contradict"),
    ("log_loss", lambda a: a.astype(np.float64) * np.nan, "whole numbers"),
    ("log_loss", lambda a: np.repeat(a, 2), "shape"),
    ("calibration", lambda a: a[:, :2], "shape"),
    ("calibration", lambda a: a * np.array([1, 1, 9]), "calibration"),
    ("histogram_keys", lambda a: a[::-1], "rise"),
    ("histogram_keys", put(-1, 2**62), "range"),
    ("histogram_counts", lambda a: a[:-1], "shape"),
    ("histogram_counts", lambda a: a * 2, "contradict"),
    ("header", put(0, 99), "header"),
    ("header", put(3, 7), "even"),
    ("header", put(4, 41), "contradict"),
    ("header", lambda a: a[:3], "header"),
])  # fmt: skip
def test_malformed_arrays_are_refused(name: str, change, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        Stats.from_arrays(damage(name, change))


def test_missing_and_surplus_arrays_are_refused() -> None:
    arrays = damage("header", lambda a: a)
    with pytest.raises(ValueError, match="exactly"):
        Stats.from_arrays({**arrays, "images": arrays["header"]})
    arrays.pop("log_loss")
    with pytest.raises(ValueError, match="exactly"):
        Stats.from_arrays(arrays)


@pytest.mark.parametrize(("probs", "labels", "task", "message"), [
    ([[0.5, 0.5]], [2], "multi-class", "at most 1"),
    ([[0.5, 0.4]], [0], "multi-class", "add up"),
    ([[np.nan, 0.5]], [0], "multi-class", "finite"),
    ([[0.5, 0.5]], [[0, 1]], "multi-class", "shape"),
    ([[0.5, 0.5]], [0.0], "multi-class", "integers"),
    ([[0.5, 0.5]], [[0, 2]], "multi-label", "at most 1"),
    ([0.5, 0.5], [0, 1], "multi-class", r"\[N, K\]"),
    ([[0.5, 0.5]], [0], "regression", "task"),
])  # fmt: skip
def test_bad_predictions_are_refused(probs, labels, task: str, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        Stats.from_predictions(np.array(probs), np.array(labels), task=task)


def test_different_kinds_do_not_merge() -> None:
    a = Stats.from_predictions(*draw(np.random.default_rng(7), 9, 2, "multi-class"), task="multi-class")
    b = Stats.from_predictions(*draw(np.random.default_rng(7), 9, 3, "multi-class"), task="multi-class")
    with pytest.raises(ValueError, match="kinds"):
        a.merge(b)
