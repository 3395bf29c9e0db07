from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from client import manifest
from client.cli import main
from client.egress_record import describe_tensor, describe_value
from client.manifest import Tensor
from jointdiff.head_sums import head_sums
from jointdiff.protocol import RoundReport
from jointdiff.statistics import NAMES, OPTIONAL_NAMES


def reply(kind: str = "train", **report) -> dict:
    data = np.arange(6, dtype=np.float32).tobytes()
    text = RoundReport("hospital-1", **{"metrics": {"loss": 0.5}, **report}).to_json()
    return manifest.entry_of(kind, text, [Tensor("head.mean", (6,), "float32", data)], envelope_bytes=4)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    for number, kind in ((0, "describe"), (1, "train"), (1, "evaluate"), (2, "train")):
        manifest.append(folder, "run-a", number, "hospital-1", reply(kind))
    return folder


def path(site: Path, number: int) -> Path:
    return site / "egress" / "run-a" / f"round-{number:04d}.json"


def edited(site: Path, number: int, change) -> list[str]:
    record = json.loads(path(site, number).read_text())
    change(record)
    path(site, number).write_text(json.dumps(record))
    return manifest.read(site, "run-a").problems


def test_every_value_and_tensor_is_listed_and_the_record_verifies(site):
    found = manifest.read(site, "run-a")
    assert not found.problems and sorted(found.rounds) == [0, 1, 2]
    entry = found.rounds[1][0]
    (tensor,) = entry["tensors"]
    data = np.arange(6, dtype=np.float32).tobytes()
    assert (tensor["name"], tensor["shape"], tensor["dtype"], tensor["bytes"]) == ("head.mean", [6], "float32", 24)
    assert tensor["sha256"] == __import__("hashlib").sha256(data).hexdigest()
    values = {item["name"]: (item["dtype"], item["value"]) for item in entry["scalars"]}
    assert values["metrics.loss"] == ("float64", 0.5) and values["num_images"] == ("int64", 0)
    assert entry["num_bytes"] == 4 + entry["report"]["bytes"] + 24 + len("head.mean")
    assert found.num_bytes == sum(e["num_bytes"] for _, e in found.entries)


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda r: r["replies"][0].update(kind="head"), "entry 1 is not what was written"),
        (lambda r: r["replies"][0]["tensors"][0].update(sha256="0" * 64), "entry 1 is not what was written"),
        (lambda r: r["replies"][0]["scalars"][0].update(value="x"), "entry 1 is not what was written"),
        (lambda r: r["replies"].pop(0), "does not follow"),
        (lambda r: r["replies"].reverse(), "does not follow"),
        (lambda r: r["replies"].pop(), "site.log tells of a reply in round 1"),
        (lambda r: r["replies"][1].update(num_bytes=1), "do not add up to 1"),
        (lambda r: r.update(hospital="hospital-2"), "does not follow"),
        (lambda r: r.update(run="run-b"), "another run"),
        (lambda r: r["replies"][0].pop("sha256"), "lacks a field"),
        (lambda r: r.update(schema_version=9), "no manifest of version 1"),
    ],
)
def test_what_was_edited_is_seen(site, change, text):
    assert any(text in problem for problem in edited(site, 1, change))


def test_an_entry_that_was_replaced_with_a_right_hash_breaks_the_next_file(site):
    """Whoever recomputes the hashes of one file still leaves the file after it pointing to what was there."""

    def forge(record):
        record["replies"][-1]["status"] = "failed"
        record["replies"][-1]["sha256"] = manifest._digest(record["replies"][-1])

    problems = edited(site, 1, forge)
    assert any("round-0002.json: the file before it is missing, or was changed" in problem for problem in problems)


def test_a_file_that_was_taken_out_or_cut_is_seen(site):
    path(site, 2).write_text(path(site, 2).read_text()[:-40])
    assert any("round-0002.json" in problem for problem in manifest.read(site, "run-a").problems)
    path(site, 2).unlink()
    path(site, 1).unlink()
    problems = manifest.read(site, "run-a").problems
    assert [p for p in problems if "site.log tells of a reply in round 2" in p]
    path(site, 0).unlink()
    assert len(manifest.read(site, "run-a").problems) == 4  # one for each line of the log


def test_a_run_that_is_carried_on_verifies(site):
    manifest.append(site, "run-a", 1, "hospital-1", reply())  # round 1 again, after round 2
    manifest.append(site, "run-a", 3, "hospital-1", reply())
    assert not manifest.read(site, "run-a").problems
    assert json.loads(path(site, 3).read_text())["previous"]["file"] == "round-0001.json"


def test_a_damaged_file_is_not_written_over(site):
    path(site, 2).write_text("{ cut")
    with pytest.raises(manifest.RunError):
        manifest.append(site, "run-a", 2, "hospital-1", reply())
    assert path(site, 2).read_text() == "{ cut"


def test_the_command_shows_explains_and_verifies(site, capsys):
    assert main(["egress", "--site", str(site)]) == 0
    shown = capsys.readouterr().out
    assert "run run-a: " in shown and "sent its trained weights" in shown and "verified" in shown
    assert main(["egress", "run-a", "--explain", "--site", str(site)]) == 0
    explained = capsys.readouterr().out
    assert "standardisation of the features" in explained and "metrics.loss = 0.5" in explained
    assert main(["egress", "--json", "--site", str(site)]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["verified"] and [len(r["replies"]) for r in found["rounds"]] == [1, 2, 1]
    edited(site, 1, lambda record: record["replies"][0].update(status="failed"))
    assert main(["egress", "--site", str(site)]) == 5
    assert "PROBLEM" in capsys.readouterr().out


def test_a_run_that_is_not_there_is_named(site, tmp_path, capsys):
    assert main(["egress", "run-b", "--site", str(site)]) == 5
    assert "did you mean 'run-a'?" in capsys.readouterr().err
    assert main(["egress", "--site", str(tmp_path / "empty")]) == 5


def test_every_sum_and_statistic_has_words_of_its_own():
    sums = head_sums(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0, np.int64), 2)
    texts = [describe_tensor("head", name) for name in sums]
    texts += [
        describe_tensor("evaluate", f"{part}.{n}") for part in ("test", "heldout") for n in NAMES + OPTIONAL_NAMES
    ]
    assert len(set(texts)) == len(texts) and not any("layer" in text for text in texts)
    assert describe_tensor("train", "unet.middle.bias") == (
        "biases of layer 'unet.middle', as this site's training left them"
    )
    assert describe_value("withheld.0") == "name of statistics that the site holds back"
