from __future__ import annotations

import importlib.util
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from client.cli import main
from client.data_look import class_names, look
from client.init import run
from client.site_config import read
from jointdiff.data.site_source import read_source
from jointdiff.errors import ConfigError, DataError

_spec = importlib.util.spec_from_file_location("_site_tools", Path(__file__).with_name("site_tools.py"))
assert _spec is not None and _spec.loader is not None
tools = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tools)

CLASSES = "healthy=normal; lesion=nodule"


def test_answers_become_a_site_yaml_that_is_read_back(tmp_path, capsys):
    tools.write_scans(tmp_path / "my scans ä", per_class=3)
    answers = ["server=fed.example.org:8443", "path=my scans ä", f"classes={CLASSES}", "epsilon=8", "delta=1e-5"]
    assert main(["init", "--site", str(tmp_path), *answers]) == 0
    told = capsys.readouterr().out
    assert "9 images; classes: nodule (3), normal (3); without a label: 3" in told
    commands = [word for word in told.split() if word in ("keygen", "preview", "preflight", "start")]
    assert commands == ["keygen", "preview", "preflight", "start"]
    config = read(tmp_path)
    assert config.federation is not None and config.data is not None
    assert config.federation.server == "fed.example.org:8443" and config.federation.key == tmp_path / "site.key"
    assert config.data.path == tmp_path / "my scans ä" and config.data.classes == (
        ("healthy", ("normal",)), ("lesion", ("nodule",)),
    )  # fmt: skip
    assert (config.policy.epsilon, config.policy.delta, config.policy.min_cell_count) == (8, 1e-5, 10)
    text = (tmp_path / "site.yaml").read_text()
    assert "# What epsilon has to protect" in text and "patient-" not in text
    assert stat.S_IMODE((tmp_path / "site.yaml").stat().st_mode) == 0o600
    assert main(["init", "--site", str(tmp_path), *answers]) == ConfigError.exit_code
    assert "not overwritten" in capsys.readouterr().err and (tmp_path / "site.yaml").read_text() == text


def test_an_answers_file_works_without_a_terminal(tmp_path):
    tools.write_scans(tmp_path / "scans", per_class=2)
    answers = {"server": "10.0.0.1:443", "path": "scans", "classes": {"lesion": ["nodule"], "healthy": "normal"}}
    (tmp_path / "answers.yaml").write_text(yaml.safe_dump(answers))
    command = [sys.executable, "-m", "client.cli", "init", "--answers", str(tmp_path / "answers.yaml"), "device=cpu"]
    environment = {**os.environ, "JOINTDIFF_HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read(tmp_path).device == "cpu" and "--site" not in done.stdout
    (tmp_path / "site.yaml").unlink()
    done = subprocess.run(command[:4], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == ConfigError.exit_code and "nobody to ask" in done.stderr
    assert not (tmp_path / "site.yaml").exists()


def test_asking_checks_every_answer_at_once(tmp_path):
    tools.write_scans(tmp_path / "scans", per_class=2)
    typed = iter(["fed.example.org", "fed.example.org:8443", "", "", "folders", "folder", "nowhere", "scans", "none",
                  "lesion=mass", "lesion=nodule", "tpu", "", "-1", "", "2", ""])  # fmt: skip
    prompts: list[str] = []
    said: list[str] = []

    def ask(prompt: str) -> str:
        prompts.append(prompt)
        return next(typed)

    run(tmp_path, say=said.append, ask=ask)
    told = "\n".join(said)
    for words in ("must be HOST:PORT", "did you mean 'folder'", "does not exist", "Your data have no class mass",
                  "device must be auto", "epsilon must be a number above 0", "at least 3, not '2'"):  # fmt: skip
        assert words in told, words
    assert next(typed, None) is None and "[ca.crt]" in prompts[2] and "Found: 6 images" in told
    config = read(tmp_path)
    assert config.data is not None and config.data.classes == (("lesion", ("nodule",)),)
    assert config.policy.epsilon is None and config.policy.min_cell_count == 10


@pytest.mark.parametrize(("pairs", "error", "words"), [
    (["path=scans"], ConfigError, "HOST:PORT"),
    (["server=h:1", "path=nowhere"], DataError, "does not exist"),
    (["server=h:1", "path=scans", "colour=red"], ConfigError, "Unknown answer 'colour'"),
    (["server=h:1", "path=scans", "variant=rgb"], ConfigError, "does not fit kind folder"),
    (["server=h:1", "kind=npz"], ConfigError, "A path is needed"),
    (["server=h:1", "path=scans", "classes=lesion"], ConfigError, "Write THEIRS=YOURS"),
    (["server"], ConfigError, "KEY=VALUE"),
])  # fmt: skip
def test_a_bad_answer_is_one_clear_error_and_nothing_is_written(tmp_path, pairs, error, words):
    tools.write_scans(tmp_path / "scans", per_class=2)
    with pytest.raises(error) as caught:
        run(tmp_path, pairs=pairs, say=lambda _: None)
    assert words in str(caught.value) and not (tmp_path / "site.yaml").exists()


def test_a_table_is_asked_for_its_columns(tmp_path):
    tools.write_scans(tmp_path / "scans", per_class=2)
    rows = [f"scans/{name}/patient-{k}.png,{name},{k}" for name in ("normal", "nodule") for k in range(2)]
    (tmp_path / "table.csv").write_text("\n".join(["file,finding,who", *rows]))
    said: list[str] = []
    pairs = ["server=h:1", "kind=csv_table", "path=table.csv", "path-column=file", "label-column=finding",
             "patient-column=who"]  # fmt: skip
    run(tmp_path, pairs=pairs, say=said.append)
    source = read(tmp_path).data
    assert source is not None and dict(source.columns) == {"path": "file", "label": "finding", "patient": "who"}
    assert any("4 images; classes: nodule (2), normal (2)" in line and "patients are known" in line for line in said)


def test_arrays_are_looked_at_too(tmp_path, tiny_files):
    source = read_source({"kind": "npz", "path": str(tiny_files / "data.npz")}, "x", tmp_path)
    seen = look(source)
    assert seen is not None and seen.num_images == 66 and seen.classes == {"healthy": 33, "ill": 33}
    assert class_names(source) == ("healthy", "ill")
    np.save(tmp_path / "one.npz", np.zeros(3))
    with pytest.raises(DataError):
        look(read_source({"kind": "npz", "path": str(tmp_path / "one.npz")}, "x", tmp_path))
    assert look(read_source({"kind": "phantom"}, "x", tmp_path)) is None
    assert len(class_names(read_source({"kind": "phantom"}, "x", tmp_path))) == 2


def test_what_could_not_be_read_back_is_not_left_behind(tmp_path, monkeypatch):
    tools.write_scans(tmp_path / "scans", per_class=2)
    monkeypatch.setattr("client.init.text_of", lambda _: "typo: 1\n")
    with pytest.raises(ConfigError, match="Unknown section 'typo'"):
        run(tmp_path, pairs=["server=h:1", "path=scans"], say=lambda _: None)
    assert not (tmp_path / "site.yaml").exists()
