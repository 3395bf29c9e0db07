from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from jointdiff.errors import RunError
from jointdiff.events import EventLog
from jointdiff.storage import read_json
from jointdiff.views.format import number
from jointdiff.views.report import write_report

HOSTILE = '<img src=x onerror="alert(1)">&"\''
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Reads a page back: balanced tags, ids, links, and the cells of every table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self._stack: list[str] = []
        self.feed(text)
        assert not self._stack, f"not closed: {self._stack}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [given["href"] or ""] if "href" in given else []
        self.sources += [given["src"] or ""] if "src" in given else []
        assert not [name for name in given if name.startswith("on")], "an event handler"
        if tag not in VOID:
            self._stack.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "td" in self._stack or "th" in self._stack:
            self.tables[-1][-1][-1] += data

    def table(self, *first_cells: str) -> list[list[str]]:
        """Return the table whose header begins with these cells."""
        return next(t for t in self.tables if t[0][: len(first_cells)] == list(first_cells))


def read(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_a_finished_run_shows_its_numbers(fake_run: Callable[..., Path]) -> None:
    folder = fake_run()
    page = read(folder)
    pooled = read_json(folder / "metrics.json")["final"]["pooled"]
    result = page.table("Hospital", "Images", "AUC")
    assert [row[0] for row in result[1:]] == ["hospital-1", "hospital-2", "hospital-3", "all hospitals, pooled"]
    assert result[-1][1:4] == ["603", number(pooled["auc"]), number(pooled["balanced_accuracy"])]
    data = page.table("Hospital", "healthy", "lesion", "unlabelled")
    assert data[1] == ["hospital-1", "2", "2", "396", "400"] and data[-1][1:3] == ["6", "6"]
    confusion = page.table("true \\ predicted")
    counts = pooled["confusion_matrix"]
    assert confusion[1][1] == f"{counts[0][0]}{100 * counts[0][0] / sum(counts[0]):.1f}%"
    exchanged = page.table("Hospital", "Device")
    assert exchanged[1][1] == "cpu" and exchanged[1][5] == "31.3 MB"  # 10 x 3.13 MB and 900 B
    kid = page.table("Class", "Samples")
    assert kid[1] == ["healthy", "0.0310 ± 0.0040", "0.0004 ± 0.0010", "0.4120 ± 0.0060"]
    for words in ("93.8%", "4 min 31 s", "p > 0.5", "every hospital answered", "Phantoms", "no medical device"):
        assert words in page.text
    assert "Real scans" not in page.text and "This run" not in page.text


def test_it_opens_offline_and_its_links_lead_somewhere(fake_run: Callable[..., Path]) -> None:
    folder = fake_run()
    page = read(folder)
    assert page.sources and all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    assert len(page.ids) == len(set(page.ids))
    galleries = [link for link in page.links if link.endswith("index.html")]
    assert len(set(galleries)) == 3
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        else:
            assert not link.startswith("/") and (folder / unquote(link)).is_file(), link


def test_galleries_outside_the_run_are_linked(fake_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = fake_run()
    config = (folder / "config.yaml").read_text()
    (folder / "sites").rename(tmp_path / "my sites")
    (folder / "config.yaml").write_text(config.replace("sites-home: ''", f"sites-home: {tmp_path / 'my sites'}"))
    galleries = [link for link in read(folder).links if link.endswith("index.html")]
    assert galleries and all(" " not in link and (folder / unquote(link)).is_file() for link in galleries)


def test_a_hostile_hospital_is_only_text(fake_run: Callable[..., Path]) -> None:
    folder = fake_run(hospitals=(HOSTILE, "../../etc", "hospital-3"))
    EventLog(folder / "events.jsonl").append(
        "hospital_refused", round=2, hospital=HOSTILE, kind="train", reason="</table><script>alert(2)</script>"
    )
    text = write_report(folder).read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags and "<img src=x" not in text
    assert HOSTILE in page.text, "it is shown as it is, as text"
    galleries = {unquote(link) for link in page.links if link.endswith("index.html")}
    assert {link.split("/")[1] for link in galleries} == {HOSTILE, "hospital-3"}, "no link out of the run's folder"
    assert page.table("Hospital", "Round", "Question")[1][3:] == ["refused", "</table><script>alert(2)</script>"]


def test_half_a_character_does_not_stop_the_report(fake_run: Callable[..., Path]) -> None:
    assert "h?" in read(fake_run(hospitals=("h\ud800",), num_items=0, num_rounds=1, galleries=False)).text


def test_a_picture_outside_the_run_is_not_taken(fake_run: Callable[..., Path]) -> None:
    folder = fake_run(num_items=0)
    samples = read_json(folder / "metrics.json")["samples"]
    log = EventLog(folder / "events.jsonl")
    (folder / "samples.png").rename(folder.parent / "samples.png")
    for path in ("../samples.png", str(folder.parent / "samples.png"), "metrics.json", ""):
        log.append("sampled", **{**samples, "path": path})
        assert not read(folder).sources, path


def test_real_scans_are_called_so(fake_run: Callable[..., Path]) -> None:
    page = read(fake_run(real=True))
    assert "Real scans" in page.text and "Phantoms" not in page.text


def test_a_failed_run_says_why(fake_run: Callable[..., Path]) -> None:
    folder = fake_run(ended="failed", num_rounds=3)
    assert not (folder / "metrics.json").exists()
    page = read(folder)
    assert "This run failed. hospital-2 ran out of <memory>" in page.text
    assert page.table("Hospital", "Images", "AUC")[-1][1] == "603", "what was evaluated before is shown"


def test_the_last_ending_counts(fake_run: Callable[..., Path]) -> None:
    folder = fake_run()
    log = EventLog(folder / "events.jsonl")
    log.append("run_failed", reason="the daemon died", duration_s=None)
    assert "the daemon died" in read(folder).text
    log.append("run_finished", duration_s=3.0)
    assert "This run failed" not in read(folder).text


def test_a_run_that_just_began_has_a_page(tmp_path: Path) -> None:
    EventLog(tmp_path / "run" / "events.jsonl").append("run_started", run_name="run", hospitals=["a"])
    page = read(tmp_path / "run")
    assert "has not ended" in page.text and "Origin not recorded" in page.text


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run at .*nowhere"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"events\.jsonl"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_multi_label_and_many_classes_are_drawn(fake_run: Callable[..., Path]) -> None:
    folder = fake_run(num_rounds=1, num_items=0)
    final = read_json(folder / "metrics.json")["final"]
    pooled = final["pooled"]
    pooled["confusion_matrix"] = [[[50, 3], [2, 45]], [[60, 1], [4, 35]]]
    pooled["auc_per_class"] = [0.91, None]
    EventLog(folder / "events.jsonl").append("evaluated", **{k: final[k] for k in ("round", "pooled", "hospitals")})
    page = read(folder)
    assert page.table("Label", "True negative")[2] == ["lesion", "60", "1", "4", "35"]
    assert page.table("Class", "AUC per class")[2] == ["lesion", "–"]


def test_a_hundred_hospitals_stay_small(fake_run: Callable[..., Path]) -> None:
    names = tuple(f"hospital-{index}" for index in range(1, 101))
    folder = fake_run(hospitals=names, num_rounds=2, num_items=1)
    text = write_report(folder).read_text(encoding="utf-8")
    assert len(text) < 600_000 and "each of 100 hospitals" in text
    assert len(re.findall(r"<img", text)) <= 1 + 4 * 6
