import math

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from jointdiff import pseudo_label_keys
from jointdiff.pseudo_labels import (
    POLICIES,
    Task,
    agreed,
    aligned,
    fixed,
    flexmatch,
    flexmatch_start,
    freematch,
    freematch_start,
    softmatch,
    softmatch_start,
    trusted,
)
from jointdiff.pseudo_labels.flexmatch import learning_effect, mapped

PROBS = torch.tensor([[0.97, 0.03], [0.6, 0.4], [0.1, 0.9]])
FIRST = torch.arange(3)
TWO = Task(num_outputs=2, num_images=3, threshold=0.9)
LABELS = Task(num_outputs=2, num_images=2, threshold=0.95, multi_label=True)


def random_probs(task, count, seed, sharpness=1.0):
    logits = sharpness * torch.randn(count, task.num_outputs, generator=torch.Generator().manual_seed(seed))
    return logits.sigmoid() if task.multi_label else logits.softmax(dim=1)


BATTERY = [
    Task(2, 40, 0.8), Task(4, 40, 0.8), Task(1, 40, 0.8, multi_label=True), Task(3, 40, 0.8, multi_label=True),
]  # fmt: skip


@pytest.mark.parametrize("task", BATTERY, ids=str)
@pytest.mark.parametrize("name", POLICIES)
class TestEveryPolicy:
    def test_answers_in_one_form(self, name, task):
        policy = POLICIES[name]
        state = start = policy.start(task)
        for seed in range(3):
            index = torch.randint(40, (16,), generator=torch.Generator().manual_seed(seed))
            probs = random_probs(task, 16, seed, sharpness=3.0)
            pseudo, weight, state = policy.judge(probs, state, index, task)
            shape = (16, task.num_outputs) if task.multi_label else (16,)
            assert pseudo.shape == weight.shape == shape
            assert pseudo.dtype == torch.int64 and weight.dtype == probs.dtype
            assert weight.min() >= 0 and weight.max() <= 1
            said = (probs >= 0.5).long() if task.multi_label else probs.argmax(dim=1)
            assert torch.equal(pseudo, said)
            assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in start.items()}

    def test_weighs_a_surer_prediction_of_the_same_class_no_less(self, name, task):
        policy = POLICIES[name]
        state = policy.start(task)
        for seed in range(10):
            index = torch.arange(16) + seed
            probs = random_probs(task, 16, seed, sharpness=2.0)
            pseudo, weight, state = policy.judge(probs, state, index, task)
            confidence = torch.maximum(probs, 1 - probs) if task.multi_label else probs.max(dim=1).values
            for column in range(task.num_outputs if task.multi_label else 1):
                said, sure, weighed = (t.reshape(16, -1)[:, column] for t in (pseudo, confidence, weight))
                for value in said.unique():
                    order = sure[said == value].argsort()
                    assert (weighed[said == value][order].diff() >= 0).all()

    def test_covers_more_of_a_surer_batch(self, name, task):
        policy = POLICIES[name]
        state = policy.start(task)
        for seed in range(30):
            state = policy.judge(random_probs(task, 40, seed, sharpness=3.0), state, torch.arange(40), task).state
        unsure, sure = (
            policy.judge(random_probs(task, 40, 99, sharpness=s), state, torch.arange(40), task).weight.mean()
            for s in (0.5, 6.0)
        )
        assert sure > unsure + 0.1

    def test_never_waits_for_the_device(self, name, task):
        """Tensors without values stop whatever asks for one: .item(), a branch, a mask that picks."""
        policy = POLICIES[name]
        state, probs, index = policy.start(task), random_probs(task, 16, 0), torch.arange(16)
        with FakeTensorMode() as fake:
            held = {n: fake.from_tensor(t) for n, t in state.items()}
            probs = fake.from_tensor(probs)
            one, other = (policy.judge(probs, held, fake.from_tensor(index), task) for _ in range(2))
            agreed(one, other, one.weight, num_outputs=task.num_outputs, multi_label=task.multi_label)
            aligned(probs, probs[0], probs[1], multi_label=task.multi_label)
            with pytest.raises(DataDependentOutputException):
                one.weight.mean().item()

    def test_leaves_its_inputs_as_they_were(self, name, task):
        policy = POLICIES[name]
        state, probs = policy.start(task), random_probs(task, 16, 0, sharpness=3.0)
        before = {n: t.clone() for n, t in state.items()}, probs.clone()
        policy.judge(probs, state, torch.arange(16), task)
        assert all(torch.equal(state[n], t) for n, t in before[0].items()) and torch.equal(probs, before[1])


def test_the_keys_name_the_policies():
    assert tuple(POLICIES) == pseudo_label_keys.POLICIES


def test_fixed_trusts_what_reaches_the_threshold():
    pseudo, weight, state = fixed(PROBS, {}, FIRST, TWO)
    assert pseudo.tolist() == [0, 0, 1]
    assert weight.tolist() == [1, 0, 1]
    assert state == {}
    assert trusted(PROBS, threshold=0.9)[1].tolist() == [1, 0, 1]


def test_fixed_judges_every_label_of_a_multi_label_task_on_its_own():
    pseudo, weight, _ = fixed(torch.tensor([[0.97, 0.5], [0.02, 0.99]]), {}, FIRST[:2], LABELS)
    assert pseudo.tolist() == [[1, 1], [0, 1]]
    assert weight.tolist() == [[1, 0], [1, 1]]


def test_freematch_starts_at_chance_and_follows_the_confidence():
    state = freematch_start(TWO)
    assert state["confidence"] == 0.5
    state = freematch(PROBS, state, FIRST, TWO).state
    mean_top = (0.97 + 0.6 + 0.9) / 3
    torch.testing.assert_close(state["confidence"], torch.tensor(0.9 * 0.5 + 0.1 * mean_top))


def test_freematch_asks_less_of_a_class_that_is_seldom_predicted():
    state = {"confidence": torch.tensor(0.8), "class_probs": torch.tensor([0.75, 0.25])}
    probs = torch.tensor([[0.7, 0.3], [0.3, 0.7]])
    weight = freematch(probs, state, FIRST[:2], TWO).weight
    assert weight.tolist() == [0, 1]  # thresholds 0.79 and 0.79 * 0.275 / 0.725


def test_freematch_multi_label_keeps_a_threshold_per_label():
    state = {"confidence": torch.tensor([0.9, 0.5]), "class_probs": torch.tensor([0.5, 0.5])}
    pseudo, weight, new = freematch(torch.tensor([[0.8, 0.8], [0.2, 0.45]]), state, FIRST[:2], LABELS)
    assert pseudo.tolist() == [[1, 1], [0, 0]]
    assert weight.tolist() == [[0, 1], [0, 1]]
    torch.testing.assert_close(new["confidence"], torch.tensor([0.9 * 0.9 + 0.1 * 0.8, 0.9 * 0.5 + 0.1 * 0.675]))


def test_flexmatch_by_hand():
    """Four images settled on class 0, two on class 1, none on class 2, one not yet: beta 1, 1/2, 0."""
    task = Task(num_outputs=3, num_images=7, threshold=0.9)
    state = {"settled": torch.tensor([0, 0, 0, 0, 1, 1, -1])[:, None]}
    effect = learning_effect(state["settled"], 3)
    assert effect.tolist() == [[1.0, 0.5, 0.0]]
    torch.testing.assert_close(0.9 * mapped(effect), torch.tensor([[0.9, 0.3, 0.0]]))
    probs = torch.tensor([[0.85, 0.1, 0.05], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4], [0.05, 0.94, 0.01]])
    pseudo, weight, new = flexmatch(probs, state, torch.tensor([0, 4, 5, 6]), task)
    assert pseudo.tolist() == [0, 1, 2, 1]
    assert weight.tolist() == [0, 1, 1, 1], "an unlearned class has a lower threshold"
    assert new["settled"][:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1], "only what reaches the whole threshold settles"


def test_flexmatch_is_no_surer_than_the_share_of_images_that_are_settled():
    """One image on class 0 and three on none: its learning effect is 1/3, not 1."""
    effect = learning_effect(torch.tensor([0, -1, -1, -1])[:, None], 2)
    torch.testing.assert_close(effect, torch.tensor([[1 / 3, 0.0]]))


def test_flexmatch_begins_with_low_thresholds_and_raises_them():
    task = Task(num_outputs=2, num_images=100, threshold=0.9)
    state, probs = flexmatch_start(task), torch.tensor([[0.95, 0.05]]).repeat(10, 1)
    doubtful, covered = torch.tensor([[0.6, 0.4]]), []
    for at in range(10):
        covered.append(flexmatch(doubtful, state, torch.tensor([0]), task).weight.item())
        state = flexmatch(probs, state, torch.arange(10) + 10 * at, task).state
    assert covered[0] == 1 and covered[-1] == 0


def test_flexmatch_does_not_depend_on_the_order_of_a_batch():
    task = Task(num_outputs=3, num_images=4, threshold=0.9)
    probs = torch.tensor([[0.95, 0.03, 0.02], [0.02, 0.03, 0.95], [0.4, 0.3, 0.3], [0.01, 0.98, 0.01]])
    index = torch.tensor([2, 2, 2, 0])
    start = {"settled": torch.tensor([-1, 1, -1, -1])[:, None]}
    states = []
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]):
        states.append(flexmatch(probs[order], start, index[order], task).state["settled"][:, 0].tolist())
    assert states == [[1, 1, 2, -1]] * 3


def test_flexmatch_multi_label_asks_two_sides_of_every_label():
    """Of label 0 three images are settled on absent and none on present; of label 1 it is the other way round."""
    task = Task(num_outputs=2, num_images=4, threshold=0.9, multi_label=True)
    state = {"settled": torch.tensor([[0, 1], [0, 1], [0, 1], [-1, -1]])}
    weight = flexmatch(torch.tensor([[0.6, 0.6], [0.4, 0.4]]), state, torch.tensor([0, 3]), task).weight
    assert weight.tolist() == [[1, 0], [0, 1]]


def test_softmatch_by_hand():
    state = {"mean": torch.tensor(0.8), "variance": torch.tensor(0.04)}
    _, weight, new = softmatch(PROBS, state, FIRST, TWO)
    top = [0.97, 0.6, 0.9]
    mean = sum(top) / 3
    mu = 0.9 * 0.8 + 0.1 * mean
    s2 = 0.9 * 0.04 + 0.1 * sum((p - mean) ** 2 for p in top) / 2
    torch.testing.assert_close(new["mean"], torch.tensor(mu))
    torch.testing.assert_close(new["variance"], torch.tensor(s2))
    torch.testing.assert_close(weight, torch.tensor([1.0, math.exp(-((0.6 - mu) ** 2) / (2 * s2)), 1.0]))


def test_softmatch_can_take_one_image_and_no_variance():
    state = {"mean": torch.tensor(0.7), "variance": torch.tensor(0.0)}
    weight = softmatch(torch.tensor([[0.7, 0.3]]), state, FIRST[:1], TWO).weight
    assert weight.tolist() == [1.0]
    assert softmatch_start(TWO) == {"mean": torch.tensor(0.5), "variance": torch.tensor(1.0)}
