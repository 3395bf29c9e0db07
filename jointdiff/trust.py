"""How far an explanation can be relied on: trust, caution or none, with the reason in words.

That an edit turns the model's decision proves little: an attack does too. So an edit is asked whether one can see it,
whether it is small, whether it still shows the same patient, and whether the new decision holds; and a page of edits is
asked what an independent classifier, the referee, says of them, and how edits that explain nothing fare (controls.py).
What is not known of a single edit must be known of its page, so no edit is graded above its page (`Trust.within`).

The thresholds are conventions, not measurements of harm: they say where this project's own tables stop being good.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["trust", "caution", "none"]
LEVELS: tuple[Level, ...] = ("trust", "caution", "none")  # from the best to the worst

SURE_PROB = 0.75  # of the target after the edit: below three to one, the edit ends near the border, where little counts
MOST_CHANGED = 0.25  # share of pixels: beyond a quarter, nobody can say which part of the edit mattered
TOO_MUCH_CHANGED = 0.5  # beyond a half, it is another picture rather than an edit of this one
GOOD_VALIDITY = 0.9  # share of scans for which the method does its work; nine in ten, as one expects of a tool
GOOD_REFEREE = 0.75  # share of edits that convince the referee: what the project asks of real scans
GOOD_REFEREE_ACCURACY = 0.75  # of the referee itself: one that errs on every fourth scan is no witness
GOOD_IDENTITY = 0.95  # share of edits nearest to their own scan: what the project asks of real scans
HALF = 0.5  # below it, most of what is shown fails
FEW_SCANS = 30  # below it, a share is uncertain by 0.1 and more (0.5 / sqrt(30) is one standard error)
CONTROL_MARGIN = 0.2  # by which a method must beat edits that explain nothing: about two errors of a mean over 30 scans
_ON_THE_MODEL = ("random edit", "random weights")  # controls that should not turn the model's own decision
_ON_THE_REFEREE = (*_ON_THE_MODEL, "attack")  # an attack always turns the model's, so the referee alone tells


@dataclass(frozen=True)
class EditFacts:
    """What is known of one edit; None = not known."""

    found: bool  # the model's decision about the edit, as it is shown, is the wanted one
    target_prob: float  # probability of the wanted answer after the edit
    changed_share: float  # of pixels, changed by more than grading.CHANGE_THRESHOLD
    identity: bool | None = None  # its own scan is the nearest of all originals
    survives: bool | None = None  # the model stays with its new decision on slightly different views of the edit


@dataclass(frozen=True)
class PageFacts:
    """What is known of a whole page: means by their names in grading.MEAN_OVER; None = not known."""

    num_scans: float
    validity: float | None = None
    referee_validity: float | None = None
    referee_accuracy: float | None = None
    identity: float | None = None
    changed_share: float | None = None
    controls: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # by name: the same means of each

    @staticmethod
    def of(
        metrics: Mapping[str, Any], num_scans: int, controls: Mapping[str, Mapping[str, float]] | None = None
    ) -> PageFacts:
        """Take from a page's metrics what is known; what is no finite number is not known."""
        return PageFacts(
            num_scans,
            validity=_known(metrics.get("validity")),
            referee_validity=_known(metrics.get("referee_validity")),
            referee_accuracy=_known(metrics.get("referee_accuracy")),
            identity=_known(metrics.get("identity")),
            changed_share=_known(metrics.get("changed_share")),
            controls=dict(controls or {}),
        )


@dataclass(frozen=True)
class Trust:
    """A grade with its reason, in whole sentences."""

    level: Level
    reason: str

    def within(self, page: Trust) -> Trust:
        """Return the same grade, lowered to that of its page.

        >>> Trust("trust", "Fine.").within(Trust("caution", "No referee."))
        Trust(level='caution', reason='Fine. The page as a whole allows no more than caution.')
        """
        if LEVELS.index(self.level) >= LEVELS.index(page.level):
            return self
        allowed = "allows no more than caution" if page.level == "caution" else "is not to be relied on"
        return Trust(page.level, f"{self.reason} The page as a whole {allowed}.")


def grade_of(facts: EditFacts | PageFacts) -> Trust:
    """Grade one edit or a whole page. The worst finding decides; its reasons come first, milder ones after them.

    >>> grade_of(EditFacts(found=True, target_prob=0.97, changed_share=0.04, identity=True)).level
    'trust'
    >>> grade_of(PageFacts(num_scans=64, validity=1.0, identity=1.0, changed_share=0.1)).level
    'caution'
    """
    findings = _of_edit(facts) if isinstance(facts, EditFacts) else _of_page(facts)
    if not findings:
        return Trust("trust", _praise_of_edit(facts) if isinstance(facts, EditFacts) else _praise_of_page(facts))
    findings.sort(key=lambda finding: -LEVELS.index(finding[0]))
    return Trust(findings[0][0], " ".join(reason for _, reason in findings))


def _of_edit(edit: EditFacts) -> list[tuple[Level, str]]:
    if not edit.found:
        return [("none", "No edit turned the decision; the picture shows the last attempt.")]
    found: list[tuple[Level, str]] = []
    share = f"{100 * edit.changed_share:.0f}% of the picture"
    if edit.identity is False:
        found.append(("none", "The edit is nearer to another scan than to its own: it no longer shows this patient."))
    if edit.survives is False:
        found.append(("none", "On slightly different views the model takes its new decision back, as after an attack."))
    if edit.changed_share == 0:
        found.append(("none", "No change can be seen, and yet the decision turned, as it does under an attack."))
    elif edit.changed_share > TOO_MUCH_CHANGED:
        found.append(("none", f"{share} changed: this is another picture, not an edit of this one."))
    elif edit.changed_share > MOST_CHANGED:
        found.append(("caution", f"{share} changed: it is hard to say which part mattered."))
    if not edit.target_prob >= SURE_PROB:
        found.append(("caution", f"The model is not sure of its new decision (probability {edit.target_prob:.2f})."))
    return found


def _praise_of_edit(edit: EditFacts) -> str:
    more = ", stays nearest to its own scan" if edit.identity else ""
    more += ", holds on slightly different views" if edit.survives else ""
    # Rounded up, so that a small change is never called 0%.
    changed = max(1, round(100 * edit.changed_share))
    return f"Convinces the model (probability {edit.target_prob:.2f}) with {changed}% of the picture changed{more}."


def _of_page(page: PageFacts) -> list[tuple[Level, str]]:
    if page.num_scans < 1 or page.validity is None:
        return [("none", "Nothing was graded.")]
    found: list[tuple[Level, str]] = []
    if page.validity < HALF:
        found.append(("none", f"The decision turned for {_percent(page.validity)} of the scans only."))
    elif page.validity < GOOD_VALIDITY:
        found.append(("caution", f"The decision turned for {_percent(page.validity)} of the scans."))
    found += _of_referee(page)
    if page.identity is None:
        found.append(("caution", "Whether the edits still show their own patients was not checked."))
    elif page.identity < GOOD_IDENTITY:
        level: Level = "none" if page.identity < HALF else "caution"
        found.append((level, f"{_percent(1 - page.identity)} of the edits are nearer to another scan than to theirs."))
    if page.changed_share is not None and page.changed_share > MOST_CHANGED:
        level = "none" if page.changed_share > TOO_MUCH_CHANGED else "caution"
        found.append((level, f"{_percent(page.changed_share)} of the pixels change on average."))
    found += _of_controls(page)
    if page.num_scans < FEW_SCANS:
        count = "a single scan" if page.num_scans == 1 else f"{page.num_scans:.0f} scans"
        found.append(("caution", f"Means over {count} say little; {FEW_SCANS} are a beginning."))
    return found


def _of_referee(page: PageFacts) -> list[tuple[Level, str]]:
    if page.referee_validity is None:
        return [("caution", "No independent referee has judged these edits: that they turn this one model's decision "
                            "does not tell an explanation from an attack.")]  # fmt: skip
    if page.referee_accuracy is not None and page.referee_accuracy < GOOD_REFEREE_ACCURACY:
        return [("caution", f"The referee is right about {_percent(page.referee_accuracy)} of the scans only, so that "
                            "its word counts for little.")]  # fmt: skip
    if page.referee_validity < GOOD_REFEREE:
        level: Level = "none" if page.referee_validity < HALF else "caution"
        return [(level, f"An independent referee agrees with {_percent(page.referee_validity)} of the edits only.")]
    return []


def _of_controls(page: PageFacts) -> list[tuple[Level, str]]:
    found: list[tuple[Level, str]] = []
    grades = (("validity", "turn the decision", page.validity, _ON_THE_MODEL),
              ("referee_validity", "convince the referee", page.referee_validity, _ON_THE_REFEREE))  # fmt: skip
    for name, does, own, controls in grades:
        for control in controls:
            value = _known(page.controls.get(control, {}).get(name))
            if own is not None and value is not None and value > own - CONTROL_MARGIN:
                found.append(("none", f"Edits that explain nothing (control: {control}) {does} almost as often, "
                                      f"{_percent(value)} against {_percent(own)}."))  # fmt: skip
    return found


def _praise_of_page(page: PageFacts) -> str:
    assert page.validity is not None and page.referee_validity is not None and page.identity is not None
    text = (
        f"The decision turned for {_percent(page.validity)} of the scans, an independent referee agrees with "
        f"{_percent(page.referee_validity)} of the edits, and {_percent(page.identity)} stay nearest to their own scan."
    )
    beaten = any(page.controls.get(control) for control in _ON_THE_REFEREE)
    return text + (" Edits that explain nothing fare clearly worse." if beaten else "")


def _percent(share: float) -> str:
    """Return a share as per cent, never rounded up to all or down to none.

    >>> _percent(0.996), _percent(1.0), _percent(0.002), _percent(0.5)
    ('more than 99%', '100%', 'less than 1%', '50%')
    """
    if 0.99 < share < 1:
        return "more than 99%"
    if 0 < share < 0.01:
        return "less than 1%"
    return f"{100 * share:.0f}%"


def _known(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if number - number == 0 else None
