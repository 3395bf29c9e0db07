from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jointdiff.views.gallery import NUM_FEATURED, GalleryItem, ranking, write_gallery

SIZE = 8


def item(score: float, *, found: bool = True, channels: int = 1, label: int | None = 0) -> GalleryItem:
    scan = np.full((SIZE, SIZE, channels), 90, np.uint8)
    return GalleryItem(scan, scan + np.uint8(20), np.array([0.9, 0.1]), np.array([0.2, 0.8]), label, 1, found, score)


def write(folder: Path, items: list[GalleryItem], **options: object) -> str:
    arguments = {"metrics": {"validity": 0.75}, "class_names": ["a", "b"], "title": "T", "real": False} | options
    return write_gallery(folder, items=items, **arguments).read_text(encoding="utf-8")  # type: ignore[arg-type]


def test_best_and_worst_come_first_and_every_scan_once(tmp_path: Path) -> None:
    items = [item(index / 20) for index in range(20)]
    page = write(tmp_path, items)
    shown = [int(number) for number in re.findall(r'id="scan-(\d+)"', page)]
    assert sorted(shown) == list(range(20))
    assert shown[:NUM_FEATURED] == [19, 18, 17, 16, 15, 14]
    assert shown[NUM_FEATURED : 2 * NUM_FEATURED] == [0, 1, 2, 3, 4, 5]


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
    assert not re.search(r"https?:|//|<script", page)


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
    assert "c8 (target)" in page and page.count("→") == 4
