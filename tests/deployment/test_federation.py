"""From certificates to galleries over real processes: three admitted hospitals with different files, three rounds.

Minutes: `pytest -m slow tests/deployment`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.deployment.federation import Federation, Party, federation
from tests.deployment.scans import phantoms, write_dicom, write_folder, write_table

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed: make setup-system"),
]
SITES = {"st-anna": (0, 300), "city": (300, 300), "north": (600, 300)}  # which phantoms each has
NUM_UNLABELLED = 60
RUN = "first-run"
KEYS = (
    "classes=healthy,lesion num-rounds=3 local-steps=10 batch-size=16 explain=4 round-timeout-s=400 "
    f"run-name={RUN} seed=1"
)
NAMES = ("Müller", "Erika", "patient-0", "Doe", "Jane", "ID-1", "scans.csv", "Gesund", "Läsion", ".dcm")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Iterator[Federation]:
    """A federation in which one run has ended; its output is in `server.home`/run.log."""
    folder = tmp_path_factory.mktemp("federation")
    with federation(folder) as found:
        data = folder / "Röntgen data"
        write_folder(data / "anna", *SITES["st-anna"], NUM_UNLABELLED)
        table = write_table(data / "city", *SITES["city"], NUM_UNLABELLED)
        write_dicom(data / "north", *SITES["north"], NUM_UNLABELLED)
        found.site("st-anna", "kind=folder", f"path={data / 'anna'}", "classes=healthy=Gesund; lesion=Läsion")
        found.site("city", "kind=csv_table", f"path={table}", "patient-column=patient")
        found.site("north", "kind=dicom", f"path={data / 'north'}", "min-cell-count=0")
        _tells_nothing_of_its_explanations(found.sites["city"])
        for name, site in found.sites.items():
            found.admit(name)
            told = json.loads(site.run("preflight", "--json", "--run-config", *KEYS.split()).stdout)
            assert not [line for line in told if line["status"] == "FIX"], (name, told)
            site.do("start")
        found.wait_until_connected(*SITES)
        printed = found.server.do("run", "-c", KEYS, seconds=1500)
        (found.server.home / "run.log").write_text(printed, encoding="utf-8")
        yield found


def _tells_nothing_of_its_explanations(site: Party) -> None:
    path = site.home / "site.yaml"
    text = path.read_text(encoding="utf-8")
    assert "  report: grades" in text
    path.write_text(text.replace("  report: grades", "  report: none"), encoding="utf-8")


def test_the_run_ends_well_and_is_better_than_chance(finished):
    events = finished.events(RUN)
    assert events[-1]["event"] == "run_finished"
    assert [e["num_replies"] for e in events if e["event"] == "round_aggregated"] == [3, 3, 3]
    trouble = {"hospital_failed", "hospital_refused", "update_rejected"}
    assert not [e for e in events if e["event"] in trouble]
    final = json.loads((finished.server.home / "runs" / RUN / "metrics.json").read_text())["final"]
    assert set(final["hospitals"]) == set(SITES) and final["pooled"]["auc"] > 0.6, final["pooled"]
    assert "report.html" in (finished.server.home / "run.log").read_text()


def test_every_site_has_its_gallery_and_a_record_of_what_left(finished):
    for site in finished.sites.values():
        gallery = site.home / "explanations" / RUN
        assert (gallery / "index.html").is_file() and len(list(gallery.glob("*.png"))) >= 4
        assert "verified" in site.do("egress", RUN).lower() or "in order" in site.do("egress", RUN).lower()


def test_a_site_may_keep_all_that_it_found_in_its_explanations(finished):
    (explained,) = [e for e in finished.events(RUN) if e["event"] == "explained"]
    assert explained["hospitals"]["city"] == {} and "validity" in explained["hospitals"]["north"]
    replies = {
        e["hospital"]: e for e in finished.events(RUN) if e["event"] == "hospital_replied" and e["kind"] == "explain"
    }
    assert not replies["city"]["metrics"] and {"grades", "num_labels"} <= set(replies["city"]["withheld"])
    grades = json.loads((finished.sites["city"].home / "explanations" / RUN / "metrics.json").read_text())["metrics"]
    assert "validity" in grades


def test_nothing_of_the_sites_files_is_on_the_server(finished):
    """Byte for byte: no name, no file's content, no scan as bytes or as the model's input."""
    needles = [name.encode() for name in NAMES]
    for first, count in SITES.values():
        for image in phantoms(first, count)[0]:
            needles += [image.tobytes()[280:344], (image[10].astype(np.float32) / 127.5 - 1).tobytes()]
    for path in (finished.server.home.parent / "Röntgen data").rglob("*.png"):
        needles.append(path.read_bytes()[60:120])
    files = [p for p in finished.server.home.rglob("*") if p.is_file() and not p.is_symlink()]
    assert any(p.name == "state.db" for p in files)
    for path in files:
        content = path.read_bytes()
        found = [needle for needle in needles if needle in content]
        assert not found, (str(path), found[:3])


def test_small_counts_are_withheld_only_where_the_site_says_so(finished):
    described = {
        e["hospital"]: e for e in finished.events(RUN) if e["event"] == "hospital_replied" and e["kind"] == "describe"
    }
    assert described["city"]["table"]["min_cell_count"] == 10 and described["north"]["table"]["min_cell_count"] == 0
    table = described["north"]["table"]
    assert table["num_unlabelled"] >= NUM_UNLABELLED and table["class_names"] == ["healthy", "lesion"]


def test_the_federations_model_stands_beside_the_sites_own(finished):
    """The ladder: a site trains alone, and holds both models against its own test scans."""
    site = finished.sites["city"]
    model = site.home / "model.safetensors"
    shutil.copy(finished.server.home / "runs" / RUN / "checkpoints" / "last.safetensors", model)
    site.do("train-local", "classes=healthy,lesion", "num-rounds=2", "local-steps=5", "batch-size=16", seconds=300)
    assert "AUC" in site.do("evaluate", str(model), seconds=300)
    assert (site.home / "ladder.json").is_file()


def test_a_second_run_and_its_refusals_name_their_cause(finished):
    """What a site does not allow is refused with the reason, and the others go on."""
    site = finished.sites["st-anna"]
    text = site.home.joinpath("site.yaml").read_text(encoding="utf-8")
    changed = text.replace("  epsilon: null", "  epsilon: 1.0").replace("  delta: null", "  delta: 1.0e-5")
    assert changed != text
    site.home.joinpath("site.yaml").write_text(changed, encoding="utf-8")
    keys = KEYS.replace(RUN, "second-run").replace("num-rounds=3", "num-rounds=1").replace("explain=4", "explain=0")
    finished.server.do("run", "-c", keys, seconds=900)
    refused = {e["hospital"]: e["reason"] for e in finished.events("second-run") if e["event"] == "hospital_refused"}
    assert set(refused) == {"st-anna"} and "privacy ceiling (epsilon 1)" in refused["st-anna"]
    site.home.joinpath("site.yaml").write_text(text, encoding="utf-8")
    wrong = finished.server.run("run", "-c", "dataset=pneumoniamnist")
    assert wrong.returncode == 2 and "brings its own data" in wrong.stderr


def test_a_revoked_site_is_out_and_the_run_goes_on(finished):
    finished.server.do("revoke", "north")
    assert "north" not in {name for name, there in finished.connected().items() if there}
    keys = KEYS.replace(RUN, "third-run").replace("num-rounds=3", "num-rounds=1").replace("explain=4", "explain=0")
    finished.server.do("run", "-c", keys, seconds=900)
    started = next(e for e in finished.events("third-run") if e["event"] == "round_started")
    assert started["hospitals"] == ["st-anna", "city"]


def test_the_report_shows_no_scan(finished):
    report = Path(finished.server.home / "runs" / RUN / "report.html").read_text(encoding="utf-8")
    assert "The server drew no samples" in report and "data:image/png" not in report
