import pytest
import torch

from jointdiff.pseudo_labels import Judgement, agreed


def judgement(pseudo, weight):
    return Judgement(torch.tensor(pseudo), torch.tensor(weight), {})


def test_the_correction_by_hand():
    """Equal confidence: the local label. 0.05 apart: half and half. Not sure locally: the global label alone."""
    local, other = judgement([0, 0, 0, 0], [1.0, 1.0, 0.0, 0.0]), judgement([1, 1, 1, 1], [1.0, 0.0, 1.0, 0.0])
    target, weight = agreed(local, other, torch.tensor([0.0, 0.05, 0.0, 0.0]), num_outputs=3)
    expected = [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 1, 0]]
    torch.testing.assert_close(target, torch.tensor(expected, dtype=torch.float32))
    assert weight.tolist() == [1, 1, 1, 0]


def test_two_that_agree_teach_one_class_however_far_their_confidences():
    same = judgement([2, 1], [1.0, 1.0])
    target, _ = agreed(same, same, torch.tensor([0.0, 0.4]), num_outputs=3)
    torch.testing.assert_close(target, torch.tensor([[0.0, 0, 1], [0, 1, 0]]))


def test_the_local_share_falls_with_the_difference():
    local, other = judgement([0] * 5, [1.0] * 5), judgement([1] * 5, [1.0] * 5)
    target, _ = agreed(local, other, torch.linspace(0, 0.5, 5), num_outputs=2)
    assert (target[:, 0].diff() < 0).all()
    torch.testing.assert_close(target.sum(dim=1), torch.ones(5))


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_multi_label_targets_are_shares_of_each_label(weight):
    local, other = judgement([[1, 0]], [[weight, 1.0]]), judgement([[0, 0]], [[0.25, 0.0]])
    target, weights = agreed(local, other, torch.tensor([[0.05, 0.0]]), num_outputs=2, multi_label=True)
    torch.testing.assert_close(target, torch.tensor([[0.5 * weight, 0.0]]))
    torch.testing.assert_close(weights, torch.tensor([[weight, 1.0]]))
