"""What a study's rows add up to, on rows whose sums are known; and the page and tables that are made of them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from jointdiff.study_summary import (
    CENTRALISED,
    FAILED,
    FEDERATED,
    FINISHED,
    LOCAL_ONLY,
    Design,
    StudyFacts,
    StudyRow,
    against_first_setting,
    cells,
)
from jointdiff.views.study_markdown import study_markdown
from jointdiff.views.study_page import study_page

DESIGN = Design(("joint", "sup"), ("iid", "skew"), (12,), "joint", "sup", "sup")
HOSTILE = "<script>alert(1)</script>|x"


def row(
    method: str, split: int, auc: float | None, *, seed: int = 0, setting: str = "iid", place: str = FEDERATED,
    hospital: int = 0, labels: int = 12,
) -> StudyRow:  # fmt: skip
    name = f"s-{setting}-{method}-{labels}-{split}-{seed}-{place}-{hospital}"
    status = FINISHED if auc is not None else "waiting"
    return StudyRow(
        "s", setting, method, place, hospital, labels, split, seed, name, 36, status, "", auc, auc, seconds=5.0
    )


ROWS = [
    row("joint", 0, 0.90), row("joint", 0, 0.92, seed=1), row("joint", 1, 0.80), row("joint", 1, 0.82, seed=1),
    row("sup", 0, 0.80), row("sup", 0, 0.82, seed=1), row("sup", 1, 0.74), row("sup", 1, 0.76, seed=1),
    row("sup", 0, 0.96, labels=0), row("sup", 0, 0.96, labels=0, seed=1), row("sup", 1, 0.97, labels=0),
    row("sup", 1, 0.97, labels=0, seed=1),
    row("joint", 0, 0.70, place=LOCAL_ONLY, hospital=1), row("joint", 0, 0.80, place=LOCAL_ONLY, hospital=2),
    row("joint", 1, 0.60, place=LOCAL_ONLY, hospital=1), row("joint", 1, None, place=LOCAL_ONLY, hospital=2),
    row("joint", 0, 0.93, place=CENTRALISED), row("joint", 1, 0.85, place=CENTRALISED),
    row("joint", 0, 0.85, setting="skew"), row("joint", 1, 0.77, setting="skew"),
]  # fmt: skip


def lines(rows: list[StudyRow] = ROWS) -> dict[tuple[str, str, str, str], object]:
    (cell, _) = cells(rows, DESIGN)
    assert (cell.setting, cell.num_labels) == ("iid", 12)
    return {(line.method, line.place, line.which, line.bound): line for line in cell.lines}


def test_seeds_are_averaged_within_a_split_before_they_count():
    line = lines()["joint", FEDERATED, "", ""]
    assert line.mean.value == pytest.approx(0.86) and line.mean.n == 2 and line.finished == 4
    assert line.sd == pytest.approx(0.1 / 2**0.5)
    only = [r for r in ROWS if r.split_seed == 0]
    assert lines(only)["joint", FEDERATED, "", ""].mean.n == 2, "with one split-seed, the seeds are the draws"


def test_differences_are_the_references_minus_the_row_in_pairs():
    found = lines()
    assert found["joint", FEDERATED, "", ""].difference is None
    assert found["sup", FEDERATED, "", "lower"].difference.value == pytest.approx((0.10 + 0.06) / 2)
    central = found["joint", CENTRALISED, "", ""]  # seed 0 alone has a partner
    assert central.difference.value == pytest.approx((0.90 - 0.93 + 0.80 - 0.85) / 2)


def test_local_only_takes_the_mean_and_the_best_hospital_of_complete_draws():
    found = lines()
    assert found["joint", LOCAL_ONLY, "mean", ""].mean.value == pytest.approx(0.75)
    assert found["joint", LOCAL_ONLY, "best", ""].mean.value == pytest.approx(0.80)
    assert found["joint", LOCAL_ONLY, "best", ""].mean.n == 1, "a hospital of the other draw is still waiting"
    failed = [replace(r, status=FAILED, reason="no label") if r.auc is None else r for r in ROWS]
    assert (
        lines(failed)["joint", LOCAL_ONLY, "mean", ""].mean.n == 2
        and lines(failed)["joint", LOCAL_ONLY, "mean", ""].failed == 1
    )


def test_the_gap_lies_between_the_bounds():
    gap = lines()["joint", FEDERATED, "", ""].gap
    assert gap.value == pytest.approx((0.86 - 0.78) / (0.965 - 0.78)) and gap.n == 2
    assert lines()["sup", FEDERATED, "", "lower"].gap is None is lines()["sup", FEDERATED, "", "upper"].gap


def test_settings_are_compared_with_the_first_one():
    (cell,) = against_first_setting(ROWS, DESIGN)
    assert cell.setting == "skew" and cell.lines[0].difference.value == pytest.approx((0.85 - 0.90 + 0.77 - 0.80) / 2)


def test_page_and_tables_name_what_failed_and_cannot_be_scripted():
    broken = replace(ROWS[0], status=FAILED, reason=HOSTILE, auc=None)
    facts = StudyFacts("s", HOSTILE, False, "val", "3", "total", "local", (HOSTILE,), {"name": HOSTILE})
    page, text = study_page([broken, *ROWS[1:]], DESIGN, facts), study_markdown([broken, *ROWS[1:]], DESIGN, facts)
    assert "<script>" not in page and page.count("&lt;script&gt;") >= 3 and "http" not in page.replace("http-equiv", "")
    assert broken.run in page and "1 failed and 1 are still to do" in page and "Phantoms" in page
    assert "<script>" not in text and "failed: \\<script\\>" in text and "validation split" in text
    assert "| 3 of 4, 1 failed |" in next(line for line in text.splitlines() if line.startswith("| joint |"))
    assert "Centralised: the same images" in page and "labelled only" in page


def test_a_study_without_results_has_a_page_too():
    facts = StudyFacts("s", "phantom", False, "test", "3", "total", "local", (), {})
    page = study_page([row("joint", 0, None)], DESIGN, facts)
    assert "0 of 1" in page and "not begun" in page


def test_settings_are_drawn_on_one_axis_that_ends_where_auc_does():
    facts = StudyFacts("s", "phantom", False, "test", "3", "total", "local", (), {})
    rows = [row("joint", n, auc, setting=s) for s, found in (("iid", (0.99, 0.90)), ("skew", (0.55, 0.52)))
            for n, auc in enumerate(found)]  # fmt: skip
    page = study_page(rows, DESIGN, facts)
    first, second = (part.split("</figure>")[0] for part in page.split("<figure")[1:3])
    axes = [re.findall(r'text-anchor="middle">([0-9.]+)<', figure) for figure in (first, second)]
    assert axes[0] == axes[1] and float(axes[0][-1]) == 1.0 and float(axes[0][0]) <= 0.52


def test_a_page_says_which_images_foreign_scanners_show():
    facts = StudyFacts("s", "phantom", False, "val", "3", "total", "local", (), {}, {"iid": 0, "skew": 4})
    page = study_page(ROWS, DESIGN, facts)
    assert "In skew these images are shown as each of 4 scanners would show them that no hospital has." in page
    assert "In iid" not in page
