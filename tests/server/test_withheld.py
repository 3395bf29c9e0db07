"""What sites withhold, in a whole federation: the server copes, and the report says who withholds what."""

from __future__ import annotations

import json

import numpy as np
import pytest

from client import manifest
from jointdiff.config import Config
from jointdiff.events import read_events
from jointdiff.statistics import COARSE_BINS, ClassificationStatistics
from server.scores import Scores
from simulations.local import run_local


@pytest.fixture
def strict_run(tiny_run, tmp_path):
    """A function that runs a federation in which some hospitals have a policy, and gives its folder and events."""

    def go(policies: dict[str, str], **changes):
        for hospital, text in policies.items():
            folder = tmp_path / "sites" / hospital
            folder.mkdir(parents=True)
            (folder / "site.yaml").write_text(f"privacy: {text}\n")
        run = tiny_run(sites_home=str(tmp_path / "sites"), num_hospitals=2, num_rounds=1, local_steps=1, **changes)
        folder = run_local(run)
        return folder, read_events(folder / "events.jsonl")

    return go


def only(events, name):
    (found,) = [event for event in events if event["event"] == name]
    return found


def test_one_site_withholds_small_counts_and_forbids_samples(strict_run, tmp_path, quick_referee):
    folder, events = strict_run({"hospital-2": "{min-cell-count: 4, server-samples: false}"}, explain=2)
    assert events[-1]["event"] == "run_finished" and not [e for e in events if e["event"] == "update_rejected"]
    evaluated = only(events, "evaluated")
    assert evaluated["withheld"]["hospital-2"][:1] == ["test.calibration"] and "hospital-1" not in evaluated["withheld"]
    assert "auc_error" in evaluated["pooled"] and "auc_error" in evaluated["hospitals"]["hospital-2"]
    assert "auc_error" not in evaluated["hospitals"]["hospital-1"] and evaluated["pooled"]["num_images"] == 18
    tables = {e["hospital"]: e["table"] for e in events if e.get("kind") == "describe"}
    assert (tables["hospital-1"]["min_cell_count"], tables["hospital-2"]["min_cell_count"]) == (0, 4)
    assert tables["hospital-1"]["labelled"] == [3, 3] and tables["hospital-2"]["labelled"] is None
    report = (folder / "report.html").read_text()
    assert "statistics on small counts, by hospital-2 (below 4)" in report and " ± " in report
    assert "1 withhold theirs" in report
    sampled = only(events, "sampled")
    assert not sampled["path"] and not (folder / "samples.png").exists() and sampled["metrics"]
    assert "hospital-2" in sampled["reason"] and "hospital-1" not in sampled["reason"]
    assert "The server drew no samples" in report
    record = manifest.read(tmp_path / "sites" / "hospital-2", "tiny")
    evaluate = next(entry for _, entry in record.entries if entry["kind"] == "evaluate")
    assert {t["name"] for t in evaluate["tensors"]} >= {"test.histogram_counts"} and not record.problems


def test_where_every_site_withholds_all_the_run_still_ends_and_says_so(strict_run):
    strict = "{min-cell-count: 10}"
    folder, events = strict_run({"hospital-1": strict, "hospital-2": strict})
    assert events[-1]["event"] == "run_finished"
    evaluated = only(events, "evaluated")
    assert evaluated["pooled"] is None and evaluated["hospitals"] == {} and evaluated["heldout_auc"] is None
    assert all("test" in names for names in evaluated["withheld"].values())
    replied = [e for e in events if e.get("kind") == "evaluate"]
    assert [e["num_images"] for e in replied] == [0, 0] and all(e["withheld"] for e in replied)
    report = (folder / "report.html").read_text()
    assert "their images are in no number here" in report and report.count("Withheld by the hospitals: see") == 2
    assert json.loads((folder / "metrics.json").read_text())["final"]["withheld"] == evaluated["withheld"]


def test_in_a_simulation_nothing_is_withheld_and_the_report_says_so(strict_run, quick_referee):
    folder, events = strict_run({}, explain=2)
    assert "withheld" not in only(events, "evaluated")
    assert "No hospital withholds small counts (min-cell-count 0" in (folder / "report.html").read_text()
    assert only(events, "sampled")["path"] == "samples.png" and (folder / "samples.png").exists()


@pytest.mark.parametrize(
    "weighting, event",
    [
        ({"weighting": "labels"}, "hospital_refused"),
        ({"decoder-weighting": "labels"}, "hospital_refused"),
        ({"weighting": "images"}, "hospital_replied"),
    ],
)
def test_labels_that_are_withheld_cannot_be_a_weight(strict_run, weighting, event):
    _, events = strict_run({"hospital-2": "{min-cell-count: 8}"}, **weighting)
    (train,) = [e for e in events if e.get("kind") == "train" and e.get("hospital") == "hospital-2"]
    assert train["event"] == event
    assert event == "hospital_replied" or ("min-cell-count" in train["reason"] and train["code"] == "refused")


def test_a_part_may_be_missing_only_where_it_is_withheld():
    scores = Scores(Config())
    scores.add("a", {}, ["test"])
    assert scores.pooled() is None and scores.withheld == {"a": ["test"]}
    with pytest.raises(ValueError, match="not of test"):
        scores.add("b", {})
    probs, labels = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1])
    odd = ClassificationStatistics.from_predictions(probs, labels, task="multi-class", num_bins=2 * COARSE_BINS)
    with pytest.raises(ValueError, match="128 score bins"):
        scores.add("b", {f"test.{name}": array for name, array in odd.to_arrays().items()})
