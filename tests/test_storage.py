from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jointdiff import storage
from jointdiff.errors import RunError


def test_write_replaces_a_file_whole(tmp_path: Path) -> None:
    path = storage.write_atomic(tmp_path / "a" / "f.txt", "old")
    assert storage.write_atomic(path, "néw\r\n") == path and path.is_absolute()
    assert path.read_bytes() == "néw\r\n".encode()
    assert os.listdir(path.parent) == ["f.txt"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = storage.write_atomic(tmp_path / "f", b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="No space left"):
        storage.write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["f"]


def test_a_disk_that_takes_no_more_is_named_as_the_system_names_it_whoever_wrote(tmp_path: Path) -> None:
    """In a process of its own, which may write no file beyond a kilobyte."""
    code = f"""
import pathlib, resource, signal
import numpy as np
from safetensors.numpy import save_file
from jointdiff import storage
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with storage.atomic_path(pathlib.Path({str(tmp_path)!r}, "state")) as temporary:
        save_file({{"w": np.zeros(1000)}}, temporary)
except OSError as error:
    print(error.errno, error.strerror)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == f"{errno.EFBIG} File too large", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = storage.write_atomic(tmp_path / "f", b"old")
    with pytest.raises(KeyboardInterrupt), storage.atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["f"]


def test_the_data_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    real_sync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda f: (steps.append("dir" if stat.S_ISDIR(os.fstat(f).st_mode) else "file"), real_sync(f))[1]
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (steps.append("rename"), real_replace(a, b))[1])
    storage.write_atomic(tmp_path / "f", b"x")
    assert steps == ["file", "rename", "dir"]


def test_written_files_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        path = storage.write_atomic(tmp_path / "f", b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_json_of_numpy_and_of_what_is_no_number(tmp_path: Path) -> None:
    path = storage.write_json(tmp_path / "m.json", {"a": np.array([1.5, np.nan]), "b": np.int64(3), "c": (Path("x"),)})
    assert storage.read_json(path) == {"a": [1.5, None], "b": 3, "c": ["x"]}


def test_json_without_a_form_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="object"):
        storage.write_json(tmp_path / "m.json", {"a": object()})
    assert not os.listdir(tmp_path)


def test_missing_and_damaged_json_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('{"a": ')
    with pytest.raises(RunError, match="damaged"):
        storage.read_json(tmp_path / "cut.json")
    with pytest.raises(RunError, match="missing"):
        storage.read_json(tmp_path / "no.json")


def test_home_prefers_the_key_then_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.delenv(storage.HOME_VARIABLE, raising=False)
    assert storage.home() == tmp_path / "me" / ".jointdiff"
    monkeypatch.setenv(storage.HOME_VARIABLE, str(tmp_path / "env"))
    assert storage.home() == tmp_path / "env"
    assert storage.home("~/here") == tmp_path / "me" / "here"
    monkeypatch.chdir(tmp_path)
    assert storage.home("relative") == tmp_path / "relative" and not os.listdir(tmp_path / "relative")


def test_an_unwritable_home_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file.* cannot be written: .*home=") as caught:
        storage.home(str(tmp_path / "file"))
    assert caught.value.exit_code == 5
    with pytest.raises(RunError, match="cannot be written"):
        storage.home(str(tmp_path / "file" / "below"))

    def read_only(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    # the tests may run as root, who may write anywhere: stand in for the trial file
    monkeypatch.setattr(storage.tempfile, "NamedTemporaryFile", read_only)
    with pytest.raises(RunError, match="Permission denied"):
        storage.home(str(tmp_path))


def test_an_existing_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    folder = storage.create_run(tmp_path, "a")
    assert folder == tmp_path / "runs" / "a"
    (folder / "events.jsonl").write_text("kept")
    storage.create_run(tmp_path, "b")
    with pytest.raises(RunError, match=r"'a' is there already.*resume"):
        storage.create_run(tmp_path, "a")
    assert (folder / "events.jsonl").read_text() == "kept"
    assert (tmp_path / "runs" / "latest").resolve() == tmp_path / "runs" / "b", "a refused run is not the latest"


def test_latest_points_at_the_newest_and_moves_with_the_home(tmp_path: Path) -> None:
    for name in ("a", "b"):
        storage.create_run(tmp_path / "home", name)
    assert sorted(os.listdir(tmp_path / "home" / "runs")) == ["a", "b", "latest"]
    (tmp_path / "home").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "runs" / "latest").resolve().name == "b"


@pytest.mark.parametrize("name", ["", "..", "a/b", "latest", ".hidden", "x" * 81, "a\n"])
def test_names_that_are_no_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="run-name"):
        storage.create_run(tmp_path, name)
    assert not (tmp_path / "runs").exists()
