"""How far an explanation can be relied on."""

from __future__ import annotations

import dataclasses

import pytest

from jointdiff.trust import EditFacts, PageFacts, Trust, grade_of

GOOD = EditFacts(found=True, target_prob=0.95, changed_share=0.05, identity=True, survives=True)
PAGE = PageFacts(
    num_scans=64, validity=1.0, referee_validity=0.9, referee_accuracy=1.0, identity=1.0, changed_share=0.1
)


@pytest.mark.parametrize(
    "change, level, said",
    [
        ({}, "trust", "Convinces the model"),
        ({"found": False}, "none", "No edit turned"),
        ({"identity": False}, "none", "no longer shows this patient"),
        ({"survives": False}, "none", "after an attack"),
        ({"changed_share": 0.0}, "none", "No change can be seen"),
        ({"changed_share": 0.6}, "none", "another picture"),
        ({"changed_share": 0.3}, "caution", "which part mattered"),
        ({"target_prob": 0.6}, "caution", "not sure"),
        ({"target_prob": float("nan")}, "caution", "not sure"),
    ],
)
def test_one_edit(change, level, said):
    found = grade_of(dataclasses.replace(GOOD, **change))
    assert found.level == level and said in found.reason


@pytest.mark.parametrize(
    "change, level, said",
    [
        ({}, "trust", ""),
        ({"validity": 0.4}, "none", "40%"),
        ({"validity": 0.8}, "caution", "80%"),
        ({"referee_validity": None}, "caution", "No independent referee"),
        ({"referee_validity": 0.3}, "none", "30%"),
        ({"referee_validity": 0.6}, "caution", "60%"),
        ({"referee_accuracy": 0.6}, "caution", "counts for little"),
        ({"identity": None}, "caution", "not checked"),
        ({"identity": 0.9}, "caution", "another scan"),
        ({"changed_share": 0.3}, "caution", "30%"),
        ({"num_scans": 5}, "caution", "5 scans"),
        ({"num_scans": 0}, "none", "Nothing was graded"),
    ],
)
def test_a_page(change, level, said):
    found = grade_of(dataclasses.replace(PAGE, **change))
    assert found.level == level and said in found.reason


def test_edits_that_explain_nothing_and_do_as_well_lower_the_page():
    control = {"random edit": {"validity": 0.95, "referee_validity": 0.9}}
    assert grade_of(dataclasses.replace(PAGE, controls=control)).level != "trust"
    harmless = {"random edit": {"validity": 0.0, "referee_validity": 0.0}}
    assert grade_of(dataclasses.replace(PAGE, controls=harmless)).level == "trust"


def test_no_edit_is_graded_above_its_page():
    assert grade_of(GOOD).within(Trust("none", "x")).level == "none"
    assert grade_of(dataclasses.replace(GOOD, found=False)).within(Trust("trust", "x")).level == "none"


def test_metrics_that_are_no_finite_numbers_are_not_known():
    assert PageFacts.of({"validity": float("nan"), "identity": 1.0}, 64).validity is None
