"""The gallery of many scans on a real disk that fills up, and after a real process that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jointdiff.cli import main
from jointdiff.explanation_parts import FOLDER

NUM_SCANS = 160  # three batches


@pytest.fixture(scope="module")
def best(tmp_path_factory, tiny_files) -> Path:
    """A checkpoint whose data set has many test scans: brighter scans are ill."""
    home = tmp_path_factory.mktemp("many")
    with np.load(tiny_files / "data.npz") as file:
        arrays = dict(file)
    labels = np.arange(NUM_SCANS) % 2
    noise = np.random.default_rng(3).integers(0, 120, (NUM_SCANS, 16, 16))
    arrays |= {"test_images": (noise + labels[:, None, None] * 60).astype(np.uint8), "test_labels": labels}
    np.savez(home / "many.npz", **arrays)
    keys = {
        "dataset": f"npz:{home / 'many.npz'}", "image-size": 16, "model": tiny_files / "model.yaml", "num-rounds": 1,
        "local-steps": 2, "batch-size": 4, "device": "cpu", "run-name": "tiny", "home": home,
    }  # fmt: skip
    assert main(["train", *(f"{k}={v}" for k, v in keys.items())]) == 0
    return home / "runs" / "tiny" / "checkpoints" / "best.safetensors"


QUICK = """
import jointdiff.appointed_referee, jointdiff.explanation
from jointdiff.referee import train_referee
jointdiff.appointed_referee.cached_referee = lambda _, train, n, task, **__: train_referee(train, n, task, steps=2)
jointdiff.explanation.grade_samples = lambda *_, **__: {}
jointdiff.explanation.grade = lambda *_, **__: {"validity": 1.0}
"""


@pytest.fixture
def quick(quick_referee, monkeypatch) -> None:
    """What is graded has its own tests, and takes long."""
    monkeypatch.setattr("jointdiff.explanation.grade_samples", lambda *_, **__: {})
    monkeypatch.setattr("jointdiff.explanation.grade", lambda *_, **__: {"validity": 1.0})


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A small real file system; `mount -o remount,size=...` lets it grow."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=250k", "tmpfs", folder], check=False).returncode
    ):
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=False)


def arguments(best: Path, folder: Path) -> list[str]:
    return [
        "explain", str(best), "--num-scans", str(NUM_SCANS), "--method", "inversion", "--device", "cpu",
        "-o", str(folder),
    ]  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    """Return what a gallery holds, apart from its grades: how long it took stands among them."""
    clocked = ("metrics.json", "index.html")
    return {
        p.name: p.read_bytes() for p in folder.iterdir() if p.name not in clocked and not p.name.startswith("page-")
    }


def check_whole_files(folder: Path) -> None:
    """Nothing half-written: no temporary file, every picture opens, every part is whole, no page yet."""
    assert not (folder / "index.html").exists() and not list(folder.rglob("*.tmp"))
    for picture in folder.glob("*.png"):
        with Image.open(picture) as image:
            image.load()
    for part in (folder / FOLDER).glob("*.npz"):
        with np.load(part) as file:
            assert file["edited"].dtype == np.uint8


def test_a_disk_that_fills_up_is_one_error_and_the_gallery_is_carried_on(
    best, disk, tmp_path, capfd, quick, monkeypatch
):
    assert main(arguments(best, tmp_path / "whole")) == 0
    capfd.readouterr()
    for _ in range(2):  # also a second time, on the disk that is full already
        assert main(arguments(best, disk / "page")) == 5
        out, error = capfd.readouterr()
        assert not out and [line for line in error.splitlines() if "error" in line] == [
            "error: The explanations cannot be written: No space left on device. What is whole stays: free the disk "
            "and explain again, and only what is missing is made."
        ]
        check_whole_files(disk / "page")
    kept = len(list((disk / "page").glob("*.png")))
    assert kept > 30, "it broke in the middle of the gallery"
    subprocess.run(["mount", "-o", "remount,size=40m", disk], check=True)
    monkeypatch.setattr("jointdiff.explanation.METHODS", {"inversion": None})  # nothing is searched again
    assert main(arguments(best, disk / "page")) == 0
    assert files(disk / "page") == files(tmp_path / "whole") and len(files(disk / "page")) == 3 * NUM_SCANS + 1


def test_scans_by_hand_leave_nothing_on_a_full_disk(best, disk, tmp_path, capfd):
    with np.load(best.parents[3] / "many.npz") as arrays:
        np.savez(tmp_path / "scans.npz", images=arrays["test_images"][:64])
    (disk / "ballast").write_bytes(bytes(200_000))
    call = ["explain", str(best), "--image", str(tmp_path / "scans.npz"), "--method", "inversion", "--device", "cpu"]
    assert main([*call, "-o", str(disk / "page")]) == 5
    error = capfd.readouterr().err
    assert "The explanations cannot be written: No space left on device" in error and error.count("\n") == 1
    assert [p.name for p in disk.iterdir()] == ["ballast"]
    (disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
    assert main([*call, "-o", str(disk / "page")]) == 0


def test_a_gallery_whose_process_was_killed_is_carried_on(best, tmp_path, quick):
    """Killed twice, while edits are searched and while pictures are written; it ends as if nobody had."""
    code = f"import sys\n{QUICK}from jointdiff.cli import main\nsys.exit(main(sys.argv[1:]))"
    folder = tmp_path / "page"
    for what, count in ((f"{FOLDER}/*.npz", 2), ("*.png", 40)):
        process = subprocess.Popen([sys.executable, "-c", code, *arguments(best, folder)], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(list(folder.glob(what))) < count and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was over before it could be killed"
        assert not (folder / "index.html").exists()
    (folder / ".0000-scan.png.killed.tmp").write_bytes(b"half")
    before = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.png")}
    assert len(before) >= 40
    assert main(arguments(best, folder)) == 0
    after = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.png")}
    assert sum(after[name] == stamp for name, stamp in before.items()) >= len(before) - 3, "kept as they were"
    assert main(arguments(best, tmp_path / "whole")) == 0
    assert files(folder) == files(tmp_path / "whole")
