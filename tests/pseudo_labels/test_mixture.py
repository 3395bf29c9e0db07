import torch

from jointdiff.pseudo_labels import mixture


def classifier_scores(shares, means, count=3000, seed=0):
    """Logits of a classifier that does not know the classes' shares, the true classes, and ten labels of each."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.multinomial(torch.tensor(shares), count, replacement=True, generator=generator)
    logits = torch.tensor(means)[truth] + torch.randn(count, len(shares), generator=generator)
    labels = torch.full((count,), -1)
    for k in range(len(shares)):
        labels[torch.nonzero(truth == k)[:10, 0]] = k
    return logits.softmax(dim=1), truth, labels


def test_the_mixture_finds_how_common_the_classes_are():
    # The true posterior of these logits is softmax(means' contrast + log shares): a Bayes-optimal oracle exists.
    shares, means = [0.2, 0.8], [[1.0, -1.0], [-1.0, 1.0]]
    probs, truth, labels = classifier_scores(shares, means)
    posterior = mixture(probs, labels)
    logits = probs.log()
    oracle = (2 * (logits[:, 0] - logits[:, 1]) + torch.tensor(0.2 / 0.8).log()).sigmoid()
    unknown = labels < 0
    assert abs(float(posterior[:, 1].mean()) - 0.8) < 0.03
    assert float((posterior[unknown, 0] - oracle[unknown]).abs().mean()) < 0.03
    accuracy = [(p.argmax(1) == truth)[unknown].float().mean().item() for p in (probs, posterior)]
    assert accuracy[1] > accuracy[0] + 0.01
    assert torch.equal(posterior[~unknown].argmax(1), labels[~unknown]), "what is known stays known"


def test_the_mixture_has_as_many_classes_as_the_classifier():
    means = [[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 3.0]]
    probs, truth, labels = classifier_scores([0.1, 0.3, 0.6], means)
    posterior = mixture(probs, labels)
    torch.testing.assert_close(posterior.sum(dim=1), torch.ones(len(probs)))
    torch.testing.assert_close(posterior.mean(dim=0), torch.tensor([0.1, 0.3, 0.6]), atol=0.03, rtol=0)
    assert (posterior.argmax(1) == truth).float().mean() > (probs.argmax(1) == truth).float().mean()


def test_the_mixture_fits_every_label_of_a_multi_label_task_on_its_own():
    one, _, labels = classifier_scores([0.2, 0.8], [[1.0, -1.0], [-1.0, 1.0]])
    other, _, other_labels = classifier_scores([0.6, 0.4], [[1.0, -1.0], [-1.0, 1.0]], seed=1)
    both = mixture(
        torch.stack([one[:, 1], other[:, 1]], dim=1), torch.stack([labels, other_labels], dim=1), multi_label=True
    )
    torch.testing.assert_close(both[:, 0], mixture(one, labels)[:, 1])
    torch.testing.assert_close(both[:, 1], mixture(other, other_labels)[:, 1])
