"""The model card: its numbers are those of the run, what it claims depends on the run, and foreign names stay text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from jointdiff.checkpoint import Checkpoint
from jointdiff.config import Config, ModelConfig, RunConfig, TrainingConfig
from jointdiff.events import EventLog
from jointdiff.intervals import estimates, wilson
from jointdiff.protocol import KINDS
from jointdiff.views.model_card import INTENDED_USE, model_card
from jointdiff.views.model_card_data import CARRIES
from jointdiff.views.run_data import RunData, load_run

HOSTILE = "a|b <img src=x onerror=alert(1)>\n# [click](javascript:x) `*_"
CONFIG = Config(RunConfig(method="fixmatch", num_rounds=4), ModelConfig(), TrainingConfig())
CHECKPOINT = Checkpoint(
    {"w": torch.zeros(2, 3)}, CONFIG, 4, None, "", code_version="9.8.7", code_hash="c0de" * 16
)  # fmt: skip


def sections(card: str) -> dict[str, str]:
    """Return the text below every heading."""
    return {part.splitlines()[0]: part.partition("\n")[2].strip() for part in card.split("\n## ")[1:]}


def rows(text: str) -> list[list[str]]:
    """Return the cells of all table rows; every row of a table must have as many as its head."""
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in line.replace("\\|", "\0").strip("|").split("|")] for line in lines]
        assert len({len(row) for row in cells}) <= 1
        found += [cells[0], *cells[2:]] if cells else []
    return found


def value(text: str, first: str) -> list[str]:
    """Return the cells right of the first one that reads `first`."""
    return next(row[1:] for row in rows(text) if row[0] == first)


@pytest.fixture
def run(fake_run: Callable[..., Path]) -> RunData:
    return load_run(fake_run("run-a", num_rounds=4, galleries=False))


def test_the_metrics_are_those_of_the_checkpoints_own_round_with_intervals(run):
    for number in (2, 4):
        results = sections(model_card(run, replace(CHECKPOINT, round_number=number), "best"))["Results"]
        entry = run.rounds[number - 1]
        assert entry["round"] == number and f"after round {number}." in results
        for name, metrics in (("**all, pooled**", entry["pooled"]), *entry["hospitals"].items()):
            found = estimates(metrics, "multi-class")
            assert value(results, name) == [
                str(metrics["num_images"]),
                *(f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" for e in found.values()),
            ]
            assert found["auc"].value == metrics["auc"]
    (hits, missed), (alarms, rest) = entry["pooled"]["confusion_matrix"]
    ill, healthy = wilson(rest, alarms + rest), wilson(hits, hits + missed)
    shown = [f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" for e in (ill, healthy)]
    assert value(results, "lesion") == shown and value(results, "healthy") == shown[::-1]


def test_numbers_of_heads_that_stay_at_the_hospitals_are_not_called_the_models_own(run):
    personal = replace(CONFIG, run=replace(CONFIG.run, personal="head"))
    said = "these numbers are not its own"
    assert said in sections(model_card(run, replace(CHECKPOINT, config=personal), "last"))["Results"]
    assert said not in model_card(run, CHECKPOINT, "last")


def test_a_round_without_metrics_is_said(run):
    results = sections(model_card(run, replace(CHECKPOINT, round_number=9), "best"))["Results"]
    assert results == "Not evaluated: the run holds no metrics of round 9."


def test_metrics_without_counts_are_shown_without_an_interval(run):
    run.rounds[3]["pooled"] |= {"confusion_matrix": None, "auc": 0.8765}
    results = sections(model_card(run, CHECKPOINT, "best"))["Results"]
    assert value(results, "**all, pooled**")[1] == "0.876"


def test_the_data_section_counts_images_and_labels_in_all_and_per_hospital(run):
    data = sections(model_card(run, CHECKPOINT, "best"))["Data that it has seen"]
    assert value(data, "hospitals") == ["3"] and value(data, "licence") == ["none needed"]
    assert value(data, "training images in all") == ["1\u202f203"] and value(data, "of these with a label") == ["12"]
    assert value(data, "hospital-2") == ["401", "4", "2", "2", "397", "201"]
    assert value(data, "**all**") == ["1\u202f203", "12", "6", "6", "1\u202f191", "603"]


@pytest.mark.parametrize(("real", "said"), [(True, "**real scans**"), (False, "**phantoms**"), (None, "not recorded")])
def test_real_scans_and_phantoms_are_told_apart(fake_run, real, said):
    found = sections(model_card(load_run(fake_run(num_rounds=1, real=real, galleries=False)), CHECKPOINT, "best"))
    assert value(found["Data that it has seen"], "origin")[0].startswith(said)
    assert ("Numbers on phantoms" in found["Limits"]) == (real is False)


@pytest.mark.parametrize(
    ("kind", "metric", "name", "said"),
    [
        ("best", 0.93, "heldout_auc", "chosen among the rounds by Heldout AUC = 0.930, on labels that had been given"),
        ("best", None, "", "Too few labels were given to hold some out"),
        ("last", 0.93, "heldout_auc", "Nothing chose them"),
    ],
)
def test_what_chose_the_weights_is_said(run, kind, metric, name, said):
    found = sections(model_card(run, replace(CHECKPOINT, metric=metric, metric_name=name), kind))["What chose what"]
    assert said in found and "**No test label chose anything in this run**" in found


def test_validation_numbers_are_never_called_test_numbers(run):
    run = replace(run, config={"run": {**run.config["run"], "eval-split": "val"}})
    found = sections(model_card(run, CHECKPOINT, "best"))
    assert "No test label chose" not in found["What chose what"] and "**validation** split" in found["What chose what"]
    assert found["Results"].startswith("On the validation images")
    assert "test images" not in found["Results"] + found["Data that it has seen"]
    run = replace(run, config={"run": {**run.config["run"], "eval-scanners": 4}})
    found = sections(model_card(run, CHECKPOINT, "best"))
    assert found["Results"].startswith("On the validation images as 4 scanners show them that no hospital has")


def test_privacy_is_off_unless_a_site_reports_what_it_has_spent(run):
    assert sections(model_card(run, CHECKPOINT, "best"))["Privacy"].startswith("**Off.**")
    for number, hospital, spent in ((1, "hospital-1", 0.5), (2, "hospital-1", 0.75), (2, "hospital-3", 1.5)):
        reply = {"event": "hospital_replied", "kind": "train", "round": number, "hospital": hospital}
        # Both places are read: a field of the event, and a metric of the report.
        more = {"epsilon": spent, "delta": 1e-5} if hospital == "hospital-1" else {"metrics": {"epsilon": spent}}
        run.events.append(reply | more)
    found = sections(model_card(run, CHECKPOINT, "best"))["Privacy"]
    assert value(found, "hospital-1") == ["0.75", "0.000010"] and value(found, "hospital-3")[0] == "1.50"
    assert value(found, "hospital-2")[0] == "off" and "Off." not in found


def test_what_left_the_sites_adds_up(run):
    found = sections(model_card(run, CHECKPOINT, "best"))["What left the sites"]
    assert value(found, "train") == [CARRIES["train"], "12", "37.6 MB"]  # 3 hospitals, 4 rounds, 3,130,400 bytes
    assert value(found, "describe")[1:] == ["3", "2.1 kB"]
    assert not [row for row in rows(found) if row[0] == "explain"]  # nobody was asked


def test_every_kind_of_question_is_described():
    assert set(CARRIES) == set(KINDS)


def test_model_and_code_are_the_checkpoints(run):
    found = sections(model_card(run, CHECKPOINT, "best"))
    assert value(found["Model"], "network") == ["unet-28, 6 numbers in its state"]
    assert value(found["Model"], "method") == ["fixmatch"] and "round 4 of 4" in value(found["Model"], "weights")[0]
    assert value(found["Code"], "JointDiff") == ["9.8.7"] and value(found["Code"], "code, SHA-256") == ["c0de" * 16]
    assert value(found["Code"], "Flower") == ["1.41.0"]


def test_intended_use_says_what_the_page_on_it_says(run):
    page = " ".join((Path(__file__).parents[2] / "docs" / "intended-use.md").read_text().split())
    for words in ("ot a medical device", "diagnosis, treatment or triage of a patient", "no statement about a patient"):
        assert words in page.replace("**not a medical\ndevice**", "not a medical device") and words in INTENDED_USE
    assert sections(model_card(run, CHECKPOINT, "best"))["Intended use"] == INTENDED_USE


def test_limits_name_trouble_an_unfinished_run_and_a_model_that_cannot_draw(fake_run):
    folder = fake_run("run-b", num_rounds=1, ended="")
    EventLog(folder / "events.jsonl").append(
        "hospital_failed", hospital="hospital-2", round=1, kind="train", reason="x"
    )
    no_denoising = replace(CHECKPOINT, config=replace(CONFIG, training=TrainingConfig(diffusion_weight=0.0)))
    limits = sections(model_card(load_run(folder), no_denoising, "best"))["Limits"]
    assert "1 answers failed, were refused or rejected (hospitals: hospital-2)" in limits
    assert "had not finished" in limits and "neither draw samples nor explain" in limits
    quiet = sections(model_card(load_run(fake_run("run-c", num_rounds=1, galleries=False)), CHECKPOINT, "best"))
    assert not any(word in quiet["Limits"] for word in ("failed", "not finished", "neither draw"))


def test_foreign_names_stay_text_and_no_folder_of_the_machine_is_told(fake_run, tmp_path):
    folder = fake_run("run-d", num_rounds=1, hospitals=(HOSTILE, "two"), galleries=False)
    tree = yaml.safe_load((folder / "config.yaml").read_text())
    tree["run"] |= {"home": str(tmp_path), "data-root": str(tmp_path), "dataset": f"npz:{tmp_path}/scans.npz"}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    run = load_run(folder)
    run.started["dataset"]["name"] = f"npz:{tmp_path}/scans.npz"
    own = replace(CONFIG, run=replace(CONFIG.run, home=str(tmp_path), preset=f"{tmp_path}/mine.yaml"))
    card = model_card(run, replace(CHECKPOINT, config=own, round_number=1), "best")
    assert str(tmp_path) not in card
    assert value(card, "data set") == ["npz:scans.npz"] and value(card, "preset") == ["mine.yaml"]
    assert "\n# [" not in card and "\\[click\\](javascript:x)" in card
    assert "<img" not in card.replace("\\<img", "")
    assert len([row for row in rows(card) if row[0].startswith("a\0b")]) == 2  # in the data and in the results
