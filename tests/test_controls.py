"""Controls of explanations: edits of the right size that explain nothing, and a network that knows nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jointdiff.config import ModelConfig
from jointdiff.controls import Edits, all_controls, attack, random_edit, random_weights
from jointdiff.evaluation import predict
from jointdiff.model import JointModel, to_network

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
SCANS = RNG.integers(0, 256, (10, 16, 16, 1)).astype(np.uint8)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def classifier(task: str = "multi-class") -> JointModel:
    """Return a model with weights of ordinary size everywhere, and a head that spreads its decisions."""
    config = ModelConfig(width=8, multipliers=(1,), attention_levels=(), patch_size=2, image_size=16, num_outputs=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = JointModel(ModelConfig(**{**vars(config), "task": task}))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return random_weights(model, SCANS, generator=draws())


def edits_of(scans: np.ndarray, targets: np.ndarray, *, size: int = 25) -> Edits:
    """Edits that differ in size from scan to scan, the last not found."""
    change = np.zeros(scans.shape, np.int64)
    for i in range(len(scans)):
        change[i, 4:8, : i + 1] = size if i % 2 else -size
    return Edits(np.clip(scans + change, 0, 255).astype(np.uint8), targets, np.arange(len(scans)) < len(scans) - 1)


def norms(images: np.ndarray, scans: np.ndarray) -> np.ndarray:
    return np.linalg.norm((images.astype(float) - scans).reshape(len(scans), -1), axis=1)


def margins(model: JointModel, images: np.ndarray, targets: np.ndarray) -> np.ndarray:
    logits = model.classify(to_network(images)).detach().numpy()
    own = logits[np.arange(len(images)), targets]
    logits[np.arange(len(images)), targets] = -np.inf
    return own - logits.max(axis=1)


@pytest.mark.parametrize(
    "scans", [SCANS, np.zeros_like(SCANS), np.full_like(SCANS, 255)], ids=["mixed", "black", "white"]
)
def test_a_random_edit_has_the_size_of_the_edit_of_its_scan(scans: np.ndarray) -> None:
    edits = edits_of(scans, np.zeros(10, np.int64))
    made = random_edit(scans, edits, generator=draws())
    wanted = np.where(edits.found, norms(edits.images, scans), 0)
    assert (wanted > 0).any() and wanted[-1] == 0
    got = norms(made.images, scans)
    assert (got >= wanted).all() and got == pytest.approx(wanted, rel=0.03, abs=1e-9)
    assert np.array_equal(made.found, edits.found)
    touched = [set(zip(*np.nonzero(pair[0] != pair[1]), strict=True)) for pair in zip(made.images, scans, strict=True)]
    assert not touched[-1] and all(len(t) > 10 for t, w in zip(touched, wanted, strict=True) if w > 150)


def test_a_random_edit_is_its_generators_alone() -> None:
    edits = edits_of(SCANS, np.zeros(10, np.int64))
    torch.manual_seed(1)
    first, again, other = (random_edit(SCANS, edits, generator=draws(s)).images for s in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_random_weights_replace_every_weight_and_leave_the_model_as_it_was() -> None:
    model = classifier()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, again = (random_weights(model, SCANS, generator=draws(5)) for _ in range(2))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    for old, new in zip(model.parameters(), first.parameters(), strict=True):
        assert not torch.equal(old, new)
        if old.numel() > 500:
            assert new.std().item() == pytest.approx(old.std().item(), rel=0.2)
            assert abs(np.corrcoef(old.detach().flatten(), new.detach().flatten())[0, 1]) < 0.2
    features = first.features(to_network(SCANS)).detach()
    torch.testing.assert_close(features.mean(dim=0), first.head.mean, rtol=1e-3, atol=1e-4)
    assert not first.training


def test_the_attack_turns_the_decision_within_the_edits_norm() -> None:
    model = classifier()
    targets = (predict(model, SCANS, device=CPU).argmax(axis=1) + 1) % 3
    edits = edits_of(SCANS, targets, size=60)
    made = attack(model, SCANS, edits, device=CPU, batch_size=4)
    wanted = np.where(edits.found, norms(edits.images, SCANS), 0)
    got = norms(made.images, SCANS)
    assert (got <= wanted + 0.5 * 16).all(), "rounding to grey levels alone may add to it"
    assert (got[:-1] > 0.5 * wanted[:-1]).all() and np.array_equal(made.images[-1], SCANS[-1])
    gained = margins(model, made.images, targets) - margins(model, SCANS, targets)
    noisy = margins(model, random_edit(SCANS, edits, generator=draws()).images, targets) - margins(
        model, SCANS, targets
    )
    assert (gained[:-1] > 0).all() and gained[3:-1].mean() > 5 * abs(noisy[3:-1].mean())
    assert (predict(model, made.images, device=CPU).argmax(axis=1) == targets).sum() >= 5
    assert np.array_equal(made.images, attack(model, SCANS, edits, device=CPU).images), "batches change nothing"


def test_the_attack_turns_a_label_over_in_either_direction() -> None:
    model = classifier("multi-label")
    before = predict(model, SCANS, device=CPU)[:, 1]
    assert (before > 0.5).any() and (before < 0.5).any()
    made = attack(model, SCANS, edits_of(SCANS, np.ones(10, np.int64)), device=CPU)
    after = predict(model, made.images, device=CPU)[:, 1]
    assert (np.where(before > 0.5, before - after, after - before)[:-1] > 0).all()


def test_a_larger_norm_lets_the_attack_go_farther() -> None:
    model = classifier()
    targets = (predict(model, SCANS, device=CPU).argmax(axis=1) + 1) % 3
    small, large = (attack(model, SCANS, edits_of(SCANS, targets, size=s), device=CPU).images for s in (10, 60))
    assert (margins(model, large, targets) > margins(model, small, targets))[:-1].all()


def test_the_controls_ask_the_method_what_they_should() -> None:
    model, asked = classifier(), []
    probs = predict(model, SCANS, device=CPU)
    targets = (probs.argmax(axis=1) + 1) % 3
    edits = edits_of(SCANS, targets)

    def method(asked_model: JointModel, scans: np.ndarray, aims: np.ndarray) -> Edits:
        asked.append((asked_model, scans, aims))
        return Edits(255 - scans, aims, np.ones(len(scans), bool), 0.5)

    found = all_controls(method, model, SCANS, edits, probs, generator=draws(), device=CPU)
    assert list(found) == ["own class", "random edit", "random weights", "attack"]
    (own_model, _, own), (other_model, _, other) = asked
    assert own_model is model and np.array_equal(own, probs.argmax(axis=1))
    assert np.array_equal(other, targets) and not torch.equal(other_model.head.linear.weight, model.head.linear.weight)
    assert np.array_equal(found["random weights"].images, 255 - SCANS)
    many = classifier("multi-label")
    assert "own class" not in all_controls(method, many, SCANS, edits, probs, generator=draws(), device=CPU)


def test_edits_of_hospitals_are_joined_with_the_time_of_all_scans() -> None:
    parts = [Edits(SCANS[:n], np.zeros(n, np.int64), np.ones(n, bool), s) for n, s in ((1, 1.0), (3, 2.0))]
    both = Edits.together(parts)
    assert both.seconds_per_image == 1.75 and len(both.images) == len(both.found) == 4
    assert Edits.together([parts[0], edits_of(SCANS, np.zeros(10, np.int64))]).seconds_per_image is None
