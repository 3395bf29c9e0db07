from __future__ import annotations

from dataclasses import replace

import pytest

from jointdiff.trust import FEW_SCANS, LEVELS, EditFacts, PageFacts, Trust, grade_of

EDIT = EditFacts(found=True, target_prob=0.97, changed_share=0.04, identity=True, survives=True)
PAGE = PageFacts(num_scans=64, validity=0.98, referee_validity=0.9, referee_accuracy=0.97, identity=0.99,
                 changed_share=0.08)  # fmt: skip


def test_a_sound_edit_on_a_sound_page_is_trusted() -> None:
    assert grade_of(EDIT).level == "trust" and "0.97" in grade_of(EDIT).reason and "4%" in grade_of(EDIT).reason
    assert grade_of(PAGE).level == "trust" and "90%" in grade_of(PAGE).reason
    assert grade_of(EDIT).within(grade_of(PAGE)) == grade_of(EDIT)


@pytest.mark.parametrize(
    ("change", "level", "word"),
    [
        ({"found": False}, "none", "last attempt"),
        ({"identity": False}, "none", "another scan"),
        ({"survives": False}, "none", "attack"),
        ({"changed_share": 0.0}, "none", "seen"),
        ({"changed_share": 0.6}, "none", "60%"),
        ({"changed_share": 0.3}, "caution", "30%"),
        ({"target_prob": 0.6}, "caution", "0.60"),
        ({"target_prob": float("nan")}, "caution", "not sure"),
        ({"identity": None, "survives": None}, "trust", "0.97"),
        ({"changed_share": 0.25, "target_prob": 0.75}, "trust", "25%"),
    ],
)
def test_what_is_known_of_an_edit_decides(change: dict, level: str, word: str) -> None:
    trust = grade_of(replace(EDIT, **change))
    assert trust.level == level and word in trust.reason


@pytest.mark.parametrize(
    ("change", "level", "word"),
    [
        ({"referee_validity": None}, "caution", "No independent referee"),
        ({"referee_validity": 0.7}, "caution", "70%"),
        ({"referee_validity": 0.4}, "none", "40%"),
        ({"referee_accuracy": 0.6, "referee_validity": 0.1}, "caution", "word counts for little"),
        ({"referee_accuracy": None}, "trust", "referee"),
        ({"validity": 0.8}, "caution", "80%"),
        ({"validity": 0.3}, "none", "30%"),
        ({"validity": None}, "none", "Nothing"),
        ({"num_scans": 0}, "none", "Nothing"),
        ({"num_scans": FEW_SCANS - 1}, "caution", "29 scans"),
        ({"num_scans": 1}, "caution", "a single scan"),
        ({"identity": None}, "caution", "not checked"),
        ({"identity": 0.9}, "caution", "10%"),
        ({"identity": 0.2}, "none", "80%"),
        ({"changed_share": 0.3}, "caution", "30%"),
        ({"changed_share": 0.7}, "none", "70%"),
    ],
)
def test_what_is_known_of_a_page_decides(change: dict, level: str, word: str) -> None:
    trust = grade_of(replace(PAGE, **change))
    assert trust.level == level and word in trust.reason


def test_without_a_referee_nothing_makes_a_page_more_than_caution() -> None:
    perfect = PageFacts(num_scans=5000, validity=1.0, identity=1.0, changed_share=0.01,
                        controls={"random edit": {"validity": 0.0}})  # fmt: skip
    assert grade_of(perfect).level == "caution" and grade_of(perfect).reason.startswith("No independent referee")


@pytest.mark.parametrize(
    ("controls", "level"),
    [
        (
            {"attack": {"validity": 1.0, "referee_validity": 0.2}},
            "trust",
        ),  # an attack always turns the model's decision
        ({"attack": {"validity": 1.0, "referee_validity": 0.85}}, "none"),
        ({"random weights": {"validity": 0.9}}, "none"),
        ({"random edit": {"validity": 0.1, "referee_validity": 0.1}}, "trust"),
        ({"own class": {"validity": 1.0, "referee_validity": 1.0}}, "trust"),  # it should keep the decision
    ],
)
def test_edits_that_explain_nothing_must_fare_worse(controls: dict, level: str) -> None:
    trust = grade_of(replace(PAGE, controls=controls))
    assert trust.level == level
    assert (next(iter(controls)) in trust.reason) == (level == "none")


def test_the_worst_finding_decides_and_comes_first() -> None:
    trust = grade_of(replace(EDIT, target_prob=0.5, survives=False))
    assert trust.level == "none" and trust.reason.index("views") < trust.reason.index("not sure")


def test_no_edit_is_graded_above_its_page() -> None:
    for page in LEVELS:
        for own in LEVELS:
            lowered = Trust(own, "Own.").within(Trust(page, "Page."))
            assert LEVELS.index(lowered.level) == max(LEVELS.index(own), LEVELS.index(page))
            assert lowered.reason.startswith("Own.") and ("page as a whole" in lowered.reason) == (lowered.level != own)


def test_metrics_that_are_no_numbers_are_not_known() -> None:
    facts = PageFacts.of({"validity": 1, "identity": float("nan"), "referee_validity": None, "changed_share": "x"}, 40)
    assert facts == PageFacts(num_scans=40, validity=1.0)
