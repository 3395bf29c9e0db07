"""The ladder: a model of the site alone beside a federation's, on the site's own scans; nothing leaves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from client.cli import main
from client.dashboard import make_app
from client.local_baseline import run_alone
from client.site_config import read
from jointdiff import checkpoint
from jointdiff.errors import ConfigError
from jointdiff.views.live.ladder import lines, notes


@pytest.fixture
def site(tmp_path: Path, tiny_files: Path) -> Path:
    data = f"  kind: npz\n  path: {tiny_files / 'data.npz'}\n"
    (tmp_path / "site.yaml").write_text(f"data:\n{data}device: cpu\n")
    return tmp_path


def keys(tiny_files: Path, **changes: object) -> list[str]:
    values = {"image-size": 16, "num-rounds": 2, "local-steps": 2, "batch-size": 4, "explain": 0, "run-name": "alone",
              "model": tiny_files / "model.yaml", **changes}  # fmt: skip
    return [f"{key}={value}" for key, value in values.items()]


def test_alone_and_federation_stand_in_one_table(site, tiny_files, capsys):
    assert main(["train-local", "--site", str(site), *keys(tiny_files)]) == 0
    told = capsys.readouterr().out
    assert "Your own model alone" in told and "Not measured yet: `jointdiff-client evaluate" in told
    ladder = json.loads((site / "ladder.json").read_text())
    alone = ladder["alone"]
    assert alone["num_images"] == 18 and alone["num_hospitals"] == 1 and alone["steps"] == 4
    auc = alone["metrics"]["auc"]
    assert 0 <= auc["low"] <= auc["value"] <= auc["high"] <= 1 and auc["low"] < auc["high"]
    own = site / "runs" / "alone" / "checkpoints" / "last.safetensors"
    assert main(["evaluate", str(own), "--site", str(site)]) == ConfigError.exit_code
    assert "no federation's model" in capsys.readouterr().err
    assert json.loads((site / "ladder.json").read_text()) == ladder

    found = checkpoint.load(own)
    run = dataclasses.replace(found.config.run, num_hospitals=3, run_name="federation")
    theirs = site / "theirs.safetensors"
    checkpoint.save(theirs, found.state, dataclasses.replace(found.config, run=run), round_number=2)
    assert main(["evaluate", str(theirs), "--site", str(site), "--json"]) == 0
    ladder = json.loads(capsys.readouterr().out)
    # The same weights on the same scans: what differs is what the model says of itself.
    assert ladder["federation"]["metrics"] == ladder["alone"]["metrics"]
    assert ladder["federation"]["test_sha256"] == alone["test_sha256"] and ladder["federation"]["num_hospitals"] == 3

    client = TestClient(make_app(site), base_url="http://localhost")
    part = client.get("/live").json()["parts"]["ladder"]
    value = ladder["alone"]["metrics"]["auc"]["value"]
    assert part.count(f"{value:.3f} (") >= 2 and "3 hospitals, 4 steps each" in part
    assert client.get("/data.json").json()["ladder"] == ladder
    assert str(site) not in json.dumps(ladder) and not (site / "egress").exists()


def test_a_page_without_a_ladder_says_how_to_climb_it(tmp_path):
    part = TestClient(make_app(tmp_path), base_url="http://localhost").get("/live").json()["parts"]["ladder"]
    assert "jointdiff-client train-local" in part and "<table" not in part
    (tmp_path / "ladder.json").write_text('{"schema_version": 1, "alone": [1], "federation": {"metrics": "<img>"}}')
    part = TestClient(make_app(tmp_path), base_url="http://localhost").get("/live").json()["parts"]["ladder"]
    assert "<img" not in part and "Balanced accuracy" in part


def test_numbers_of_different_scans_are_not_compared_in_silence():
    def entry(digest: str, size: int) -> dict:
        return {"test_sha256": digest, "image_size": size, "num_images": 3, "metrics": {}}

    told = "\n".join(notes({"alone": entry("a", 28), "federation": entry("b", 28)}))
    assert "different scans" in told and "Not measured" not in told
    assert "different sizes" in "\n".join(notes({"alone": entry("a", 28), "federation": entry("b", 64)}))
    assert "different" not in "\n".join(notes({"alone": entry("a", 28), "federation": entry("a", 28)}))
    assert lines({})[1].split() == ["AUC", "–", "–"]


@pytest.mark.parametrize("pair", ["target-epsilon=4.0", "home=/elsewhere", "dataset=phantom:rgb",
                                  "secure-aggregation=true"])  # fmt: skip
def test_keys_that_mean_nothing_alone_are_refused(site, capsys, pair):
    assert main(["train-local", "--site", str(site), pair]) == ConfigError.exit_code
    assert f"{pair.partition('=')[0]} means nothing" in capsys.readouterr().err
    assert not (site / "ladder.json").exists() and not (site / "runs").exists()


def test_classes_are_those_of_the_data_unless_they_are_said(site):
    config = read(site)
    assert run_alone(config, {}).class_names == ("healthy", "ill")
    run = run_alone(config, {"classes": "ill,healthy", "run-name": "x", "num-hospitals": 3, "hospitals": "a,b,c"})
    assert run.class_names == ("ill", "healthy") and run.home == str(site) and run.device == "cpu" and run.over_sites
    assert run.hospital_names == ("hospital-1",)


def test_a_site_without_data_has_no_ladder(tmp_path, capsys):
    assert main(["train-local", "--site", str(tmp_path), "classes=a,b"]) == ConfigError.exit_code
    assert "jointdiff-client init" in capsys.readouterr().err
