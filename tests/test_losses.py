import math

import pytest
import torch

from jointdiff.losses import classification_loss, denoising_loss, pseudo_label_loss


def test_denoising_loss_is_the_weighted_mean_over_pixels_of_each_record():
    output = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    loss = denoising_loss(output, torch.zeros(2, 1, 2, 2), torch.tensor([1.0, 0.5]))
    assert loss.tolist() == [1.0, 4.5]


def test_an_unknown_label_costs_nothing_and_has_no_gradient():
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]], requires_grad=True)
    loss = classification_loss(logits, torch.tensor([-1, 1]))
    assert loss.tolist() == [0.0, pytest.approx(math.log(2))]
    loss.sum().backward()
    assert logits.grad[0].abs().sum() == 0
    assert logits.grad[1].abs().sum() > 0


def test_multi_label_loss_averages_over_the_known_labels_only():
    logits = torch.zeros(2, 3)
    loss = classification_loss(logits, torch.tensor([[1, 0, -1], [-1, -1, -1]]))
    assert loss.tolist() == [pytest.approx(math.log(2)), 0.0]


@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_pseudo_label_loss_follows_the_mask(shape):
    logits, pseudo = torch.zeros(3, 2), torch.zeros(shape, dtype=torch.int64)
    mask = torch.tensor([1.0, 0.5, 0.0]).view(3, *([1] * (len(shape) - 1))).expand(shape)
    loss = pseudo_label_loss(logits, pseudo, mask)
    assert loss.tolist() == [pytest.approx(math.log(2)), pytest.approx(0.5 * math.log(2)), 0.0]


def test_a_soft_target_is_learned_by_its_shares():
    logits = torch.tensor([[1.0, 0.0, -1.0]])
    log_p = logits.log_softmax(dim=1)[0]
    loss = pseudo_label_loss(logits, torch.tensor([[0.7, 0.3, 0.0]]), torch.tensor([0.5]))
    assert loss.item() == pytest.approx(-0.5 * (0.7 * log_p[0] + 0.3 * log_p[1]).item())
    both = pseudo_label_loss(torch.zeros(1, 2), torch.tensor([[0.7, 0.2]]), torch.ones(1, 2))
    assert both.item() == pytest.approx(math.log(2))
