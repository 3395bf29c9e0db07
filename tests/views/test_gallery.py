from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jointdiff.views.gallery import GalleryItem, ranking, write_gallery
from jointdiff.views.gallery_assets import script_hash
from jointdiff.views.gallery_page import PAGE_SIZE, WHAT_IT_IS_NOT
from jointdiff.views.gallery_store import FULL_SCALE
from jointdiff.views.images import difference_map

SIZE = 8
GOOD = {"validity": 0.95, "referee_validity": 0.9, "identity": 1.0, "changed_share": 0.02}


def item(score: float, *, found: bool = True, channels: int = 1, label: int | None = 0, **more: object) -> GalleryItem:
    scan = np.full((SIZE, SIZE, channels), 90, np.uint8)
    edited = scan.copy()
    edited[2:4, 2:4] += 50
    return GalleryItem(scan, edited, np.array([0.9, 0.1]), np.array([0.2, 0.8]), label, 1, found, score, **more)  # type: ignore[arg-type]


def write(folder: Path, items: list[GalleryItem], **options: object) -> str:
    arguments = {"metrics": {"validity": 0.75}, "class_names": ["a", "b"], "title": "T", "real": False} | options
    return write_gallery(folder, items=items, **arguments).read_text(encoding="utf-8")  # type: ignore[arg-type]


def numbers(page: str) -> list[int]:
    """Return the cards of a page in order; those that wait for the script as well."""
    return [int(number) for number in re.findall(r'id="scan-(\d+)"', page)]


def test_the_best_come_first_and_every_scan_once(tmp_path: Path) -> None:
    assert numbers(write(tmp_path, [item(index / 20) for index in range(20)])) == list(range(20))[::-1]


def test_a_miss_is_worse_than_any_hit_and_nan_is_the_worst() -> None:
    assert ranking([item(0.9, found=False), item(0.1), item(float("nan")), item(0.5)]) == [3, 1, 2, 0]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_scans(tmp_path: Path, count: int) -> None:
    page = write(tmp_path, [item(0.1 * index) for index in range(count)])
    assert len(numbers(page)) == count
    assert ("No scan was explained" in page) == (count == 0) and (WHAT_IT_IS_NOT in page) == (count > 0)


def test_every_picture_that_is_shown_is_there_and_sits_beside_the_page(tmp_path: Path) -> None:
    page = write(tmp_path, [item(0.5, channels=3), item(0.4)])
    sources = re.findall(r'src="([^"]+)"', page)
    assert len(set(sources)) == 6 and sources.count("0000-scan.png") == 2, "it lies under its map too"
    for source in sources:
        with Image.open(tmp_path / source) as picture:
            assert picture.size == (SIZE, SIZE)


def test_a_page_fetches_nothing_and_runs_its_own_script_alone(tmp_path: Path) -> None:
    page = write(tmp_path, [item(0.5)])
    assert not re.search(r"https?:|@import|url\(|<link|<iframe", page)
    scripts = re.findall(r"<script([^>]*)>", page)
    assert [kind for kind in scripts if "type=" not in kind] == [""]  # the others are data: no browser runs them
    assert f"script-src &#x27;{script_hash()}&#x27;;" in page and "default-src &#x27;none&#x27;" in page


def test_metrics_keep_the_numbers_and_carry_the_grades(tmp_path: Path) -> None:
    write(tmp_path, [item(0.25, label=None)], metrics={"validity": np.float32(0.75), "bad": float("nan")})
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert told["metrics"] == {"validity": 0.75, "bad": None} and told["real"] is False
    assert {"schema_version", "title", "class_names"} <= set(told) and told["trust"]["level"] == "caution"
    (record,) = told["items"]
    assert record["probs_after"] == [0.2, 0.8] and record["label"] is None and record["found"] is True
    assert record["changed_share"] == 4 / SIZE**2 and record["confidence_gain"] == pytest.approx(0.7)
    assert record["decided"] == [0] and record["error"] is None and record["trust"]["level"] == "caution"
    assert told["num_by_trust"] == {"trust": 0, "caution": 1, "none": 0} and "name" not in record


def test_cards_are_graded_and_none_above_its_page(tmp_path: Path) -> None:
    items = [item(0.9), item(0.8, identity=False), item(0.7, survives=False), item(0.6, found=False)] + [item(0.5)] * 30

    def levels(metrics: dict[str, float], **options: object) -> list[str]:
        write(tmp_path, items, metrics=metrics, **options)
        told = json.loads((tmp_path / "metrics.json").read_text())
        return [told["trust"]["level"], *(entry["trust"]["level"] for entry in told["items"][:4])]

    assert levels(GOOD) == ["trust", "trust", "none", "none", "none"]
    alone = {key: value for key, value in GOOD.items() if key != "referee_validity"}
    assert levels(alone) == ["caution", "caution", "none", "none", "none"]
    assert levels(GOOD, controls={"random edit": {"referee_validity": 0.9}}) == ["none"] * 5
    page = write(tmp_path, items, metrics=alone)
    assert "No independent referee has judged these edits" in page and "nearer to another scan" in page


def test_a_search_that_claims_more_than_the_picture_shows_is_not_believed(tmp_path: Path) -> None:
    claimed = item(0.5)
    claimed = GalleryItem(claimed.scan, claimed.counterfactual, np.array([0.9, 0.1]), np.array([0.6, 0.4]), 0, 1,
                          True, 0.5)  # fmt: skip
    page = write(tmp_path, [claimed], metrics=GOOD)
    (entry,) = json.loads((tmp_path / "metrics.json").read_text())["items"]
    assert entry["trust"]["level"] == "none" and "stays <b>a</b>, wanted: b" in page


def test_the_scale_has_the_colours_of_the_map(tmp_path: Path) -> None:
    page = write(tmp_path, [item(0.5)])
    before, after = np.full((1, 2, 1), 100, np.uint8), np.array([[[100 - 80], [100 + 80]]], np.uint8)
    assert FULL_SCALE == 80
    less, more = ("#" + bytes(colour).hex() for colour in difference_map(before, after)[0])
    assert f"--less: {less};" in page and f"--more: {more};" in page
    assert "−80" in page and "+80" in page and "±31% of the range" in page


def test_a_name_is_shown_and_kept_only_if_it_is_given(tmp_path: Path) -> None:
    hostile = 'mum"s <img src=x onerror="alert(1)">\n</script><script>alert(2)</script>'
    items = [item(1 - index / 100) for index in range(PAGE_SIZE)] + [item(0.1, name=hostile)]
    page = write(tmp_path, items)
    assert "<img src=x" not in page and "alert(2)</script>" not in page and "&lt;img src=x" in page
    assert len(numbers(page)) == PAGE_SIZE + 1 and page.count('class="name"') == 1
    waiting = re.findall(r'id="more">(.*?)</script>', page, re.DOTALL)
    assert len(waiting) == 1 and len(waiting[0].split("\n")) == 1  # a card a line, whatever a name holds
    write(tmp_path / "other", [item(0.1, key="patient-7.png")])
    told = b"".join(path.read_bytes() for path in (tmp_path / "other").iterdir())
    assert b"patient-7" not in told and b'"name": null' in told


def test_hostile_texts_are_escaped(tmp_path: Path) -> None:
    hostile = '<img src=x onerror="alert(1)"><!-- <script>'
    page = write(tmp_path, [item(0.5)], title=hostile, class_names=[hostile, hostile])
    assert "<img src=x" not in page and "<!--" not in page and "&lt;img src=x" in page


def test_both_probabilities_are_printed(tmp_path: Path) -> None:
    page = write(tmp_path, [item(0.5)])
    assert "0.90 → 0.20" in page and "0.10 → 0.80" in page and "b (target)" in page


def test_the_target_is_shown_among_many_classes(tmp_path: Path) -> None:
    probs = np.full(9, 0.1)
    probs[8] = 0.0
    many = GalleryItem(item(0).scan, item(0).scan, probs, probs, 0, 8, False, 0.1)
    page = write(tmp_path, [many], class_names=[f"c{k}" for k in range(9)])
    cards = page[page.index('id="cards"') : page.index('id="nothing"')]
    assert "c8 (target)" in cards and cards.count("→") == 4


def test_findings_are_turned_over_one_by_one(tmp_path: Path) -> None:
    base = item(0.5, label=None)
    gone = GalleryItem(base.scan, base.counterfactual, np.array([0.7, 0.9, 0.2]), np.array([0.7, 0.1, 0.2]), None, 1,
                       True, 0.8)  # fmt: skip
    page = write(tmp_path, [gone, gone], class_names=["x", "y", "z"], task="multi-label", metrics=GOOD)
    entry = json.loads((tmp_path / "metrics.json").read_text())["items"][0]
    assert entry["decided"] == [0, 1] and entry["confidence_gain"] == pytest.approx(0.8) and entry["error"] is None
    assert entry["trust"]["reason"].startswith("Convinces the model (probability 0.90)")
    assert "<b>y</b>: found → not found" in page


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"counterfactual": np.zeros((SIZE, SIZE + 1, 1), np.uint8)}, "one shape"),
        ({"scan": np.zeros((SIZE, SIZE, 1))}, "uint8"),
        ({"probs_after": np.array([0.2, 0.3, 0.5])}, r"\[K\]"),
        ({"probs_after": np.array([np.nan, 0.3])}, "not finite"),
        ({"target": 2}, "0..1"),
        ({"label": 5}, "0..1"),
    ],
)
def test_an_item_that_does_not_fit_itself_is_named_by_its_position(tmp_path: Path, change: dict, word: str) -> None:
    bad = GalleryItem(**{**vars(item(0.5)), **change})
    with pytest.raises(ValueError, match=word) as caught:
        write(tmp_path, [item(0.5), bad])
    assert "item 1" in str(caught.value) and not (tmp_path / "index.html").exists()


def test_a_picture_of_thousands_stands_on_plain_pages_too(tmp_path: Path) -> None:
    count = 2 * PAGE_SIZE + 5
    items = [item(1 - index / 1000) for index in range(count)]
    page = write(tmp_path, items)
    assert numbers(page) == list(range(count))  # the first page holds them all ...
    standing = page[page.index('id="cards"') : page.index('id="nothing"')]
    assert numbers(standing) == list(range(PAGE_SIZE))  # ... and these without script
    second, third = ((tmp_path / f"page-000{k}.html").read_text() for k in (2, 3))
    assert numbers(second) == list(range(PAGE_SIZE, 2 * PAGE_SIZE)) and len(numbers(third)) == 5
    assert 'href="page-0002.html"' in page and 'href="index.html"' in second and WHAT_IT_IS_NOT in second
    write(tmp_path, items[:3])
    left = {path.name for path in tmp_path.iterdir()}
    assert len([name for name in left if name.endswith(".png")]) == 9 and not [n for n in left if "page-" in n]
