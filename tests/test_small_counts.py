"""Nothing from 1 to m-1 leaves, nothing that does can be told from sums, and the bounds that are printed hold."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from jointdiff.score_histogram import auc
from jointdiff.small_counts import holds, merged_cells, table_without_small, withhold
from jointdiff.statistics import COARSE_BINS, NUM_BINS, ClassificationStatistics

Stats = ClassificationStatistics
M = 10


def hospital(seed: int, size: int, separation: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, size)
    scores = 1 / (1 + np.exp(-(rng.normal(size=size) + separation * (2 * labels - 1))))
    return scores.astype(np.float32), labels


def count(scores: np.ndarray, labels: np.ndarray, num_bins: int = COARSE_BINS) -> Stats:
    probs = np.stack([1 - scores, scores], 1)
    return Stats.from_predictions(probs, labels, task="multi-class", num_bins=num_bins)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [60, 200, 600])
def test_pooled_metrics_lie_within_their_printed_bounds(seed, size):
    parts = [hospital(seed * 3 + k, size, 0.5 + 0.5 * (seed % 5)) for k in range(3)]
    kept = [withhold(count(*part), M)[0] for part in parts]
    told = [part for part, stats in zip(parts, kept, strict=True) if stats is not None]
    shown = [Stats.from_arrays(stats.to_arrays()) for stats in kept if stats is not None]
    assert shown and all(holds(stats, M) for stats in shown)
    found = shown[0].merge(shown[1:]).finish()
    scores, labels = (np.concatenate(arrays) for arrays in zip(*told, strict=True))
    hard = (scores > 0.5).astype(int)
    recalls = metrics.recall_score(labels, hard, average=None)
    truth = {
        "auc": metrics.roc_auc_score(labels, scores),
        "accuracy": metrics.accuracy_score(labels, hard),
        "balanced_accuracy": metrics.balanced_accuracy_score(labels, hard),
        "sensitivity": recalls[1],
        "specificity": recalls[0],
    }
    assert 0 <= found["auc_error"] < 0.5
    for name, value in truth.items():
        assert abs(found[name] - value) <= found.get(f"{name}_error", 0.0) + 1e-9, name
    assert found["calibration_error"] is None and found["num_images"] == len(labels)


def test_the_bound_of_the_auc_is_half_the_tie_mass_and_is_reached():
    """Two scores in one bin are undecided: either way round, both ends of the bound are true of some scores."""
    cells = (np.array([3]), np.array([3]), np.array([1]))
    assert auc(cells, cells) == (0.5, 0.5)
    scores, labels = hospital(0, 400)
    coarse, exact = count(scores, labels), count(scores, labels, NUM_BINS).finish()["auc"]
    found = coarse.finish()
    negatives, positives = (
        dict(zip(first, counts, strict=True))
        for first, _, counts in (coarse.histogram(1, False), coarse.histogram(1, True))
    )
    ties = sum(negatives.get(b, 0) * c for b, c in positives.items()) / (labels == 0).sum() / (labels == 1).sum()
    assert found["auc_error"] == pytest.approx(ties / 2) and abs(found["auc"] - exact) <= found["auc_error"]
    assert "auc_error" not in count(scores, labels, NUM_BINS).finish()


def test_no_small_count_leaves_and_no_total_gives_one_away():
    """Every difference of sums that a reader can form from what leaves is 0, or at least m, or a replaced cell."""
    scores, labels = hospital(1, 300, 2.0)
    stats = count(scores, labels)
    assert ((stats.confusion > 0) & (stats.confusion < M)).any()  # there is something to hide
    kept, names = withhold(stats, M)
    assert kept is not None and names == ["calibration", "confusion"]
    assert kept.confusion.sum(1).tolist() == stats.confusion.sum(1).tolist() == np.bincount(labels).tolist()
    small = (stats.confusion > 0) & (stats.confusion < M)
    assert (kept.confusion[small] == M // 2).all() and not kept.calibration.any()
    for output in (0, 1):
        for positive in (False, True):
            first, last, counts = kept.histogram(output, positive)
            assert (counts >= M).all() and (first[1:] > last[:-1]).all()
            bins, _, true_counts = stats.histogram(output, positive)
            inside = [true_counts[(bins >= a) & (bins <= b)].sum() for a, b in zip(first, last, strict=True)]
            assert counts.tolist() == inside
    # The same replaced table for every true table with the same margins and small cells: that is all it says.
    others = []
    for misses in range(1, M):
        table = np.array([[100, 20], [misses, 150 - misses]])
        fake = count(np.repeat([0.1, 0.9, 0.1, 0.9], table.ravel()), np.repeat([0, 0, 1, 1], table.ravel()))
        assert fake.confusion.tolist() == table.tolist()
        found = withhold(fake, M)[0]
        assert found is not None
        others.append((found.confusion.tolist(), found.slack.tolist(), found.histogram(1, True)[2].tolist()))
    assert all(other == others[0] for other in others)


def test_a_class_with_few_images_withholds_the_whole_part():
    scores, labels = hospital(2, 40)
    labels[:] = 0
    labels[: M - 1] = 1
    assert withhold(count(scores, labels), M) == (None, [""])
    labels[M - 1] = 1
    scores[:M] = 0.9
    assert withhold(count(scores, labels), M)[0] is not None
    scores[: M // 2] = 0.1  # five misses of ten: no cell of that row is large enough to take up the difference
    assert withhold(count(scores, labels), M) == (None, [""])


def test_of_a_multi_label_task_the_rare_label_alone_is_withheld():
    rng = np.random.default_rng(0)
    probs, labels = rng.random((200, 3)), rng.integers(0, 2, (200, 3))
    labels[:, 1] = 0
    labels[:4, 1] = 1
    stats = Stats.from_predictions(probs, labels, task="multi-label", num_bins=COARSE_BINS)
    kept, names = withhold(stats, M)
    assert kept is not None and "output-1" in names
    read = Stats.from_arrays(kept.to_arrays())
    assert holds(read, M) and not read.confusion[1].any() and not len(read.histogram(1, True)[2])
    found, full = read.finish(), stats.finish()
    assert found["auc_per_class"][1] is None and found["auc_num_skipped"] == 1
    for output in (0, 2):
        assert abs(found["auc_per_class"][output] - full["auc_per_class"][output]) <= 0.2
    assert found["log_loss"] == full["log_loss"]
    other = Stats.from_predictions(probs, rng.integers(0, 2, (200, 3)), task="multi-label", num_bins=COARSE_BINS)
    assert read.merge(withhold(other, M)[0]).finish()["auc_num_skipped"] == 0


def test_the_last_check_sees_what_withhold_would_have_hidden():
    scores, labels = hospital(1, 300, 2.0)
    stats = count(scores, labels)
    kept, _ = withhold(stats, M)
    assert kept is not None and holds(kept, M) and not holds(stats, M) and not holds(count(scores, labels, NUM_BINS), M)
    assert not holds(kept, 2 * M)


def test_coarser_is_counting_with_fewer_bins():
    scores, labels = hospital(3, 500)
    coarse, from_fine = count(scores, labels), count(scores, labels, NUM_BINS).coarser(COARSE_BINS)
    assert all(np.array_equal(a, b) for a, b in zip(
        coarse.to_arrays().values(), from_fine.to_arrays().values(), strict=True))  # fmt: skip


def test_merging_in_any_order_is_the_same():
    kept = [withhold(count(*hospital(seed, 200)), M)[0] for seed in range(3)]
    a, b = kept[0].merge(kept[1:]), kept[2].merge([kept[1], kept[0]])
    assert all(np.array_equal(x, b.to_arrays()[name]) for name, x in a.to_arrays().items())


def test_cells_cover_all_scores():
    counts = np.array([3, 9, 1, 1, 30, 2])
    bins = np.array([0, 5, 6, 9, 30, 63])
    cells = merged_cells(bins, bins, counts, M)
    assert cells == [(0, 5, 12), (6, 63, 34)]


def test_class_tables_hide_what_a_total_would_complete():
    table = {"class_names": ["a", "b"], "labelled": [12, 4], "num_labelled": 16, "num_unlabelled": 84, "num_train": 100,
             "num_heldout": 4, "test": [20, 0], "num_test": 20}  # fmt: skip
    found = table_without_small(table, M, multi_label=False)
    assert found == table | {"labelled": None, "num_heldout": None}
    assert table_without_small(table, 0, multi_label=False) == table
    few = table | {"num_labelled": 96, "num_unlabelled": 4, "labelled": [50, 46]}
    assert {"num_labelled", "num_unlabelled"} <= {k for k, v in table_without_small(few, M, multi_label=False).items()
                                                  if v is None}  # fmt: skip
    almost_all = table | {"labelled": [15, 15]}
    assert table_without_small(almost_all, M, multi_label=True)["labelled"] is None  # one image is without


def test_the_auc_of_overlapping_cells_is_that_of_all_pairs():
    rng = np.random.default_rng(0)
    for _ in range(50):
        sides = []
        for _side in range(2):
            first = np.sort(rng.integers(0, 40, 12))
            sides.append((first, first + rng.integers(0, 20, 12), rng.integers(1, 5, 12)))
        wins = undecided = 0
        for low, high, n in zip(*sides[1], strict=True):
            for a, b, m in zip(*sides[0], strict=True):
                wins += n * m * (b < low)
                undecided += n * m * (b >= low and a <= high)
        pairs = sides[0][2].sum() * sides[1][2].sum()
        expected = ((wins + undecided / 2) / pairs, undecided / 2 / pairs)
        assert auc(sides[0], sides[1]) == pytest.approx(expected, abs=1e-12)
