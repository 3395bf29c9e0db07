"""Sections of an audit's page: membership, copies, inversion, each in plain words with its numbers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jointdiff.attacks.audit import Audit, MembershipAttack
from jointdiff.attacks.copies import PERCENTILE, Copies
from jointdiff.attacks.inversion import Inversion
from jointdiff.attacks.membership import FALSE_POSITIVE_RATE, auc_bound, true_positive_bound
from jointdiff.intervals import Estimate
from jointdiff.views.format import MISSING, number, percent
from jointdiff.views.images import enlarge, grid, inline_image, png_bytes
from jointdiff.views.markup import Child, Html, element, join, table

PICTURE_PIXELS = 112  # per side, at most, of a small image that is shown

VIEWS = {
    "clear": "in the clear",
    "dp": "under differential privacy",
    "sum": "as a secure sum",
    "masked": "one masked vector",
}
_LOSSES = {"classification": "classification loss", "joint": "joint loss"}


@dataclass(frozen=True)
class Privacy:
    """What the site's ledger says was spent; None where a run had no differential privacy."""

    epsilon: float
    delta: float


def interval(estimate: Estimate, *, as_percent: bool = False) -> str:
    """Return a number with its 95% interval.

    >>> interval(Estimate(0.5, 0.4, 0.6)), interval(Estimate(0.01, 0.0, 0.03), as_percent=True)
    ('0.500 (0.400 to 0.600)', '1.0% (0.0% to 3.0%)')
    """
    shown = percent if as_percent else number
    return f"{shown(estimate.value)} ({shown(estimate.low)} to {shown(estimate.high)})"


def strongest(attacks: Sequence[MembershipAttack]) -> MembershipAttack | None:
    """Return the attack with the highest AUC, None where nothing was measured."""
    measured = [a for a in attacks if a.result is not None]
    return max(measured, key=lambda a: a.result.auc.value if a.result else 0.0, default=None)


def membership(audit: Audit, privacy: Privacy | None) -> list[Html | None]:
    """Return who could be told to be a member, with the bound of the ledger beside it."""
    best = strongest(audit.attacks)
    rows = []
    for attack in audit.attacks:
        name = f"{attack.target}, {attack.method}"
        if attack.result is None:
            rows.append([name, *[MISSING] * 4])
            continue
        r = attack.result
        rows.append(
            [name, interval(r.auc), interval(r.true_positive_rate, as_percent=True), number(r.num_members),
             number(r.num_nonmembers)]
        )  # fmt: skip
    if privacy is not None:
        bound = true_positive_bound(privacy.epsilon, privacy.delta, FALSE_POSITIVE_RATE)
        rows.append(["no attack can pass (ledger)", f"{auc_bound(privacy.epsilon, privacy.delta):.3f}",
                     percent(bound), "", ""])  # fmt: skip
    reasons = dict.fromkeys(f"Not measured on the {a.target}: {a.why_not}" for a in audit.attacks if a.result is None)
    if len({a.why_not for a in audit.attacks}) == 1 and audit.attacks[0].why_not:
        reasons = {f"Not measured: {audit.attacks[0].why_not}": None}
    return [
        element(
            "p",
            "Given an image, could somebody who has the model find out whether it was trained on here? Members are "
            "training images of this site; non-members are images of the same source, drawn at random before the run "
            "and never trained on.",
        ),
        element("p", _verdict(best, audit.attacks), class_="alert") if best else None,
        join([element("p", reason, class_="alert") for reason in reasons]),
        table(
            ["Attack", "AUC (95% interval)", "Members caught at 1% false alarms", "Members", "Non-members"],
            rows,
        ) if best else None,
        element(
            "p",
            element("b", "AUC"), ": show the attack a member and a non-member; how often does it pick the member? 0.5 "
            "is a coin, 1 is certainty. ",
            element("b", "Caught at 1% false alarms"), ": how many members it names while wrongly naming at most one "
            "non-member in a hundred; a high share means that single people can be named with confidence. ",
            _smallest_rate(best),
            element("b", "Loss threshold"), ": what the model does well on is called a member. ",
            element("b", "Likelihood ratio"), ": the same, but compared with " + _reference_words(audit.num_references),
            class_="note",
        ) if best else None,
        element(
            "p",
            "With the ε and δ in this site's ledger, the theory allows no attack on one image more than the last row. "
            "The ledger counts everything this site ever spent; an attack that stays far below the bound may only be a "
            "weak attack.",
            class_="note",
        ) if privacy is not None and best else None,
        element("p", "This site has no ledger: no differential privacy is on record, and no theory limits what a better"
                " attack could achieve.", class_="note") if privacy is None and best else None,
    ]  # fmt: skip


def _reference_words(num_references: int) -> str:
    if not num_references:
        return "reference models; none was trained (--references 0)."
    if num_references == 2:
        return (
            "a reference model that was not trained on the image, so that easy images do not pass for members "
            "(difficulty calibration)."
        )
    return (
        f"{num_references // 2} reference models that were not trained on the image, so that easy images do not pass "
        "for members (offline LiRA, one variance for all images)."
    )


def _smallest_rate(best: MembershipAttack | None) -> str | None:
    if best is None or best.result is None or best.result.num_nonmembers * FALSE_POSITIVE_RATE >= 1:
        return None
    return (
        f"With {best.result.num_nonmembers} non-members one false alarm is already more than 1%, so here it means: "
        "without any false alarm. "
    )


def _verdict(best: MembershipAttack, attacks: Sequence[MembershipAttack]) -> str:
    assert best.result is not None
    num_attacks = sum(a.result is not None for a in attacks)
    found, attack = best.result.auc, f"The strongest attack ({best.target}, {best.method})"
    if found.low > 0.5:
        return (
            f"{attack} does better than guessing: AUC {interval(found)}. One of {num_attacks} attacks would do so by "
            f"chance in up to {2.5 * num_attacks:g}% of audits."
        )
    return (
        f"{attack} could not be told from guessing: AUC {interval(found)} contains 0.5. A leak smaller than the "
        "interval would not have been seen."
    )


def copies(audit: Audit) -> list[Html | None]:
    """Return how near generated images lie to training images, and the nearest of them as pictures."""
    found = audit.copies
    intro = element(
        "p",
        "Does the generator draw new images, or does it return training images? For every generated image the nearest "
        "training image of this site is found, and the same is done for the held-out real images, which cannot be "
        "copies. Mirror images count as the images themselves.",
    )
    if found is None:
        return [intro, element("p", f"Not measured. {audit.why_no_copies}", class_="alert")]
    rows = [
        [m.measure, interval(m.below_percentile, as_percent=True), interval(m.below_all, as_percent=True),
         number(m.median_samples), number(m.median_heldout)]
        for m in found.measures
    ]  # fmt: skip
    return [
        intro,
        element("p", _copies_verdict(found), class_="alert"),
        table(
            ["Distance in", f"Nearer than {PERCENTILE:g}% of held-out images", "Nearer than every held-out image",
             "Median, samples", "Median, held-out"],
            rows,
        ),
        element(
            "p",
            "By chance 1% of fresh images are nearer than the nearest 1% of held-out ones. ",
            element("b", "Relative"), ": the distance as a share of that to the 50 nearest images: a blurred picture "
            "is not far from anything, so only one that is much nearer to one image than to the others is small here. ",
            element("b", "Features"), ": of a fixed network, which forgives small shifts. Pixels are in grey levels.",
            class_="note",
        ),
        element("h3", "The most suspicious generated images (upper row), and the nearest training image (lower row)"),
        inline_image(png_bytes(pictures(audit)["copies"]), "generated images above their nearest training images"),
    ]  # fmt: skip


def _copies_verdict(found: Copies) -> str:
    exact = f"{found.num_exact} equal a training image in every pixel."
    if found.copied.value == 0:
        return (
            f"None of {found.num_samples} generated images is a copy by all four measures; up to "
            f"{percent(found.copied.high)} could still be (95%). {exact}"
        )
    return (
        f"{interval(found.copied, as_percent=True)} of {found.num_samples} generated images are nearer to a training "
        f"image than 99% of real held-out images by all four measures: copies, or nearly. {exact}"
    )


def inversion(audit: Audit) -> list[Html | None]:
    """Return what was drawn from single updates, seen in the clear and protected."""
    intro = element(
        "p",
        "An update is what a hospital sends after training. Here one image was trained on for one step, and the attack "
        "tries to draw that image from the update, knowing the model, the label and all chance: the worst case. Real "
        "updates mix many images and steps, which makes it harder; how much harder was not measured. Of a secure sum, "
        "to which every site gave one image, the attack draws all images at once, and the best counts.",
    )
    if not audit.inversions:
        return [intro, element("p", f"Not measured. {audit.why_no_inversions}", class_="alert")]
    groups = _groups(audit.inversions)
    rows: list[list[Child]] = []
    for (loss, view), found in groups.items():
        read = [i.label_read for i in found if i.label_read is not None]
        guess = [statistics.median(values) for values in ([i.psnr_guess for i in found], [i.ssim_guess for i in found])]
        rows.append(
            [f"{_LOSSES[loss]}, {_view_words(view, audit)}", _spread([i.psnr for i in found], 1), number(guess[0], 1),
             number(statistics.median(i.ssim for i in found), 2), number(guess[1], 2),
             f"{sum(i.recognised for i in found)} of {len(found)}", f"{sum(read)} of {len(read)}" if read else MISSING]
        )  # fmt: skip
    drawn = pictures(audit)
    return [
        intro,
        element("p", _inversion_verdict(audit), class_="alert"),
        table(
            ["Loss, and how the update was seen", "PSNR, dB", "of a guess", "SSIM", "of a guess", "Recognised",
             "Label read"],
            rows,
        ),
        element(
            "p",
            element("b", "A guess"), " is the mean image of the site or of the class, the better of the two: what can "
            "be drawn without any update. ",
            element("b", "PSNR"), " and ", element("b", "SSIM"), " say how near a picture is to the original: equal "
            "pictures have 60 dB (our cap) and 1; a reconstruction no better than the guess gave nothing away. ",
            element("b", "Recognised"), f": of all {number(audit.num_train)} training images here, the right one is "
            "nearest to the reconstruction. ",
            element("b", "Label read"), ": the label follows from the update alone. Numbers are medians, PSNR with the "
            "least and the greatest.",
            class_="note",
        ),
        element("h3", "The best reconstructions"),
        element(
            "ul",
            [
                element(
                    "li",
                    element("h4", f"{_LOSSES[loss]}, {_view_words(view, audit)}"),
                    inline_image(
                        png_bytes(drawn[f"inversion-{loss}-{view}"]), "original, guess, and reconstruction",
                        max_width=420,
                    ),
                    element("p", f"Original, guess, reconstruction: {number(_best(found).psnr, 1)} dB.", class_="note"),
                    class_="card",
                )
                for (loss, view), found in groups.items()
            ],
            class_="cards",
        ),
    ]  # fmt: skip


def _view_words(view: str, audit: Audit) -> str:
    if view == "dp":
        return f"{VIEWS[view]} (noise multiplier {audit.noise_multiplier:g})"
    if view == "sum":
        return f"{VIEWS[view]} of {audit.num_sites} sites"
    return VIEWS[view]


def _inversion_verdict(audit: Audit) -> str:
    parts = []
    for view in VIEWS:
        found = [i for i in audit.inversions if i.view == view]
        if found:
            parts.append(f"{_view_words(view, audit)} {sum(i.recognised for i in found)} of {len(found)}")
    return "Reconstructions in which the image can be recognised: " + "; ".join(parts) + "."


def limits() -> Html:
    """Return what a reader must not conclude."""
    return element(
        "ul",
        [
            element("li", sentence)
            for sentence in (
                "Attacks show a lower limit: a leak that was found is there; one that was not found may be.",
                "The unit is one image. Several images of one patient leak more than one of them.",
                "Membership and copies were tested on the finished model. Who sees every round's update sees more.",
                "Inversion was tested on one kind of update, that of a plain gradient step on one image.",
                "One run, one set of held-out images: the intervals are about the images, not about another training.",
            )
        ],
    )


def _groups(inversions: Sequence[Inversion]) -> dict[tuple[str, str], list[Inversion]]:
    groups: dict[tuple[str, str], list[Inversion]] = {}
    for found in inversions:
        groups.setdefault((found.loss, found.view), []).append(found)
    return groups


def _best(found: Sequence[Inversion]) -> Inversion:
    return max(found, key=lambda i: i.psnr)


def _spread(values: Sequence[float], digits: int) -> str:
    middle = number(statistics.median(values), digits)
    if len(values) == 1:
        return middle
    return f"{middle} ({number(min(values), digits)} to {number(max(values), digits)})"


def pictures(audit: Audit) -> Mapping[str, np.ndarray]:
    """Return the page's pictures by file name: uint8 [H,W,C]."""

    def sheet(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
        return grid([enlarge(image, max(1, PICTURE_PIXELS // len(image))) for image in images], columns=columns)

    drawn = {}
    if audit.pairs:
        upper, lower = zip(*audit.pairs, strict=True)
        drawn["copies"] = sheet([*upper, *lower], len(upper))
    for (loss, view), found in _groups(audit.inversions).items():
        best = _best(found)
        drawn[f"inversion-{loss}-{view}"] = sheet([best.original, best.guess, best.reconstruction], 3)
    return drawn
