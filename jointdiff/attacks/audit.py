"""A site attacks a model on its own data: membership, copies, inversion of one update. The result stays at the site."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from jointdiff.attacks import inversion, membership, scores
from jointdiff.attacks.copies import Copies, also_in, measure_copies, repeats
from jointdiff.attacks.inversion import Inversion
from jointdiff.attacks.membership import MIN_RECORDS, Membership
from jointdiff.attacks.references import halves, hide_labels, train_references
from jointdiff.config import Config
from jointdiff.data import UNKNOWN, HospitalData, ImageSet
from jointdiff.data.partition import strata_of
from jointdiff.model import JointModel, to_network
from jointdiff.reproducibility import generator_for, seed_for
from jointdiff.showcase import guided_samples

MAX_RECORDS = 500  # members, and non-members, that are scored
NUM_SAMPLES = 128  # drawn in search of copies
NUM_SHOWN = 6  # samples shown beside their nearest training image
MAX_SITES = 5  # behind one secure sum, in the inversion
NUM_STEPS = 100  # of an inversion
NOISE_MULTIPLIER = 1.0  # shown where the run had no differential privacy
MEAN_NOISE = 0.05  # of the starting images of a sum: two that are equal would stay equal

NO_HOLDOUT = (
    "The run held nothing back (audit-holdout=0): every training image of this site was trained on, and there are no"
    " non-members to compare with. The official test split is no substitute: it is another draw, often of another"
    " distribution (PneumoniaMNIST's is), and an attack would win by telling the two sources apart, without knowing"
    " anything of membership. Start a run with audit-holdout=0.2."
)
NO_DENOISER = "The run's method never learned to denoise: there is no generator to attack."

Progress = Callable[[str], None]


@dataclass(frozen=True)
class MembershipAttack:
    """One attack on one of the model's two tasks."""

    target: str  # denoiser | classifier
    method: str  # loss threshold | likelihood ratio
    result: Membership | None
    why_not: str = ""  # where there is no result


@dataclass(frozen=True)
class Audit:
    """All that the attacks found."""

    hospital: str
    num_train: int
    num_labelled: int
    num_nonmembers: int  # that were used
    num_shared: int  # held-out images left out because a training image equals them in every pixel
    num_repeats: int  # training images that equal an earlier one of this site
    num_references: int
    attacks: tuple[MembershipAttack, ...]
    copies: Copies | None
    why_no_copies: str
    pairs: tuple[tuple[np.ndarray, np.ndarray], ...]  # most suspicious samples, and their nearest training images
    inversions: tuple[Inversion, ...]
    why_no_inversions: str
    noise_multiplier: float  # of the view `dp`
    num_sites: int  # behind the view `sum`


def audit(
    model: JointModel,
    config: Config,
    data: HospitalData,
    *,
    hospital_index: int,
    device: torch.device,
    num_references: int,
    num_inversions: int,
    noise_multiplier: float = NOISE_MULTIPLIER,
    progress: Progress = lambda _: None,
) -> Audit:
    """Attack a model with one hospital's data.

    Args:
        model: As whoever has the run's result has it; on the device.
        data: The hospital's; its non-members decide what can be measured.
        num_references: Even; 0 leaves the likelihood ratio out.
        num_inversions: Labelled images whose update is inverted; 0 = none.
        noise_multiplier: Of the DP view of the inversions.
        progress: Told what is being done.
    """
    model.eval()
    apart, num_shared = data.nonmembers, 0
    if apart is not None:
        shared = also_in(apart.images, data.train.images)
        apart, num_shared = apart.select(np.flatnonzero(~shared)), int(shared.sum())
    attacks = _membership(
        model, config, data, apart, hospital_index=hospital_index, device=device, num_references=num_references,
        progress=progress,
    )  # fmt: skip
    copies, why_no_copies, pairs = _copies(
        model, config, data, apart, hospital_index=hospital_index, device=device, progress=progress
    )
    inversions, why_no_inversions, num_sites = _inversions(
        model, config, data, hospital_index=hospital_index, device=device, num_inversions=num_inversions,
        noise_multiplier=noise_multiplier, progress=progress,
    )  # fmt: skip
    return Audit(
        hospital=f"hospital-{hospital_index + 1}",
        num_train=len(data.train),
        num_labelled=data.train.num_labelled,
        num_nonmembers=0 if apart is None else len(apart),
        num_shared=num_shared,
        num_repeats=repeats(data.train.images),
        num_references=num_references,
        attacks=attacks,
        copies=copies,
        why_no_copies=why_no_copies,
        pairs=pairs,
        inversions=inversions,
        why_no_inversions=why_no_inversions,
        noise_multiplier=noise_multiplier,
        num_sites=num_sites,
    )


@dataclass(frozen=True)
class _Comparison:
    """Records of the pool that one attack tells apart: members are the first rows of the pool."""

    target: str
    members: np.ndarray
    nonmembers: np.ndarray
    why_not: str

    @property
    def rows(self) -> np.ndarray:
        return np.concatenate([self.members, self.nonmembers])


def _membership(
    model: JointModel,
    config: Config,
    data: HospitalData,
    apart: ImageSet | None,
    *,
    hospital_index: int,
    device: torch.device,
    num_references: int,
    progress: Progress,
) -> tuple[MembershipAttack, ...]:
    rng = np.random.default_rng(seed_for(config.run.seed, hospital_index, 0, "audit: membership"))
    if apart is None or len(apart) < MIN_RECORDS:
        reason = NO_HOLDOUT
        if apart is not None:
            reason = (
                f"Only {len(apart)} images were held back that no training image equals, and at least {MIN_RECORDS} are"
                " needed: run with a larger audit-holdout."
            )
        return tuple(MembershipAttack(target, "loss threshold", None, reason) for target in ("denoiser", "classifier"))
    pool = _joined(data.train, apart)
    comparisons = [_denoiser_comparison(config, data, pool, rng), _classifier_comparison(data, pool, rng)]

    def score(judge: JointModel, comparison: _Comparison) -> np.ndarray:
        some = pool.select(comparison.rows)
        if comparison.target == "denoiser":
            return scores.denoising_scores(judge, some.images, config, device=device)
        return scores.classification_scores(judge, some.images, some.labels, device=device)

    measured = [c for c in comparisons if not c.why_not]
    progress(f"membership: scoring members and {len(apart)} non-members")
    own = {c.target: score(model, c) for c in measured}
    trained_on = halves(len(pool), num_references, seed=int(rng.integers(2**62)))
    heard: dict[str, list[np.ndarray]] = {c.target: [] for c in measured}

    def listen(reference: JointModel) -> None:
        for c in measured:
            heard[c.target].append(score(reference, c))
        progress(f"membership: reference model {len(heard[measured[0].target])} of {num_references} done")

    if num_references and measured:
        progress(f"membership: training {num_references} reference models")
        share = data.train.num_labelled / len(data.train)
        shown = np.concatenate([data.train.labels, hide_labels(apart.labels, share=share, rng=rng)])
        train_references(
            replace(pool, labels=shown), trained_on, data, config, hospital_index=hospital_index, device=device,
            callback=listen,
        )  # fmt: skip
    found = []
    for c in comparisons:
        methods = ["loss threshold", *(["likelihood ratio"] if num_references else [])]
        if c.why_not:
            found += [MembershipAttack(c.target, methods[0], None, c.why_not)]
            continue
        for method in methods:
            known = own[c.target]
            if method == "likelihood ratio":
                known = membership.calibrated(known, np.stack(heard[c.target]), trained_on[:, c.rows])
            split = len(c.members)
            found.append(MembershipAttack(c.target, method, membership.measure(known[:split], known[split:], rng=rng)))
    return tuple(found)


def _denoiser_comparison(config: Config, data: HospitalData, pool: ImageSet, rng: np.random.Generator) -> _Comparison:
    everyone = np.arange(len(pool))
    members, nonmembers = everyone[: len(data.train)], everyone[len(data.train) :]
    why_not = "" if config.training.diffusion_weight else NO_DENOISER
    return _compared("denoiser", members, nonmembers, "training images", why_not, rng)


def _classifier_comparison(data: HospitalData, pool: ImageSet, rng: np.random.Generator) -> _Comparison:
    labelled = np.flatnonzero(pool.labelled)
    is_member = labelled < len(data.train)
    members, nonmembers = labelled[is_member], labelled[~is_member]
    strata = strata_of(pool.labels)
    own, others = membership.same_mixture(strata[members], strata[nonmembers], rng=rng)
    what = f"labelled members (of {len(members)}, in classes that both sides have)"
    return _compared("classifier", members[own], nonmembers[others], what, "", rng)


def _compared(
    target: str, members: np.ndarray, nonmembers: np.ndarray, what: str, why_not: str, rng: np.random.Generator
) -> _Comparison:
    if not why_not and min(len(members), len(nonmembers)) < MIN_RECORDS:
        why_not = (
            f"{len(members)} {what} and {len(nonmembers)} non-members can be compared; at least {MIN_RECORDS} of each"
            " are needed for an interval that says anything."
        )
    members, nonmembers = (np.sort(rng.permutation(rows)[:MAX_RECORDS]) for rows in (members, nonmembers))
    return _Comparison(target, members, nonmembers, why_not)


def _joined(train: ImageSet, apart: ImageSet) -> ImageSet:
    return ImageSet(np.concatenate([train.images, apart.images]), np.concatenate([train.labels, apart.labels]))


def _copies(
    model: JointModel,
    config: Config,
    data: HospitalData,
    apart: ImageSet | None,
    *,
    hospital_index: int,
    device: torch.device,
    progress: Progress,
) -> tuple[Copies | None, str, tuple[tuple[np.ndarray, np.ndarray], ...]]:
    if not config.training.diffusion_weight:
        return None, NO_DENOISER, ()
    if apart is None or len(apart) < MIN_RECORDS:
        reason = "Without held-out images of the same source nobody can say how near is too near: see membership."
        return None, reason, ()
    progress(f"copies: drawing {NUM_SAMPLES} samples")
    targets = np.arange(NUM_SAMPLES) % config.model.num_outputs
    generator = generator_for(config.run.seed, hospital_index, 0, "audit: samples")
    samples = guided_samples(model, config, targets, device=device, generator=generator)
    found = measure_copies(samples, data.train.images, apart.images)
    shown = found.closest[:NUM_SHOWN]
    return found, "", tuple((samples[k], data.train.images[found.nearest[k]]) for k in shown)


def _inversions(
    model: JointModel,
    config: Config,
    data: HospitalData,
    *,
    hospital_index: int,
    device: torch.device,
    num_inversions: int,
    noise_multiplier: float,
    progress: Progress,
) -> tuple[tuple[Inversion, ...], str, int]:
    """Invert the update of some labelled images, under every loss and view.

    Returns:
        The inversions, why there are none, and the number of sites behind the view `sum` (0: not tried).
    """
    labelled = np.flatnonzero(data.train.labelled)
    if not num_inversions or not len(labelled):
        return (), "None was asked for." if not num_inversions else "This site has no labelled image to invert.", 0
    rng = np.random.default_rng(seed_for(config.run.seed, hospital_index, 0, "audit: inversion"))
    generator = generator_for(config.run.seed, hospital_index, 0, "audit: inversion")
    num_sites = min(config.run.num_hospitals, len(labelled), MAX_SITES)
    num_sites = num_sites if num_sites > 1 else 0
    weights = {"classification": config.training.class_weight, "joint": config.training.diffusion_weight}
    found: list[Inversion] = []
    for number, row in enumerate(rng.permutation(labelled)[:num_inversions]):
        progress(f"inversion: image {number + 1} of {min(num_inversions, len(labelled))}")
        others = rng.permutation(labelled[labelled != row])[: max(0, num_sites - 1)]
        for loss in (name for name, weight in weights.items() if weight):
            found += _views(
                model, config, data, row, others, loss, generator=generator, device=device,
                noise_multiplier=noise_multiplier,
            )  # fmt: skip
    return tuple(found), "", num_sites


def _views(
    model: JointModel,
    config: Config,
    data: HospitalData,
    row: int,
    others: np.ndarray,
    loss_name: str,
    *,
    generator: torch.Generator,
    device: torch.device,
    noise_multiplier: float,
) -> list[Inversion]:
    train = data.train
    rows = np.array([row, *others])
    x, labels = to_network(train.images[rows], device), torch.as_tensor(train.labels[rows], device=device)
    parameters = list(model.parameters())
    bias_at = next(k for k, (name, _) in enumerate(model.named_parameters()) if name == "head.linear.bias")
    guesses = _guesses(train, row)

    def loss_of(some: torch.Tensor) -> inversion.Loss:
        if loss_name == "classification":
            return inversion.classification_loss(model, some)
        return inversion.joint_loss(model, some, config, generator=generator, device=device)

    alone = loss_of(labels[:1])
    clear = inversion.update_of(alone, parameters, x[:1])
    views: dict[str, tuple[inversion.Loss, inversion.Update, int]] = {
        "clear": (alone, clear, 1),
        "dp": (alone, inversion.clipped_and_noised(clear, noise_multiplier, generator=generator), 1),
    }
    if len(others):
        together = loss_of(labels)
        views["sum"] = (together, inversion.update_of(together, parameters, x), len(rows))
    if loss_name == "classification":  # a mask hides every loss alike
        views["masked"] = (alone, inversion.masked(clear, generator=generator), 1)
    found = []
    for view, (loss, update, count) in views.items():
        start = to_network(guesses[:1], device).repeat(count, 1, 1, 1)
        if count > 1:
            start = start + MEAN_NOISE * torch.randn(start.shape, generator=generator).to(device)
        drawn = inversion.invert(loss, parameters, update, start, num_steps=NUM_STEPS)
        label_read = None
        if train.labels.ndim == 1 and view != "sum" and config.training.class_weight:
            label_read = inversion.label_in(update[bias_at]) == int(train.labels[row])
        found.append(
            inversion.graded(
                drawn, train.images[row], guesses, train.images, loss=loss_name, view=view, label_read=label_read
            )
        )
    return found


def _guesses(train: ImageSet, row: int) -> np.ndarray:
    """Return what can be drawn without the update: the mean of the site's other images, and of those of the class."""
    others = np.arange(len(train)) != row
    labels = train.labels[row]
    alike = others & (train.labels == labels if train.labels.ndim == 1 else (train.labels == labels).all(axis=1))
    assert (np.atleast_1d(labels) != UNKNOWN).all()
    groups = [others, *([alike] if alike.any() else [])]
    return np.stack([train.images[group].mean(axis=0).round().astype(np.uint8) for group in groups])
