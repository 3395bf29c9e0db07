import torch

from jointdiff.pseudo_labels import FreeMatchState, fixed, freematch, freematch_start

PROBS = torch.tensor([[0.97, 0.03], [0.6, 0.4], [0.1, 0.9]])


def test_fixed_trusts_what_reaches_the_threshold():
    pseudo, mask = fixed(PROBS, threshold=0.9)
    assert pseudo.tolist() == [0, 0, 1]
    assert mask.tolist() == [1, 0, 1]


def test_fixed_judges_every_label_of_a_multi_label_task_on_its_own():
    pseudo, mask = fixed(torch.tensor([[0.97, 0.5], [0.02, 0.99]]), threshold=0.95, multi_label=True)
    assert pseudo.tolist() == [[1, 1], [0, 1]]
    assert mask.tolist() == [[1, 0], [1, 1]]


def test_freematch_starts_at_chance_and_follows_the_confidence():
    state = freematch_start(2)
    assert state.confidence == 0.5
    _, _, state = freematch(PROBS, state, decay=0.5)
    mean_top = (0.97 + 0.6 + 0.9) / 3
    torch.testing.assert_close(state.confidence, torch.tensor(0.5 * 0.5 + 0.5 * mean_top))


def test_freematch_asks_less_of_a_class_that_is_seldom_predicted():
    state = FreeMatchState(torch.tensor(0.8), torch.tensor([0.75, 0.25]))
    probs = torch.tensor([[0.7, 0.3], [0.3, 0.7]])
    _, mask, _ = freematch(probs, state, decay=0.999)
    assert mask.tolist() == [0, 1]  # thresholds about 0.8 and 0.27


def test_freematch_multi_label_keeps_a_threshold_per_label():
    state = FreeMatchState(torch.tensor([0.9, 0.5]), torch.tensor([0.5, 0.5]))
    pseudo, mask, new = freematch(torch.tensor([[0.8, 0.8], [0.2, 0.45]]), state, decay=0.999, multi_label=True)
    assert pseudo.tolist() == [[1, 1], [0, 0]]
    assert mask.tolist() == [[0, 1], [0, 1]]
    assert new.confidence.shape == (2,)
