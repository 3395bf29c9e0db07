"""The gallery as a person uses it, opened from its folder in a headless browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jointdiff.data.phantom import load_phantom
from jointdiff.views.gallery import GalleryItem, write_gallery
from jointdiff.views.gallery_page import PAGE_SIZE

pytestmark = pytest.mark.browser
COUNT = PAGE_SIZE + 12
METRICS = {"validity": 0.95, "referee_validity": 0.9, "identity": 0.98, "changed_share": 0.04}


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scans = load_phantom(sizes={"train": 1, "val": 1, "test": COUNT}).test
    assert scans.twins is not None
    items = []
    for index in range(COUNT):
        ill, wrong = bool(scans.labels[index]), index % 10 == 9
        decided = int(ill != wrong)
        before = np.array([0.1, 0.9] if decided else [0.9, 0.1])
        edited = scans.twins[index] if ill else np.maximum(scans.images[index], scans.images[index][:, ::-1])
        items.append(GalleryItem(scans.images[index], edited, before, before[::-1], int(ill), 1 - decided, True,
                                 1 - index / 100, name="<b>Case 0</b>" if index == 0 else None))  # fmt: skip
    folder = tmp_path_factory.mktemp("gallery")
    return write_gallery(
        folder, items=items, metrics=METRICS, class_names=["healthy", "lesion"], title="Gallery", real=False
    )


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make setup")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    with api.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A narrow page; what goes wrong in it fails the test."""
    opened = chromium.new_page(viewport={"width": 380, "height": 800}, reduced_motion="reduce")
    wrong: list[str] = []
    opened.on("console", lambda message: wrong.append(message.text))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("dialog", lambda dialog: wrong.append(f"dialog {dialog.message}") or dialog.dismiss())
    yield opened
    opened.close()
    assert not wrong


def test_slider_zoom_and_filters_by_keyboard_on_a_narrow_screen(page: Any, gallery: Path) -> None:
    page.goto(gallery.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("#scan-0 .name").inner_text() == "<b>Case 0</b>"
    assert page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).length") == 0

    slider = page.locator("#scan-0 .compare input")
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "60% scan, 40% edited"
    box, line = page.locator("#scan-0 .compare").bounding_box(), page.locator("#scan-0 .line").bounding_box()
    assert line["x"] + line["width"] / 2 - box["x"] == pytest.approx(0.6 * box["width"], abs=1)
    assert "40%" in page.locator("#scan-0 .over").evaluate("i => getComputedStyle(i).clipPath")
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 20)
    page.mouse.up()
    assert 12 <= int(slider.input_value()) <= 28  # the thumb has a width of its own

    page.locator("#scan-0 .zoom").focus()
    page.keyboard.press("Enter")
    zoom = page.locator("#zoom")
    assert zoom.is_visible() and page.locator("#zoom-position").inner_text() == f"1 of {COUNT}"
    assert zoom.locator(".compare").bounding_box()["width"] > 1.8 * box["width"]
    page.keyboard.press("ArrowRight")
    assert zoom.locator("h3 a").inner_text() == "Scan 1"
    zoom.locator(".compare input").focus()
    page.keyboard.press("ArrowLeft")  # moves the slider, not the window
    assert zoom.locator("h3 a").inner_text() == "Scan 1" and zoom.locator("input").input_value() == "48"
    page.keyboard.press("Escape")
    assert not zoom.is_visible() and page.evaluate("document.activeElement.closest('.card').id") == "scan-1"

    page.locator(".tools summary").focus()
    page.keyboard.press("Enter")
    count, by_label = page.locator("#count"), page.get_by_label("True class")
    before = count.inner_text()
    by_label.focus()
    page.keyboard.press("l")  # lesion
    ill = int(count.inner_text().split()[0])
    assert before == f"{COUNT} scans" and 0 < ill < COUNT and count.inner_text() == f"{ill} of {COUNT} scans"
    assert page.locator("#cards .card").count() == min(ill, PAGE_SIZE)
    truths = page.locator("#cards .decision span:nth-child(2)").all_inner_texts()
    assert set(truths) == {"true class: lesion"}
    page.get_by_label("Decision").select_option("1")
    errors = int(count.inner_text().split()[0])
    assert 0 < errors < ill and page.locator("#cards .wrong").count() == errors
    page.get_by_role("button", name="Reset").click()
    assert count.inner_text() == before


def test_sorting_and_paging_over_all_scans(page: Any, gallery: Path) -> None:
    page.set_viewport_size({"width": 1200, "height": 800})
    page.goto(gallery.as_uri())

    def first() -> str:
        return str(page.locator("#cards .card").first.get_attribute("id"))

    assert page.locator("#cards .card").count() == PAGE_SIZE and first() == "scan-0"
    page.get_by_label("Sort").select_option("worst")
    assert first() == f"scan-{COUNT - 1}"
    page.get_by_label("Sort").select_option("large")
    shares = [float(text.split("%")[0]) for text in page.locator("#cards .note").all_inner_texts()]
    assert shares == sorted(shares, reverse=True) and shares[0] > shares[-1]
    page.get_by_label("Sort").select_option("position")
    page.get_by_role("button", name="Next →").click()
    assert first() == f"scan-{PAGE_SIZE}" and page.locator("#cards .compared").count() == 12
    assert page.locator("#range").inner_text() == f"{PAGE_SIZE + 1}–{COUNT} of {COUNT}"
    page.goto(f"{gallery.as_uri()}#scan-3")
    assert page.locator("#scan-3.found").is_visible()


def test_filters_that_no_scan_fits_say_so(page: Any, gallery: Path) -> None:
    page.goto(gallery.as_uri())
    page.locator(".tools summary").click()
    page.get_by_label("True class").select_option("0")
    page.get_by_label("Decided").select_option("1")
    page.get_by_label("Decision").select_option("0")  # healthy, called ill, and right: none
    assert page.locator("#count").inner_text() == f"0 of {COUNT} scans" and page.locator("#nothing").is_visible()


def test_without_script_it_is_a_plain_list(chromium: Any, gallery: Path) -> None:
    page = chromium.new_page(viewport={"width": 380, "height": 800}, java_script_enabled=False)
    page.goto(gallery.as_uri())
    assert page.locator(".card").count() == PAGE_SIZE and not page.locator(".tools").is_visible()
    assert page.locator("#scan-0 img").count() == 4 and not page.locator("dialog").is_visible()
    page.get_by_role("link", name="Next").click()
    assert page.locator(".card").count() == 12 and page.locator("#scan-50 .grade").is_visible()
    page.close()
