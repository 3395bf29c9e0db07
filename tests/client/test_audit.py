"""`jointdiff-client audit`, on a run that was really trained: what it writes, where, and how it says no."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.cli import main
from jointdiff import checkpoint, storage
from jointdiff.attacks.audit import NO_HOLDOUT
from jointdiff.attacks.membership import auc_bound, true_positive_bound
from jointdiff.config import parse_run_config
from jointdiff.data import hospital_data
from jointdiff.ledger import Ledger
from jointdiff.standalone import train_alone


@pytest.fixture(scope="module")
def keys(tiny_files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("audited")
    draws = np.random.default_rng(0)
    labels = np.arange(120) % 2
    images = (draws.integers(0, 120, (120, 16, 16)) + labels[:, None, None] * 60).astype(np.uint8)
    images[7] = images[3]  # an image that is in the file twice
    np.savez(folder / "data.npz", train_images=images, train_labels=labels, test_images=images[:8],
             test_labels=labels[:8])  # fmt: skip
    return {
        "dataset": f"npz:{folder / 'data.npz'}", "image-size": 16, "model": str(tiny_files / "model.yaml"),
        "num-labels": 0, "num-rounds": 1, "local-steps": 2, "batch-size": 4, "device": "cpu", "explain": 0,
        "num-hospitals": 1, "home": str(folder), "audit-holdout": 0.4,
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(keys: dict[str, object]) -> Path:
    return train_alone(parse_run_config({**keys, "run-name": "audited", "num-hospitals": 2}))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jointdiff.attacks.audit.NUM_SAMPLES", 8)
    monkeypatch.setattr("jointdiff.attacks.audit.NUM_STEPS", 4)


def audit(*arguments: object) -> int:
    return main(["audit", *[str(a) for a in arguments], "--device", "cpu"])


def numbers(folder: Path) -> dict[str, object]:
    return json.loads((folder / "metrics.json").read_text())  # type: ignore[no-any-return]


def test_an_audit_leaves_a_page_that_carries_everything(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = run / "sites" / "hospital-1"
    site.mkdir(parents=True, exist_ok=True)
    ledger = Ledger.open(site, dataset="d" * 64, num_records=100, delta=1e-4, ceiling=None)
    ledger.spend(run="audited", round=1, noise_multiplier=1.5, sample_rate=0.1, steps=10, key="k")
    assert audit(run, "--references", 2, "--inversions", 1) == 0
    folder = site / "audit" / "audited"
    shown = capsys.readouterr()
    assert shown.out.endswith(f"Audit, for this site alone: {folder / 'index.html'}\n") and not shown.err
    found = numbers(folder)
    attacks = {(a["target"], a["method"]): a["result"] for a in found["membership"]}  # type: ignore[attr-defined]
    assert {target for target, _ in attacks} == {"denoiser", "classifier"} and len(attacks) == 4
    for result in attacks.values():
        assert 0 <= result["auc"]["low"] <= result["auc"]["value"] <= result["auc"]["high"] <= 1
    views = [(i["loss"], i["view"]) for i in found["inversions"]]  # type: ignore[attr-defined]
    assert sorted(f"{loss} {view}" for loss, view in views) == [
        "classification clear", "classification dp", "classification masked", "classification sum",
        "joint clear", "joint dp", "joint sum",
    ]  # fmt: skip
    assert found["num_sites"] == 2 and found["noise_multiplier"] == 1.5, "the ledger's"
    bound = found["privacy"]
    assert bound["true_positive_rate"] == true_positive_bound(ledger.epsilon, 1e-4, 0.01)  # type: ignore[index]
    page = (folder / "index.html").read_text()
    assert f"{auc_bound(ledger.epsilon, 1e-4):.3f}" in page and f"ε {ledger.epsilon:.2f} at δ 0.0001" in page
    assert "http" not in page.replace("http-equiv", "") and "<script" not in page and "data:image/png" in page
    assert {p.name for p in folder.iterdir()} >= {"copies.png", "inversion-joint-dp.png", "metrics.json"}
    ledger.spend(run="other", round=1, noise_multiplier=0.0, sample_rate=1.0, steps=1, key="k")
    assert audit(run, "--references", 0, "--inversions", 0) == 0
    assert numbers(folder)["privacy"] is None, "an infinite epsilon bounds nothing"
    for path in site.glob("ledger*"):
        path.unlink()


def test_the_same_audit_gives_the_same_numbers(run: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert audit(run, "--references", 0, "--inversions", 0, "--site", tmp_path / name) == 0
    first, second = (numbers(tmp_path / name / "audit" / "audited") for name in ("a", "b"))
    assert {**first, "duration_s": 0} == {**second, "duration_s": 0}
    assert len(first["membership"]) == 2 and not first["inversions"]  # type: ignore[arg-type]
    assert not (tmp_path / "a" / "ledger.json").exists() and first["privacy"] is None


def test_a_run_is_found_by_folder_name_and_file(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(storage.HOME_VARIABLE, str(run.parents[1]))
    quick = ("--references", 0, "--inversions", 0)
    shutil.rmtree(run / "sites", ignore_errors=True)
    for source in ("audited", run / "checkpoints" / "best.safetensors"):
        assert audit(source, *quick) == 0
        assert (run / "sites" / "hospital-1" / "audit" / "audited" / "index.html").exists()
        shutil.rmtree(run / "sites")
    alone = shutil.copy(run / "checkpoints" / "last.safetensors", tmp_path / "mine.safetensors")
    monkeypatch.setenv(storage.HOME_VARIABLE, str(tmp_path / "site"))
    assert audit(alone, *quick) == 0
    assert (tmp_path / "site" / "audit" / "audited" / "index.html").exists()


@pytest.mark.parametrize(
    ("share", "reason"), [(0.0, "held nothing back"), (0.1, "images were held back that no training image equals")]
)
def test_what_cannot_be_measured_is_said(keys: dict[str, object], tmp_path: Path, share: float, reason: str) -> None:
    changed = {**keys, "home": str(tmp_path), "run-name": "bare", "audit-holdout": share}
    run = train_alone(parse_run_config(changed))
    assert audit(run, "--references", 2, "--inversions", 0) == 0
    found = numbers(run / "sites" / "hospital-1" / "audit" / "bare")
    assert all(a["result"] is None and reason in a["why_not"] for a in found["membership"])  # type: ignore[attr-defined]
    assert found["copies"] is None and "held-out images" in found["why_no_copies"]  # type: ignore[operator]
    page = (run / "sites" / "hospital-1" / "audit" / "bare" / "index.html").read_text()
    assert reason in page and ("PneumoniaMNIST" in page) == (share == 0)
    assert "audit-holdout=0.2" in NO_HOLDOUT and "test split is no substitute" in NO_HOLDOUT


def test_held_back_images_that_were_trained_on_all_the_same_are_left_out(
    keys: dict[str, object], tmp_path: Path
) -> None:
    with np.load(str(keys["dataset"]).removeprefix("npz:")) as known:
        arrays = dict(known)
    arrays["train_images"] = np.concatenate([arrays["train_images"][8:68]] * 2)  # every image is there twice
    np.savez(tmp_path / "twice.npz", **arrays)
    changed = {**keys, "home": str(tmp_path), "run-name": "twice", "dataset": f"npz:{tmp_path / 'twice.npz'}"}
    run = train_alone(config := parse_run_config(changed))
    assert audit(run, "--references", 0, "--inversions", 0) == 0
    found = numbers(run / "sites" / "hospital-1" / "audit" / "twice")
    data = hospital_data(config, 0)
    assert data.nonmembers is not None
    known_images = {image.tobytes() for image in data.train.images}
    shared = sum(image.tobytes() in known_images for image in data.nonmembers.images)
    assert 10 < shared < 48 and (found["num_shared"], found["num_nonmembers"]) == (shared, 48 - shared)
    assert found["num_repeats"] == len(data.train) - len(known_images) > 0


def test_a_run_of_real_hospitals_is_attacked_with_the_sites_own_data(
    keys: dict[str, object], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = run / "checkpoints" / "last.safetensors"
    config = checkpoint.load(source).config
    settings = replace(config.run, dataset="sites", data_root="", classes="healthy,ill", home="")
    model = checkpoint.export(source, tmp_path / "model.safetensors", replace(config, run=settings))
    asked = (model, "--references", 0, "--inversions", 0, "--site", tmp_path)
    assert audit(*asked) == 2
    assert f"{tmp_path / 'site.yaml'} names none: name your site.yaml with --site" in capsys.readouterr().err
    with np.load(str(keys["dataset"]).removeprefix("npz:")) as known:
        np.savez(tmp_path / "scans.npz", **known, class_names=np.array(["healthy", "ill"]))
    (tmp_path / "site.yaml").write_text("data: {kind: npz, path: scans.npz}\n")
    assert audit(*asked) == 0
    found = numbers(tmp_path / "audit" / "audited")
    assert 40 < found["num_nonmembers"] <= 48, "of the site's 120 scans, less those that are there twice"  # type: ignore[operator]


def test_few_labels_and_no_generator_are_said_too(keys: dict[str, object], tmp_path: Path) -> None:
    changed = {**keys, "home": str(tmp_path), "run-name": "few", "num-labels": 8, "method": "supervised"}
    run = train_alone(parse_run_config(changed))
    assert audit(run, "--references", 2, "--inversions", 1) == 0
    found = numbers(run / "sites" / "hospital-1" / "audit" / "few")
    reasons = {a["target"]: a["why_not"] for a in found["membership"]}  # type: ignore[attr-defined]
    assert "never learned to denoise" in reasons["denoiser"] and "labelled members (of 8" in reasons["classifier"]
    assert "never learned to denoise" in found["why_no_copies"]  # type: ignore[operator]
    assert {i["loss"] for i in found["inversions"]} == {"classification"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (("no-such-run",), 4, "There is no checkpoint at"),
    (("RUN", "--hospital", 3), 2, "--hospital must be 1 to 2, not 3"),
    (("RUN", "--references", 3), 2, "--references must be an even number"),
    (("RUN", "--inversions", -1), 2, "--inversions must be 0 or more"),
])  # fmt: skip
def test_bad_requests(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], code: int, message: str
) -> None:
    assert audit(*(run if a == "RUN" else a for a in arguments)) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("text", ["{ cut", "{}"])
def test_a_damaged_ledger_stops_the_audit(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "ledger.json").write_text(text)
    assert audit(run, "--site", tmp_path) != 0
    assert "ledger of this site" in capsys.readouterr().err and not (tmp_path / "audit").exists()
