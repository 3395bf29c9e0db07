from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jointdiff.views.gallery import GalleryItem, Kept, Resume, write_gallery
from jointdiff.views.gallery_store import painted
from jointdiff.views.images import write_png


def item(number: int, *, key: str | None = None, shift: int = 9) -> GalleryItem:
    scan = np.random.default_rng(number).integers(0, 200, (8, 8, 1)).astype(np.uint8)
    return GalleryItem(
        scan, scan + np.uint8(shift), np.array([0.9, 0.1]), np.array([0.1, 0.9]), 0, 1, True, 0.5, key=key
    )


def write(folder: Path, items: object, **options: object) -> Path:
    return write_gallery(
        folder, items=items, metrics={"validity": 1.0}, class_names=["a", "b"], title="T", real=False, **options
    )  # type: ignore[arg-type]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that are written."""
    names: list[str] = []

    def note(path: Path, image: np.ndarray) -> Path:
        names.append(path.name)
        return write_png(path, image)

    monkeypatch.setattr("jointdiff.views.gallery_store.write_png", note)
    return names


def test_pictures_are_not_held(tmp_path: Path) -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def stream() -> Iterator[GalleryItem]:
        for number in range(12):
            made = item(number)
            alive.append(weakref.ref(made.scan))
            yield made
            del made
            assert sum(scan() is not None for scan in alive) <= 1

    steps: list[int] = []
    write(tmp_path, stream(), progress=steps.append)
    assert steps == list(range(1, 13)) and len(list(tmp_path.glob("*.png"))) == 36


def test_metrics_may_be_filled_on_the_way(tmp_path: Path) -> None:
    metrics: dict[str, float] = {}

    def stream() -> Iterator[GalleryItem]:
        yield item(0)
        metrics["validity"] = 0.5

    write_gallery(tmp_path, items=stream(), metrics=metrics, class_names=["a", "b"], title="T", real=False)
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"] == {"validity": 0.5}


def test_a_gallery_that_was_cut_short_is_carried_on(tmp_path: Path, written: list[str]) -> None:
    def cut(count: int) -> Iterator[GalleryItem]:
        yield from map(item, range(count))
        raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        write(tmp_path, cut(2))
    assert not (tmp_path / "index.html").exists() and len(written) == 6
    with open(tmp_path / "items.jsonl", "a") as file:
        file.write('{"version": 1, "index": 2, "lab')  # a process that died within a line
    written.clear()
    with pytest.raises(RuntimeError, match="power"):
        write(tmp_path, cut(3))
    assert {name[:4] for name in written} == {"0002"}
    (tmp_path / "0001-difference.png").unlink()  # a process that died within an item
    written.clear()
    write(tmp_path, map(item, range(4)))
    assert {name[:4] for name in written} == {"0001", "0003"}  # what followed the broken line was kept
    written.clear()
    page = write(tmp_path, map(item, range(4)))
    assert written == [] and page.is_file()
    assert len((tmp_path / "items.jsonl").read_text().splitlines()) == 4


def test_a_changed_edit_is_written_again_and_the_page_is_gone_meanwhile(tmp_path: Path, written: list[str]) -> None:
    write(tmp_path, map(item, range(3)))
    written.clear()
    seen: list[bool] = []

    def stream() -> Iterator[GalleryItem]:
        yield item(0)
        yield item(1, shift=20)
        seen.append((tmp_path / "index.html").exists())
        yield item(2)

    write(tmp_path, stream())
    assert {name[:4] for name in written} == {"0001"} and seen == [False]


def test_a_kept_item_need_not_be_explained_again(tmp_path: Path, written: list[str]) -> None:
    first = write(tmp_path, [item(k, key=f"scan {k}") for k in range(3)]).read_text()
    (tmp_path / "0002-difference.png").unlink()
    written.clear()
    explained: list[int] = []

    def explain(number: int) -> GalleryItem:
        explained.append(number)
        return item(number, key=f"scan {number}")

    resume = Resume(tmp_path)
    assert resume.get(0, "scan 1") is None and resume.get(7, "scan 7") is None
    again = write(tmp_path, (resume.get(k, f"scan {k}") or explain(k) for k in range(3))).read_text()
    assert explained == [2] and {name[:4] for name in written} == {"0002"} and again == first


def test_a_kept_item_at_another_position_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [item(k, key=f"scan {k}") for k in range(2)])
    kept = Resume(tmp_path).get(1, "scan 1")
    assert isinstance(kept, Kept)
    with pytest.raises(ValueError, match="position 1 came at position 0"):
        write(tmp_path, [kept])


def test_the_old_pictures_count_for_nothing_once_new_ones_are_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, [item(0, key="old")])

    def die(path: Path, image: np.ndarray) -> Path:
        if "counterfactual" in path.name:
            raise OSError("disk full")
        return write_png(path, image)

    monkeypatch.setattr("jointdiff.views.gallery_store.write_png", die)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, [item(1, key="new")])
    assert Resume(tmp_path).get(0, "old") is None and Resume(tmp_path).get(0, "new") is None


def test_an_edit_of_latents_is_compared_with_the_decoded_scan(tmp_path: Path, written: list[str]) -> None:
    made = item(0, shift=40)
    decoded = made.counterfactual.copy()
    decoded[:4] -= np.uint8(30)  # of which the edit has changed the upper half alone, by 30 grey levels
    page = write(tmp_path, [replace(made, decoded=decoded)])
    assert written == ["0000-scan.png", "0000-counterfactual.png", "0000-decoded.png", "0000-difference.png"]
    (entry,) = json.loads((tmp_path / "metrics.json").read_text())["items"]
    assert entry["decoded"] == "0000-decoded.png" and entry["changed_share"] == 0.5
    assert "0000-decoded.png" in page.read_text()
    wanted = painted(decoded, made.counterfactual)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "0000-difference.png")), wanted)

    write(tmp_path, [replace(made, decoded=decoded)])  # carried on: nothing is written again
    assert len(written) == 4
    with pytest.raises(ValueError, match="decoded scan of item 0"):
        write(tmp_path / "wrong", [replace(made, decoded=decoded[:4])])


def test_an_item_without_a_decoded_scan_is_what_it_was(tmp_path: Path) -> None:
    page = write(tmp_path, [item(0)])
    assert "0000-decoded.png" not in page.read_text()
    assert "decoded" not in json.loads((tmp_path / "metrics.json").read_text())["items"][0]
