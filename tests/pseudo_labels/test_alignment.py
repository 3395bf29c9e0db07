import pytest
import torch

from jointdiff.pseudo_labels import aligned, shares, uniform


def test_alignment_by_hand():
    mean, target = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    probs, new = aligned(torch.tensor([[0.8, 0.2], [0.6, 0.4]]), mean, target)
    held = torch.tensor([0.9 * 0.5 + 0.1 * 0.7, 0.9 * 0.5 + 0.1 * 0.3])
    torch.testing.assert_close(new, held)
    odds = 0.8 / 0.2 * (0.25 / held[0]) / (0.75 / held[1])
    torch.testing.assert_close(probs[0], torch.stack([odds / (1 + odds), 1 / (1 + odds)]))


@pytest.mark.parametrize("multi_label", [False, True])
def test_alignment_moves_the_mean_to_the_target(multi_label):
    target = torch.tensor([0.2, 0.3, 0.5])
    mean, generator = target.clone(), torch.Generator().manual_seed(0)
    leaning = torch.tensor([2.0, 0.5, -1.0])
    for _ in range(100):
        logits = torch.randn(64, 3, generator=generator) + leaning
        probs = logits.sigmoid() if multi_label else logits.softmax(dim=1)
        moved, mean = aligned(probs, mean, target, multi_label=multi_label)
    before, after = ((p.mean(dim=0) - target).abs().sum() for p in (probs, moved))
    assert before > 0.5 and after < 0.35 * before
    assert moved.min() >= 0 and moved.max() <= 1
    if not multi_label:
        torch.testing.assert_close(moved.sum(dim=1), torch.ones(64))


def test_what_is_aligned_already_stays():
    probs = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    moved, _ = aligned(probs, uniform(2), uniform(2))
    torch.testing.assert_close(moved, probs)


def test_alignment_of_a_multi_label_task_is_that_of_two_classes():
    probs, mean, target = torch.tensor([[0.8], [0.3]]), torch.tensor([0.6]), torch.tensor([0.2])
    one, one_mean = aligned(probs, mean, target, multi_label=True)
    pair = [torch.cat([1 - t, t], dim=-1) for t in (probs, mean, target)]
    two, two_mean = aligned(*pair)
    torch.testing.assert_close(one[:, 0], two[:, 1])
    torch.testing.assert_close(one_mean[0], two_mean[1])


@pytest.mark.parametrize("multi_label", [False, True])
def test_certain_predictions_and_empty_classes_stay_finite(multi_label):
    probs = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    mean = torch.tensor([1.0, 0.0])
    for _ in range(3):
        moved, mean = aligned(probs, mean, torch.tensor([0.0, 1.0]), multi_label=multi_label)
        assert moved.isfinite().all()


def test_the_shares_are_those_of_the_unlabelled_images():
    """The ten labels of each class are known and left out: they were chosen by their class."""
    generator = torch.Generator().manual_seed(0)
    truth = (torch.rand(2000, generator=generator) < 0.8).long()
    logits = torch.where(truth == 1, 1.0, -1.0) + torch.randn(2000, generator=generator)
    probs = torch.stack([-logits, logits], dim=1).softmax(dim=1)
    labels = torch.full((2000,), -1)
    for k in (0, 1):
        labels[torch.nonzero(truth == k)[:300, 0]] = k
    unlabelled = torch.nonzero(labels < 0)[:, 0]
    found = shares(probs, labels, unlabelled)
    true_share = (truth[unlabelled] == 1).float().mean()
    assert true_share > 0.9, "three hundred labels of each class are taken out of 80 to 20"
    torch.testing.assert_close(found[1], true_share, atol=0.03, rtol=0)
    torch.testing.assert_close(found.sum(), torch.tensor(1.0))
