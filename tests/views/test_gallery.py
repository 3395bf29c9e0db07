from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jointdiff.views.gallery import GalleryItem, Resume, ranking, write_gallery
from jointdiff.views.gallery_page import PAGE_SIZE

SIZE = 8


def item(score: float, *, found: bool = True, channels: int = 1, label: int | None = 0) -> GalleryItem:
    scan = np.full((SIZE, SIZE, channels), 90, np.uint8)
    return GalleryItem(scan, scan + np.uint8(20), np.array([0.9, 0.1]), np.array([0.2, 0.8]), label, 1, found, score)


def write(folder: Path, items: list[GalleryItem], **options: object) -> str:
    arguments = {"metrics": {"validity": 0.75}, "class_names": ["a", "b"], "title": "T", "real": False} | options
    return write_gallery(folder, items=items, **arguments).read_text(encoding="utf-8")  # type: ignore[arg-type]


def test_the_best_come_first_and_every_scan_once(tmp_path: Path) -> None:
    page = write(tmp_path, [item(index / 20) for index in range(20)])
    shown = [int(number) for number in re.findall(r'id="scan-(\d+)"', page)]
    assert shown == list(range(19, -1, -1))


def test_a_page_of_many_has_plain_pages_for_readers_without_script(tmp_path: Path) -> None:
    count = PAGE_SIZE + 3
    write(tmp_path, [item(index / count) for index in range(count)])
    first, second = ((tmp_path / name).read_text(encoding="utf-8") for name in ("index.html", "page-0002.html"))
    plain = re.findall(r'<li[^>]* id="scan-(\d+)"', second)
    assert len(re.findall(r'<li[^>]* id="scan-(\d+)"', first.split("<template", 1)[0])) >= PAGE_SIZE
    assert sorted(map(int, plain)) == [0, 1, 2]
    write(tmp_path, [item(0.5)])
    assert not (tmp_path / "page-0002.html").exists()


def test_pictures_that_are_there_are_not_made_again(tmp_path: Path) -> None:
    items = [dataclasses.replace(item(index / 4), key=f"scan {index}") for index in range(4)]
    write(tmp_path, items)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    (tmp_path / "0002-difference.png").unlink()
    (tmp_path / "index.html").unlink()
    resume = Resume(tmp_path)
    kept = [resume.get(index, f"scan {index}") for index in range(4)]
    assert [entry is not None for entry in kept] == [True, True, False, True], "one lost a picture"
    assert resume.get(0, "another scan") is None
    write(tmp_path, [entry or items[index] for index, entry in enumerate(kept)])
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    assert after.keys() == before.keys() and after["0001-scan.png"] == before["0001-scan.png"]


def test_what_cannot_be_seen_earns_no_trust_and_the_page_says_why(tmp_path: Path) -> None:
    unseen = dataclasses.replace(item(0.9), counterfactual=item(0.9).scan)
    page = write(tmp_path, [unseen], metrics={"validity": 1.0})
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert told["items"][0]["trust"]["level"] == "none" and "No change can be seen" in page
    assert told["trust"]["level"] == "caution" and "No independent referee" in page
    assert "not a diagnosis" in re.sub(r"\s+", " ", page)


@pytest.mark.browser
def test_the_gallery_works_by_keyboard_in_a_browser(tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    labels = [0, 0, 0, 1, 1]
    write(tmp_path, [item(index / 5, label=label) for index, label in enumerate(labels)])
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto((tmp_path / "index.html").as_uri())
        assert page.locator("#count").inner_text().startswith("5 ")
        slider = page.locator("li.card input[type=range]").first
        slider.focus()
        before = slider.input_value()
        page.keyboard.press("ArrowRight")
        assert float(slider.input_value()) > float(before)
        page.locator("#by-label").select_option("1")
        assert page.locator("#count").inner_text().startswith("2 ") and page.locator("li.card:visible").count() == 2
        page.locator("li.card button.zoom").first.focus()
        page.keyboard.press("Enter")
        dialog = page.locator("dialog")
        assert dialog.is_visible() and "1 of 2" in dialog.inner_text()
        page.keyboard.press("ArrowRight")
        assert "2 of 2" in dialog.inner_text()
        page.keyboard.press("Escape")
        assert not dialog.is_visible() and not problems
        browser.close()


def test_a_miss_is_worse_than_any_hit_and_nan_is_the_worst() -> None:
    assert ranking([item(0.9, found=False), item(0.1), item(float("nan")), item(0.5)]) == [3, 1, 2, 0]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_scans(tmp_path: Path, count: int) -> None:
    page = write(tmp_path, [item(0.1 * index) for index in range(count)])
    assert len(re.findall(r'id="scan-\d+"', page)) == count


def test_every_picture_that_is_shown_is_there_and_sits_beside_the_page(tmp_path: Path) -> None:
    page = write(tmp_path, [item(0.5, channels=3), item(0.4)])
    sources = re.findall(r'src="([^"]+)"', page)
    assert len(sources) == 6
    for source in sources:
        with Image.open(tmp_path / source) as picture:
            assert picture.size == (SIZE, SIZE)
    assert not re.search(r"https?:|src=\"//", page.replace("http-equiv", ""))


def test_metrics_keep_the_numbers(tmp_path: Path) -> None:
    write(tmp_path, [item(0.25, label=None)], metrics={"validity": np.float32(0.75), "bad": float("nan")})
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert told["metrics"] == {"validity": 0.75, "bad": None} and told["real"] is False
    (record,) = told["items"]
    assert record["probs_after"] == [0.2, 0.8] and record["label"] is None and record["found"] is True


def test_hostile_texts_are_escaped(tmp_path: Path) -> None:
    hostile = '<img src=x onerror="alert(1)">'
    page = write(tmp_path, [item(0.5)], title=hostile, class_names=[hostile, hostile])
    assert "<img src=x" not in page and "&lt;img src=x" in page


def test_both_probabilities_are_printed(tmp_path: Path) -> None:
    page = write(tmp_path, [item(0.5)])
    assert "0.90 → 0.20" in page and "0.10 → 0.80" in page and "b (target)" in page


def test_the_target_is_shown_among_many_classes(tmp_path: Path) -> None:
    probs = np.full(9, 0.1)
    probs[8] = 0.0
    many = GalleryItem(item(0).scan, item(0).scan, probs, probs, 0, 8, False, 0.1)
    page = write(tmp_path, [many], class_names=[f"c{k}" for k in range(9)])
    assert "c8 (target)" in page and len(re.findall(r"\d → \d", page)) == 4
