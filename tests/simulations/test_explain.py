"""Tables of graded explanations: a whole command on a tiny run, cells by hand, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from jointdiff import checkpoint
from jointdiff.config import parse_run_config
from jointdiff.counterfactual import METHODS
from jointdiff.data import ImageSet, hospital_data
from jointdiff.explanation import references
from jointdiff.fidelity import FeatureNet
from jointdiff.grading import grade_scans
from jointdiff.model import JointModel, to_network
from jointdiff.schedule import SCHEDULES
from simulations.explain import grade_run, kid_scale, main, open_run, take_turns
from simulations.explain_table import Row, directions, notes, table
from simulations.local import run_local

CPU = torch.device("cpu")


def row(run: str, method: str = "region", control: str = "", direction: str = "all", **grades: float) -> Row:
    return Row(run, method, control, direction, {"num_scans": 10.0, **grades})


def cells(text: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert len({len(r) for r in rows}) == 1, "every row has every column"
    return {r[0]: r[1:] for r in rows}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_files: Path) -> Path:
    """The folder of a finished tiny run that has learned a little."""
    home = tmp_path_factory.mktemp("explain-home")
    return run_local(parse_run_config({
        "dataset": f"npz:{tiny_files / 'data.npz'}", "image-size": 16, "num-labels": 12, "num-rounds": 1,
        "num-hospitals": 2, "local-steps": 20, "batch-size": 8, "model": str(tiny_files / "model.yaml"),
        "device": "cpu", "explain": 0, "min-hospitals": 1, "round-retries": 0, "run-name": "tiny", "home": str(home),
    }))  # fmt: skip


@pytest.fixture
def explain(trained: Path, capsys: pytest.CaptureFixture[str], quick_referee: None):
    """A function that runs the command on the trained run; returns code, output and errors."""

    def call(*arguments: str, folders: tuple[Path, ...] = (trained,)) -> tuple[int, str, str]:
        capsys.readouterr()
        return (main([*map(str, folders), "--device", "cpu", *arguments]), *capsys.readouterr())

    return call


def test_the_command_grades_methods_and_controls_of_all_hospitals(explain, trained, tmp_path, monkeypatch):
    """The baseline's name stands for a quick method here: its 200 steps would take the tests a minute."""
    monkeypatch.setitem(METHODS, "authors", METHODS["inversion"])
    path = tmp_path / "new" / "grades.json"
    code, out, error = explain(
        "--methods", "tweedie,authors", "--num-scans", "5", "--controls", "--split", "test", "--json", str(path)
    )
    assert code == 0, error
    sections = out.split("\nAll edits\n")[1].split("\nEdits to ")
    assert [s.partition("\n")[0] for s in sections[1:]] == ["healthy", "ill"]
    got = cells(sections[0].strip())
    controls = ["own class", "random edit", "random weights", "attack"]
    names = [label for m in ("tweedie", "authors") for label in (m, *(f"{m}: {c}" for c in controls))]
    headings = got["method"]
    assert list(got) == ["method", "---", *names]
    assert headings[:3] == ["scans", "validity", "referee validity"] and headings[-1] == "times faster than authors"
    assert got["authors"][-1] == "1.0" and float(got["tweedie"][-1]) > 0
    assert got["tweedie"][0] == "5" and got["tweedie: random edit"][-1] == "-"
    assert "1 run(s), test split, 5 scans in all." in out and "referee's own accuracy" in out
    assert "hospital-1: 3 scans" in error and "hospital-2: 2 scans" in error
    written = json.loads(path.read_text())
    assert (written["schema_version"], written["split"], written["runs"][0]["num_scans"]) == (1, "test", 5)
    rows = [Row(**r) for r in written["rows"]]
    assert table(rows) == sections[0].strip()
    for method in ("tweedie", "authors"):
        own, random, attack = (
            {r.control: r.grades for r in rows if r.method == method and r.direction == "all"}[c]
            for c in ("", "random edit", "attack")
        )
        assert own["l2"] > 0.01 and own["num_found"] == random["num_found"] == attack["num_found"]
        assert random["l2"] == pytest.approx(own["l2"], rel=0.02)
        assert 0 < attack["l2"] <= own["l2"] + 0.5 / 255
        assert {"cout", "denoising_loss", "identity", "referee_accuracy"} - set(attack) == {"referee_accuracy"}
    parts = [r.grades for r in rows if r.label == "tweedie" and r.direction != "all"]
    (whole,) = (r.grades for r in rows if r.label == "tweedie" and r.direction == "all")
    assert sum(g["num_scans"] for g in parts) == 5
    assert sum(g.get("l1", 0) * g["num_found"] for g in parts) == pytest.approx(whole["l1"] * whole["num_found"])

    run = open_run(trained, split="test", device=CPU)
    again, facts = grade_run(run, ["tweedie"], num_scans=5, controls=["tweedie"], say=lambda _: None)
    clocked = ("seconds_per_image", "speedup")
    of_first = [r for r in rows if r.method == "tweedie"]
    assert facts == written["runs"][0] and len(again) == len(of_first)
    for a, b in zip(of_first, again, strict=True):
        assert {k: v for k, v in a.grades.items() if k not in clocked} == {
            k: v for k, v in b.grades.items() if k not in clocked
        }, "the same scans, whatever other methods explain them"


def test_methods_take_turns_batch_by_batch_and_explain_as_alone(trained, monkeypatch):
    monkeypatch.setattr("simulations.explain.BATCH_SIZE", 4)
    run = open_run(trained, split="test", device=CPU)
    scans = [hospital_data(run.config.run, k).test for k in (0, 1)]
    images, order = np.concatenate([s.images for s in scans])[:10], []
    for name in ("inversion", "region"):
        real = METHODS[name]
        monkeypatch.setitem(METHODS, name, lambda *a, n=name, m=real, **k: order.append((n, len(a[1]))) or m(*a, **k))
    targets = np.arange(10) % 2
    made = take_turns(["inversion", "region"], run, run.model, images, targets, scans[0])
    assert order == [(n, k) for k, pair in ((4, (0, 1)), (4, (1, 0)), (2, (0, 1)))
                     for n in (("inversion", "region")[i] for i in pair)]  # fmt: skip
    alpha_bar = SCHEDULES[run.config.training.schedule](run.config.training.num_timesteps)
    alone = METHODS["region"](
        run.model, to_network(images[8:]), torch.from_numpy(targets[8:]), alpha_bar,
        prediction=run.config.training.prediction, references=references(run.model, scans[0], device=CPU),
    )  # fmt: skip
    assert np.array_equal(made["region"].found[8:], alone.found.numpy())
    shown = to_network(made["region"].images[8:])
    torch.testing.assert_close(shown, alone.images.clamp(-1, 1), atol=0.5 / 127.5 + 1e-5, rtol=0)


def test_a_cell_is_the_mean_over_runs_and_their_spread():
    rows = [
        row("a", validity=0.9, l1=0.01, lesion_share=0.8, lesion_area_share=0.06),
        row("b", validity=1.0, l1=0.02, lesion_share=0.6, lesion_area_share=0.08),
        row("a", control="attack", validity=1.0, l1=0.03), row("b", control="attack", validity=0.5, l1=0.03),
        row("a", direction="to ill", validity=0.1),
    ]  # fmt: skip
    got = cells(table(rows))
    assert got["method"] == ["scans", "validity", "lesion share", "by chance", "L1"]
    assert got["region"] == [
        "20", "0.950 (0.900 to 1.000)", "0.700 (0.600 to 0.800)", "0.070 (0.060 to 0.080)", "0.0150 (0.0100 to 0.0200)",
    ]  # fmt: skip
    assert got["region: attack"][2:4] == ["-", "-"]
    assert cells(table(rows, "to ill"))["region"] == ["10", "0.100"]


def test_directions_are_classes_or_a_finding_shown_and_removed():
    got = directions(np.array([0, 2, 3, 3]), ["mass", "fluid"], "multi-label")
    assert {name: where.astype(int).tolist() for name, where in got.items()} == {
        "all": [1, 1, 1, 1], "with mass": [0, 0, 0, 0], "without mass": [1, 0, 0, 0],
        "with fluid": [0, 0, 1, 1], "without fluid": [0, 1, 0, 0],
    }  # fmt: skip


def test_what_kid_means_is_said_beside_it():
    rng, labels = np.random.default_rng(0), np.arange(96) % 2
    images = (rng.integers(0, 120, (96, 16, 16, 1)) + labels[:, None, None, None] * 60).astype(np.uint8)
    probs = np.full((96, 2), 0.5)
    graded = grade_scans(images, images, probs, probs, 1 - labels, labels=labels, features=FeatureNet(1).features)
    scale = kid_scale(ImageSet(images, labels), graded, seed=0)
    (real, error), (unedited, _), (noise, _) = (scale[name] for name in ("real", "unedited", "noise"))
    assert abs(real) < 3 * error < unedited and error < noise
    assert unedited == graded.means()["kid"], "nothing was edited here"
    said = notes(
        [{"num_scans": 48, "referee_accuracy": None, "kid_scale": scale}], split="val", feature_net="net of the test"
    )
    assert f"real against real {real:.4f}, scans unedited {unedited:.4f}, noise {noise:.4f}" in said
    assert "referee" not in said


def test_a_copied_run_keeps_its_referee_in_the_home_it_is_in(trained, tmp_path):
    moved = shutil.copytree(trained, tmp_path / "elsewhere" / "runs" / "tiny")
    run = open_run(moved, split="val", device=CPU).config.run
    assert run.home == str((tmp_path / "elsewhere").resolve())
    assert run.eval_split == "val", "the split that was asked for, not the run's own"


def changed(trained: Path, folder: Path, change) -> Path:
    """Copy a run with another best checkpoint: `change` takes the model and its configuration, returns the latter."""
    path = shutil.copytree(trained, folder) / "checkpoints" / "best.safetensors"
    config = checkpoint.load(path).config
    model = JointModel(config.model)
    checkpoint.load_into(model, path)
    config = change(model, config)
    checkpoint.save(path, model.state_dict(), config, round_number=1)
    return folder


def test_bad_requests_are_one_line(explain, trained, tmp_path):
    def no_head(model, config):
        model.head.linear.weight.data.zero_()
        return config

    def no_denoiser(_, config):
        return dataclasses.replace(config, training=dataclasses.replace(config.training, diffusion_weight=0.0))

    def other_data(_, config):
        return dataclasses.replace(config, run=dataclasses.replace(config.run, dataset="phantom"))

    empty = tmp_path / "empty"
    empty.mkdir()
    headless, blind, other = (
        changed(trained, tmp_path / change.__name__, change) for change in (no_head, no_denoiser, other_data)
    )
    for folders, arguments, code, message in (
        ((trained, empty), (), 5, "empty is no folder of a finished run"),
        ((tmp_path / "none",), (), 5, "none is no folder of a finished run"),
        ((headless,), (), 4, "has no classifier"),
        ((blind,), (), 4, "was trained without the denoising loss"),
        ((trained, other), (), 2, "make one table for each"),
        (
            (trained,),
            ("--methods", "regoin,authors"),
            2,
            "Unknown method 'regoin' in --methods: did you mean 'region'?",
        ),
        ((trained,), ("--controls", "authors"), 2, "Unknown method 'authors' in --controls: known: region"),
        ((trained,), ("--num-scans", "0"), 2, "--num-scans must be at least 1, not 0"),
    ):
        got, out, error = explain(*arguments, folders=folders)
        assert got == code and not out and error.startswith("error: ") and message in error and error.count("\n") == 1
