"""The command `jointdiff`, as a user types it: what it prints, what it writes, and how it says no."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from jointdiff import checkpoint
from jointdiff.cli import main
from jointdiff.config import parse_run_config, resolve
from jointdiff.data import load_dataset
from jointdiff.evaluation import predict
from jointdiff.events import read_events
from jointdiff.model import JointModel
from jointdiff.showcase import guided_samples

CPU = torch.device("cpu")


def fails(capsys, *arguments: object) -> tuple[int, str]:
    """Run a command that must fail; return its exit code and its one line on stderr."""
    capsys.readouterr()
    code = main([str(a) for a in arguments])
    error = capsys.readouterr().err
    assert code != 0 and error.startswith("error: ") and error.count("\n") == 1, error
    return code, error.strip()


def succeeds(capsys, *arguments: object) -> str:
    """Run a command that must succeed; return what it printed."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 0
    shown = capsys.readouterr()
    assert not shown.err
    return shown.out


@pytest.fixture(scope="module")
def keys(tiny_files) -> dict[str, object]:
    """The run-config keys of a tiny run."""
    return {
        "dataset": f"npz:{tiny_files / 'data.npz'}", "image-size": 16, "model": tiny_files / "model.yaml",
        "num-labels": 12, "num-rounds": 2, "local-steps": 2, "batch-size": 4, "device": "cpu", "explain": 3,
    }  # fmt: skip


def pairs(keys: dict[str, object], **changes: object) -> list[str]:
    return [f"{k}={v}" for k, v in {**keys, **{k.replace("_", "-"): v for k, v in changes.items()}}.items()]


@pytest.fixture(scope="module")
def trained(keys, tmp_path_factory) -> Path:
    """The folder of a run that `jointdiff train` made."""
    home = tmp_path_factory.mktemp("home")
    assert main(["train", *pairs(keys, home=home, run_name="tiny")]) == 0
    return home / "runs" / "tiny"


@pytest.fixture(scope="module")
def best(trained) -> Path:
    return trained / "checkpoints" / "best.safetensors"


def untrained(path: Path, keys: dict[str, object], *, task="multi-class", bias=(0.0, 0.0), **changes: object) -> Path:
    """Write a checkpoint whose answer to every image is the bias of its head."""
    run = parse_run_config({**keys, "model": str(keys["model"]), **changes})
    config = resolve(run, channels=1, num_outputs=2, task=task)
    model = JointModel(config.model)
    model.head.linear.bias.data = torch.tensor(bias)
    return checkpoint.save(path, model.state_dict(), config, round_number=1)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---- what the commands do


def test_train_leaves_a_whole_run_and_names_the_report(keys, tmp_path, capsys):
    out = succeeds(capsys, "train", *pairs(keys, home=tmp_path, run_name="one", num_hospitals=3), "--hospital", 2)
    folder = tmp_path / "runs" / "one"
    assert str(folder / "report.html") in out and "2/2" in out
    assert {"config.yaml", "events.jsonl", "metrics.json", "report.html"} <= set(files_below(folder))
    events = read_events(folder / "events.jsonl")
    assert events[-1]["event"] == "run_finished" and events[0]["hospitals"] == ["hospital-2"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["final"]["pooled"]["num_images"] == 18 and set(metrics["final"]["hospitals"]) == {"hospital-2"}


def test_evaluate_gives_the_numbers_of_the_run(trained, best, capsys):
    final = json.loads((trained / "metrics.json").read_text())["final"]["pooled"]
    assert json.loads(succeeds(capsys, "evaluate", best, "--device", "cpu", "--json")) == final
    shown = succeeds(capsys, "evaluate", best)
    assert f"{'auc':20} {final['auc']:.4f}\n" in shown and f"{'num_images':20} 18\n" in shown


def test_evaluate_on_another_split_and_other_data(trained, best, keys, tmp_path, capsys):
    assert json.loads(succeeds(capsys, "evaluate", best, "--json", "eval-split=val"))["num_images"] == 12
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (10, 16, 16), dtype=np.uint8), np.arange(10) % 2
    np.savez(tmp_path / "other.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    other = succeeds(capsys, "evaluate", best, "--json", f"dataset=npz:{tmp_path / 'other.npz'}", "num-labels=0")
    assert json.loads(other)["num_images"] == 10


def test_predict_writes_the_models_probabilities_of_new_scans(best, keys, tmp_path, capsys):
    images = load_dataset(str(keys["dataset"]), image_size=16).test.images[:5]
    folder = tmp_path / "scans"
    folder.mkdir()
    for k, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(folder / f"scan-{k}.png")
    out = succeeds(capsys, "predict", best, folder, "--device", "cpu")
    rows = list(csv.reader(out.splitlines()))
    assert rows[0] == ["scan", "p(healthy)", "p(ill)", "decision"]
    assert [row[0] for row in rows[1:]] == [f"scan-{k}.png" for k in range(5)]
    saved = checkpoint.load(best)
    model = JointModel(saved.config.model)
    model.load_state_dict(saved.state)
    probs = predict(model, images, device=CPU)
    np.testing.assert_allclose([[float(p) for p in row[1:3]] for row in rows[1:]], probs, atol=1e-6)
    assert [row[3] for row in rows[1:]] == [("healthy", "ill")[k] for k in probs.argmax(axis=1)]
    to_file = succeeds(capsys, "predict", best, folder, "-o", tmp_path / "new" / "probs.csv")
    assert to_file == f"5 scans: {tmp_path / 'new' / 'probs.csv'}\n"
    assert (tmp_path / "new" / "probs.csv").read_bytes().decode() == out


@pytest.mark.parametrize(("bias", "decision"), [((3.0, 3.0), "a; b"), ((-3.0, 3.0), "b"), ((-3.0, -3.0), "none")])
def test_a_multi_label_decision_names_every_finding(keys, tmp_path, capsys, bias, decision):
    images, labels = np.zeros((8, 16, 16), np.uint8), np.stack([np.arange(8) % 2, np.arange(8) // 4], axis=1)
    np.savez(tmp_path / "m.npz", train_images=images, train_labels=labels, class_names=np.array(["a", "b"]))
    np.savez(tmp_path / "new.npz", images=images[:2])
    path = untrained(
        tmp_path / "c.safetensors", keys, task="multi-label", bias=bias, dataset=f"npz:{tmp_path / 'm.npz'}"
    )
    rows = list(csv.reader(succeeds(capsys, "predict", path, tmp_path / "new.npz").splitlines()))
    assert rows[0] == ["scan", "p(a)", "p(b)", "decision"]
    assert [row[3] for row in rows[1:]] == [decision] * 2


def test_predict_needs_no_training_data(keys, tmp_path, capsys):
    path = untrained(tmp_path / "c.safetensors", keys, bias=(0.0, 2.0), dataset="npz:/gone.npz")
    np.savez(tmp_path / "new.npz", images=np.zeros((1, 16, 16), np.uint8))
    rows = list(csv.reader(succeeds(capsys, "predict", path, tmp_path / "new.npz").splitlines()))
    assert rows == [["scan", "p(class 0)", "p(class 1)", "decision"], ["new.npz[0]", "0.119203", "0.880797", "class 1"]]


def test_sample_draws_a_row_per_class_and_repeats_with_its_seed(best, tmp_path, capsys):
    def draw(name: str, seed: int) -> bytes:
        out = succeeds(capsys, "sample", best, "--per-class", 3, "--seed", seed, "-o", tmp_path / name)
        assert str(tmp_path / name) in out and out.startswith("6 samples")
        return (tmp_path / name).read_bytes()

    first, again, other = draw("a.png", 0), draw("b.png", 0), draw("c.png", 1)
    assert first == again != other
    width, height = Image.open(tmp_path / "a.png").size
    assert width >= 3 * 16 and height >= 2 * 16 and width > height


def test_explain_writes_a_gallery_with_grades(best, tmp_path, capsys, quick_referee):
    out = succeeds(capsys, "explain", best, "-o", tmp_path / "gallery", "--device", "cpu", "num-hospitals=2")
    assert out.strip().splitlines()[-1] == f"3 scans explained: {tmp_path / 'gallery' / 'index.html'}"
    assert (tmp_path / "gallery" / "index.html").stat().st_size > 1000
    grades = json.loads((tmp_path / "gallery" / "metrics.json").read_text())
    text = json.dumps(grades)
    assert '"num_scans": 3' in text and "validity" in text and "validity" in out


@pytest.fixture
def few_steps(monkeypatch):
    """Guided sampling has tests of its own; four steps tell the same here."""
    monkeypatch.setattr("jointdiff.prototypes.guided_samples", partial(guided_samples, num_steps=4))


def test_prototypes_writes_a_png_per_class_and_repeats_with_its_seed(best, tmp_path, capsys, few_steps):
    def draw(name: str, seed: int) -> dict[str, bytes]:
        arguments = ["--per-class", 2, "--candidates", 5, "--seed", seed, "-o", tmp_path / name, "--device", "cpu"]
        out = succeeds(capsys, "prototypes", best, *arguments)
        assert "'healthy': the model gives it" in out and "drawings, not patients" in out
        files = files_below(tmp_path / name)
        assert files and all(str(tmp_path / name / file) in out for file in files)
        return files

    first = draw("a", 0)
    assert set(first) <= {"class-0.png", "class-1.png"} and first == draw("b", 0) != draw("c", 1)
    width, height = Image.open(tmp_path / "a" / min(first)).size
    assert height == 4 * 16 and width in (4 * 16, 2 * 4 * 16 + 2)


def test_prototypes_says_which_class_has_none_and_leaves_no_older_picture(best, tmp_path, capsys, few_steps):
    saved = checkpoint.load(best)
    saved.state["head.linear.bias"] = torch.tensor([1e4, 0.0])
    path = checkpoint.save(tmp_path / "c.safetensors", saved.state, saved.config, round_number=2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "class-1.png").write_bytes(b"of an earlier call")
    out = succeeds(capsys, "prototypes", path, "--per-class", 1, "--candidates", 2, "-o", tmp_path / "out")
    assert "'ill': the model gives it 0 of 2 drawn images, so there is no prototype." in out
    assert set(files_below(tmp_path / "out")) == {"class-0.png"}


def test_explain_takes_scans_of_ones_own_and_a_target(best, keys, tmp_path, capsys):
    image = load_dataset(str(keys["dataset"]), image_size=16).test.images[0]
    Image.fromarray(image[..., 0]).save(tmp_path / "mine.png")
    arguments = ["--image", tmp_path / "mine.png", "--target", "ill", "-o", tmp_path / "out", "--device", "cpu"]
    out = succeeds(capsys, "explain", best, *arguments)
    assert out.startswith("mine.png: The model decides for 'healthy'")
    assert out.splitlines()[-1] == f"1 scans explained: {tmp_path / 'out' / 'index.html'}"
    before = files_below(tmp_path)
    code, error = fails(capsys, "explain", best, *arguments)
    assert code == 5 and "is not empty" in error and files_below(tmp_path) == before


def test_explain_by_another_method_gives_other_edits(best, keys, tmp_path, capsys):
    image = load_dataset(str(keys["dataset"]), image_size=16).test.images[0]
    np.savez(tmp_path / "mine.npz", images=image[None, ..., 0])
    for method in ("region", "tweedie"):
        succeeds(capsys, "explain", best, "--image", tmp_path / "mine.npz", "--method", method, "-o", tmp_path / method)
    one, two = (files_below(tmp_path / method)["0000-counterfactual.png"] for method in ("region", "tweedie"))
    assert one != two


def test_explain_counts_the_test_scans_it_is_asked_for(best, tmp_path, capsys, quick_referee, monkeypatch):
    monkeypatch.setattr("jointdiff.explanation.grade_samples", lambda *_, **__: {})
    out = succeeds(capsys, "explain", best, "--num-scans", 2, "-o", tmp_path / "gallery", "--device", "cpu")
    assert out.strip().splitlines()[-1].startswith("2 scans explained:")


# ---- how they say no


BAD_TRAINING = {
    "typo in a key": (["num-round=3"], 2, "Unknown key 'num-round' in run-config: did you mean 'num-rounds'?"),
    "no pair": (["num-rounds"], 2, "key=value"),
    "wrong type": (["num-rounds=ten"], 2, "num-rounds (run-config) must be of type int, not str: 'ten'"),
    "broken number": (["local-steps=2.5"], 2, "must be of type int, not float: 2.5"),
    "zero rounds": (["num-rounds=0"], 2, "num-rounds must be at least 1, not 0"),
    "unknown method": (["method=jont"], 2, "did you mean 'joint'?"),
    "unknown data set": (["dataset=pneumonamnist"], 2, "did you mean 'pneumoniamnist'?"),
    "unknown model": (["model=unet-27"], 2, "Unknown model preset 'unet-27': did you mean 'unet-28'?"),
    "missing npz": (["dataset=npz:/none/such.npz"], 3, "does not exist: /none/such.npz"),
    "other image size": (["image-size=28"], 2, "set image-size=16"),
    "too many labels": (["num-labels=49"], 2, "num-labels is 49, but the training set has 48 labelled images"),
    "too few labels": (["num-labels=1"], 2, "num-labels is 1, but there are 2 classes"),
    "hospital without data": (["num-hospitals=19"], 3, "leaves hospital-19 without images of the test split"),
    "hospital that is not there": (["--hospital", "2"], 2, "--hospital must be 1 to 1 (num-hospitals), not 2"),
    "no GPU": (["device=cuda"], 2, "device 'cuda' was asked for, but torch sees no GPU here"),
    "run-name that leaves": (["run-name=../up"], 2, "run-name '../up' must be"),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_bad_training_is_one_clear_error_and_nothing_is_made(keys, tmp_path, capsys, monkeypatch, case):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments, code, message = BAD_TRAINING[case]
    got, error = fails(capsys, "train", *pairs(keys, home=tmp_path / "home"), *arguments)
    assert got == code and message in error
    assert not list(tmp_path.rglob("runs/*"))


def write_npz(path: Path, **changes: np.ndarray) -> Path:
    images, labels = np.zeros((20, 16, 16), np.uint8), np.arange(20) % 2
    np.savez(path, **{"train_images": images, "train_labels": labels, **changes})
    return path


@pytest.mark.parametrize("case", ["truncated", "wrong shape", "wrong type", "one class"])
def test_bad_arrays_are_named(keys, tmp_path, capsys, case):
    changes = {
        "wrong shape": {"train_images": np.zeros((20, 16, 12), np.uint8)},
        "wrong type": {"train_images": np.zeros((20, 16, 16), np.float32)},
        "one class": {"train_labels": np.zeros(20, int)},
    }
    path = write_npz(tmp_path / "mine.npz", **changes.get(case, {}))
    if case == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    code, error = fails(capsys, "train", *pairs(keys, home=tmp_path / "home", dataset=f"npz:{path}"))
    assert code == 3 and "mine.npz" in error
    assert not list(tmp_path.rglob("runs/*"))


def test_a_download_without_network_ends_in_numbered_steps(keys, tmp_path, capsys, monkeypatch):
    def no_network(self):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("medmnist.BreastMNIST.download", no_network)
    values = pairs(keys, home=tmp_path / "home", dataset="breastmnist", data_root=tmp_path / "data", image_size=28)
    assert main(["train", *values]) == 3
    error = capsys.readouterr().err
    assert error.startswith("error: breastmnist.npz") and "Network is unreachable" in error
    assert all(f"\n  {k}. " in error for k in (1, 2, 3, 4)) and str(tmp_path / "data") in error
    assert not (tmp_path / "data").exists() and not list(tmp_path.rglob("runs/*"))


def test_an_existing_run_is_left_as_it_is(keys, trained, capsys):
    before = files_below(trained)
    code, error = fails(capsys, "train", *pairs(keys, home=trained.parents[1], run_name="tiny"))
    assert code == 5 and "'tiny' is there already" in error and "resume" in error and str(trained) in error
    assert files_below(trained) == before


def test_a_home_that_cannot_be_written_is_named(keys, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    code, error = fails(capsys, "train", *pairs(keys, home=tmp_path / "file" / "home"))
    assert code == 5 and f"The home folder {tmp_path / 'file' / 'home'} (home) cannot be written" in error
    assert files_below(tmp_path) == {"file": b"in the way"}


def test_ctrl_c_ends_the_run_with_130_and_says_so_in_its_diary(keys, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("jointdiff.local_work.train", interrupted)
    assert main(["train", *pairs(keys, home=tmp_path, run_name="stopped")]) == 130
    assert capsys.readouterr().err == "stopped by SIGINT.\n"
    last = read_events(tmp_path / "runs" / "stopped" / "events.jsonl")[-1]
    assert last["event"] == "run_failed" and last["reason"] == "interrupted"


def missing(path: Path, best: Path) -> str:
    return "There is no checkpoint at"


def truncated(path: Path, best: Path) -> str:
    path.write_bytes(best.read_bytes()[:-1000])
    return "is truncated"


def a_picture(path: Path, best: Path) -> str:
    Image.new("L", (64, 64)).save(path, format="PNG")
    return "is not a safetensors file, or damaged"


def a_pickle(path: Path, best: Path) -> str:
    torch.save(checkpoint.load(best).state, path)
    return "is not a safetensors file, or damaged"


def empty(path: Path, best: Path) -> str:
    path.touch()
    return "is not a safetensors file, or damaged"


def somebody_elses(path: Path, best: Path) -> str:
    save_file({"weight": torch.zeros(3)}, path)
    return "but not a JointDiff checkpoint"


def of_another_architecture(path: Path, best: Path) -> str:
    saved = checkpoint.load(best)
    state = {**saved.state, "unet.conv_in.weight": torch.zeros(99, 4, 3, 3)}
    checkpoint.save(path, state, saved.config, round_number=2)
    return "of another architecture: tensor 'unet.conv_in.weight' has shape [99, 4, 3, 3] in the checkpoint"


def diverged(path: Path, best: Path) -> str:
    saved = checkpoint.load(best)
    state = {name: tensor.clone() for name, tensor in saved.state.items()}
    state["head.linear.bias"][0] = float("nan")
    content = best.read_bytes()
    old, new = (s["head.linear.bias"].numpy().tobytes() for s in (saved.state, state))
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    return "hold NaN or infinity, first head.linear.bias"


@pytest.mark.parametrize("command", ["evaluate", "predict", "sample", "prototypes", "explain"])
@pytest.mark.parametrize(
    "damage", [missing, truncated, a_picture, a_pickle, empty, somebody_elses, of_another_architecture, diverged]
)
def test_a_bad_checkpoint_is_one_clear_error_and_nothing_is_written(best, tmp_path, capsys, command, damage):
    path = tmp_path / "bad.safetensors"
    message = damage(path, best)
    np.savez(tmp_path / "new.npz", images=np.zeros((1, 16, 16), np.uint8))
    before = files_below(tmp_path)
    scans = [tmp_path / "new.npz"] if command == "predict" else []
    output = [] if command == "evaluate" else ["-o", tmp_path / "out" / "result"]
    code, error = fails(capsys, command, path, *scans, *output)
    assert code == 4 and message in error and str(path) in error
    assert files_below(tmp_path) == before and not (tmp_path / "out").exists()


def test_images_that_the_checkpoint_was_not_made_for_are_refused(best, capsys):
    code, error = fails(capsys, "evaluate", best, "dataset=phantom:rgb", "image-size=28")
    assert code == 2 and "(1, 2, 'multi-class', 16), but phantom:rgb has (3, 2, 'multi-class', 28)" in error
    code, error = fails(capsys, "explain", best, "datset=phantom")
    assert code == 2 and "did you mean 'dataset'?" in error


def test_bad_scans_are_named_and_no_csv_is_begun(best, tmp_path, capsys):
    (tmp_path / "notes.png").write_text("no image")
    code, error = fails(capsys, "predict", best, tmp_path / "notes.png", "-o", tmp_path / "out.csv")
    assert code == 3 and "notes.png cannot be read as an image" in error
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--aspect", "squeeze"], "pad, crop or stretch, not 'squeeze'"), (["--window", "40"], "CENTRE,WIDTH"),
     (["--window", "40,0"], "a width above 1, not '40,0'")],
)  # fmt: skip
def test_predict_says_what_an_aspect_and_a_window_may_be(capsys, best, tmp_path, options, said):
    code, error = fails(capsys, "predict", best, tmp_path, *options)
    assert code != 0 and said in error


@pytest.mark.parametrize("command", ["predict", "sample", "explain"])
def test_an_output_that_cannot_be_written_is_named_before_the_work(best, tmp_path, capsys, monkeypatch, command):
    monkeypatch.setattr("jointdiff.checkpoint.load", lambda _: pytest.fail("the work has begun"))
    (tmp_path / "file").write_text("in the way")
    scans = [tmp_path] if command == "predict" else []
    code, error = fails(capsys, command, best, *scans, "-o", tmp_path / "file" / "out")
    assert code == 5 and "cannot be written" in error and str(tmp_path / "file" / "out") in error
    if command != "explain":
        code, error = fails(capsys, command, best, *scans, "-o", tmp_path)
        assert code == 5 and "is a folder" in error


@pytest.mark.parametrize("command", ["sample", "prototypes", "explain"])
def test_a_model_that_cannot_denoise_neither_draws_nor_edits(keys, tmp_path, capsys, command):
    path = untrained(tmp_path / "c.safetensors", keys, method="supervised")
    code, error = fails(capsys, command, path, "-o", tmp_path / "out")
    assert code == 4 and "trained without the denoising loss (method supervised)" in error


@pytest.mark.parametrize("command", ["prototypes", "explain"])
def test_a_head_that_was_never_solved_is_not_explained(keys, tmp_path, capsys, command):
    path = untrained(tmp_path / "c.safetensors", keys, method="two-stage", bias=(0.0, 1.0))
    code, error = fails(capsys, command, path, "-o", tmp_path / "out")
    assert code == 4 and "no classifier" in error and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "--per-class", "0"], "--per-class must be at least 1, not 0"),
        (["explain", "--hospital", "2"], "--hospital must be 1 to 1, not 2"),
        (["explain", "explain=0"], "explain=0 asks for no scan"),
        (["explain", "--num-scans", "0"], "--num-scans must be at least 1, not 0"),
        (["explain", "--method", "regions"], "Unknown method 'regions' of explaining: did you mean 'region'?"),
        (["explain", "--target", "ill"], "name them with --image"),
        (["explain", "--image", "x.png", "--num-scans", "3"], "--num-scans mean nothing"),
        (["prototypes", "--per-class", "0"], "--per-class must be at least 1, not 0"),
        (["prototypes", "--candidates", "3"], "--candidates must be at least --per-class (4), not 3"),
        (["evaluate", "--device", "tpu"], "device must be auto, cpu, cuda or cuda:N, not 'tpu'"),
    ],
)
def test_bad_options_of_the_other_commands(best, tmp_path, capsys, arguments, message):
    command, *options = arguments
    output = ["-o", tmp_path / "out"] if command != "evaluate" else []
    code, error = fails(capsys, command, best, *options, *output)
    assert code == 2 and message in error and not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["train", "--hospitl", "2"], ["predict", "c", "s", "--seed", "1"], ["evaluat"]])
def test_what_argparse_refuses_ends_with_code_2_and_an_error_line(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "error: " in capsys.readouterr().err.strip().splitlines()[-1]


def test_the_installed_command_answers_a_typo_without_loading_torch():
    code = (
        "import sys; from jointdiff.cli import main; code = main(['train', 'num-round=3']); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr == "error: Unknown key 'num-round' in run-config: did you mean 'num-rounds'?\n"
