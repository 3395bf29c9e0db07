import dataclasses

import numpy as np
import pytest
import torch

from jointdiff.config import Config, ModelConfig, TrainingConfig, resolve
from jointdiff.errors import ConfigError
from jointdiff.head import solve_head, solved_heads
from jointdiff.head_self_training import confident, mixed
from jointdiff.head_sums import add_sums, head_sums
from jointdiff.statistics import ClassificationStatistics

TRAINING = TrainingConfig(head_self_training=8, threshold=0.8, warmup_fraction=0.5)
CONFIG = Config(training=TRAINING)
MULTI_LABEL = dataclasses.replace(CONFIG, model=ModelConfig(task="multi-label"))
NUM_LABELLED = 6


def clusters(seed, n=1200, d=40):
    """Two elongated clusters, 30 to 70: most directions are noise that six labels cannot tell from the signal."""
    rng = np.random.default_rng(seed)
    truth = (rng.random(n) < 0.3).astype(np.int64)
    x = rng.normal(size=(n, d))
    x[:, :3] += 1.6 * truth[:, None]
    known = np.concatenate([np.flatnonzero(truth == k)[: NUM_LABELLED // 2] for k in (0, 1)])
    labels = np.full(n, -1)
    labels[known] = truth[known]
    return x.astype(np.float32), truth, labels


def logits(head, x):
    z = (torch.from_numpy(x) - head["head.mean"]) / head["head.scale"]
    return z @ head["head.linear.weight"].T + head["head.linear.bias"]


class Hospitals:
    """Three hospitals' sums, from the head that was solved last."""

    def __init__(self, x, labels, config=CONFIG):
        self.parts = np.array_split(np.arange(len(x)), 3)
        self.x, self.labels, self.config, self.asked = x, labels, config, []
        self.head = {}

    def gather(self, pseudo):
        self.asked.append(pseudo)
        return add_sums([self._sums(self.x[part], self.labels[part], pseudo) for part in self.parts])

    def _sums(self, x, labels, pseudo):
        if not pseudo:
            return head_sums(x, x[labels >= 0], labels[labels >= 0], 2)
        rows, found = confident(logits(self.head, x).softmax(1), torch.from_numpy(labels), self.config)
        return head_sums(x, x[rows], found, 2)

    def heads(self, round_number):
        for head in solved_heads(self.gather, round_number, self.config, learned={}):
            self.head = head
            yield head


def auc(head, x, truth):
    probs = logits(head, x).softmax(1).numpy()
    return ClassificationStatistics.from_predictions(probs, truth, task="multi-class").finish()["auc"]


def test_a_head_that_trains_itself_beats_the_one_of_the_labels_alone():
    gains = []
    for seed in range(5):
        x, truth, labels = clusters(seed)
        heads = list(Hospitals(x, labels).heads(round_number=12))
        assert len(heads) == 1 + TRAINING.head_self_training
        gains.append(auc(heads[-1], x, truth) - auc(heads[0], x, truth))
    assert min(gains) > 0, gains
    assert np.mean(gains) > 0.05, gains


def test_it_waits_for_the_end_of_the_warm_up():
    x, _, labels = clusters(0)
    hospitals = Hospitals(x, labels)
    assert len(list(hospitals.heads(round_number=5))) == 1
    assert hospitals.asked == [False]
    assert len(list(hospitals.heads(round_number=6))) == 9
    assert hospitals.asked[1:] == [False] + 8 * [True]


def test_sure_images_alone_are_taken_and_known_labels_are_kept():
    probs = torch.tensor([[0.99, 0.01]] * 50 + [[0.01, 0.99]] * 30 + [[0.5, 0.5]])
    labels = torch.full((81,), -1)
    labels[0] = 1  # the label is right, whatever the head says
    rows, found = confident(probs, labels, CONFIG)
    assert 80 not in rows
    assert set(rows) == set(range(80))
    assert found[0] == 1 and not found[1:50].any() and found[50:].all()


def test_mixed_sums_weigh_both_kinds_by_their_share():
    """Against the class means and the solution of a data set in which rows are repeated until the shares are so."""
    rng = np.random.default_rng(0)
    x, few, many = rng.normal(size=(50, 4)), rng.normal(size=(4, 4)), rng.normal(size=(16, 4)) + 1
    y_few, y_many = np.array([0, 0, 1, 1]), np.array([0] * 8 + [1] * 8)
    sums = mixed(head_sums(x, few, y_few, 2), head_sums(x, many, y_many, 2), 0.2)
    rows = np.concatenate([few, many])  # 2 of 10 of each class: the share of 0.2 without any weight
    wanted = solve_head(head_sums(x, rows, np.concatenate([y_few, y_many]), 2), CONFIG)
    for name, tensor in solve_head(sums, CONFIG).items():
        torch.testing.assert_close(tensor, wanted[name])


def test_a_class_that_nothing_is_sure_of_keeps_its_labelled_images():
    rng = np.random.default_rng(0)
    x, few = rng.normal(size=(50, 4)), rng.normal(size=(4, 4))
    y_few = np.array([0, 0, 1, 1])
    sums = mixed(head_sums(x, few, y_few, 2), head_sums(x, x[:9], np.zeros(9, np.int64), 2), 0.2)
    np.testing.assert_allclose(sums["group_sum"][1], few[2:].mean(axis=0))
    np.testing.assert_allclose(sums["group_sum"][0], 0.2 * few[:2].mean(axis=0) + 0.8 * x[:9].mean(axis=0))
    nobody = mixed(head_sums(x, few[:2], y_few[:2], 2), head_sums(x, x[:0], np.zeros(0, np.int64), 2), 0.2)
    assert nobody["group_count"].tolist() == [1, 0]


def test_several_findings_at_once_are_left_to_the_labels():
    x, truth, _ = clusters(1)
    both = np.stack([truth, 1 - truth], axis=1)
    assert len(list(solved_heads(lambda _: head_sums(x, x[:6], both[:6], 2), 12, MULTI_LABEL, learned={}))) == 1


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("head-self-training: -1", "at least 0"),
        ("head-self-training: 2\nhead: gradient", "ridge-start"),
        ("head-self-training: 2\nhead-pseudo-ridge: 0.0", "above 0"),
        ("head-labelled-share: 1.5", "from 0 to 1"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, tiny_run, line, named):
    preset = tmp_path / "bad.yaml"
    preset.write_text(line, encoding="utf-8")
    with pytest.raises(ConfigError, match=named):
        resolve(tiny_run(preset=str(preset)), channels=1, num_outputs=2, task="multi-class")
