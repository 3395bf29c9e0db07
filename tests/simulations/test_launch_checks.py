"""What the launcher finds before it starts anything: one clear error in the last line, the right code, nothing left."""

from __future__ import annotations

import tomllib
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
import yaml

from jointdiff.config import Config, RunConfig, to_mapping
from jointdiff.overrides import to_toml
from simulations import checks
from simulations.launch import main

APP = Path(checks.__file__).parent / "3_hospitals"


def fails(
    capsys: pytest.CaptureFixture[str], home: Path, *settings: str, simulation: str = "3_hospitals"
) -> tuple[int, str]:
    """Run the launcher in a home, expect it to fail, and return its code and last line."""
    code = main([simulation, "-c", f"home='{home}'", *(part for text in settings for part in ("-c", text))])
    shown = capsys.readouterr()
    assert code != 0
    assert "Starting" not in shown.out  # Flower was not started
    assert len(shown.err.strip().splitlines()) == 1
    assert not list(home.glob("runs/*")) and not list(home.glob("flower/*"))
    return code, shown.err.strip()


def test_the_app_has_every_key_with_the_default_of_the_library() -> None:
    assert checks.app_defaults(APP) == to_mapping(RunConfig())


def test_the_private_app_differs_in_few_defaults_and_is_private() -> None:
    private = checks.app_defaults(APP.with_name("3_hospitals_private"))
    default = to_mapping(RunConfig())
    assert private.keys() == default.keys()
    changed = {key for key in default if private[key] != default[key]}
    assert changed == {"num-labels", "num-rounds", "local-steps", "batch-size", "target-epsilon", "explain"}


SETTINGS = {
    "1_labelled_9_unlabelled": {"num-hospitals": 10, "num-labels": 0, "label-split": "hospitals:1", "explain": 8},
    "labels_at_server": {"label-split": "server"},
    "class_gaps": {"dataset": "phantom:3-classes", "partition": "gaps:1"},
    "label_skew": {"partition": "dirichlet:0.1"},
    "unequal_labels": {"label-split": "dirichlet:0.3"},
    "quantity_skew": {"partition": "quantity:0.3"},
    "scanner_shift": {"partition": "scanner"},
    "50_hospitals": {"num-hospitals": 50, "num-labels": 100, "participation": 0.1, "explain": 2},
    "autoencoder_128": {
        "image-size": 128,
        "partition": "scanner",
        "method": "autoencoder",
        "batch-size": 16,
        "explain": 0,
    },
    "latent_128": {
        "image-size": 128,
        "latent": True,
        "num-rounds": 18,
        "local-steps": 60,
        "explain": 16,
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_app_of_a_setting_differs_in_what_makes_it_one_and_can_start(name: str, tmp_path: Path) -> None:
    app = checks.find_app(name)
    assert checks.app_defaults(app) == to_mapping(RunConfig()) | SETTINGS[name]
    _, found, rest = (app / "README.md").read_text().partition("| differs |")
    lines = takewhile(lambda line: line.startswith("|"), (found + rest).splitlines()[2:])
    told = {key.strip(): value.strip() for key, value in (line.split("|")[1:3] for line in lines)}
    assert told == {key: str(value).lower() for key, value in SETTINGS[name].items()}
    checks.check(checks.prepare(app, [f"home={tmp_path}"]))


def test_the_app_on_latents_takes_a_frozen_autoencoder_too_and_names_one_that_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "none.safetensors"
    code, line = fails(capsys, tmp_path, f"latent=false autoencoder={missing}", simulation="latent_128")
    assert code == 4 and f"There is no autoencoder at {missing}" in line


@pytest.mark.parametrize("name", ["3_hospitals", "3_hospitals_private", *SETTINGS])
def test_an_app_carries_no_code_and_no_dependencies(name: str) -> None:
    app = APP.with_name(name)
    assert not [path for path in app.rglob("*") if path.suffix == ".py"]
    project = tomllib.loads((app / "pyproject.toml").read_text())
    assert project["project"]["dependencies"] == []
    assert project["tool"]["flwr"]["app"]["components"] == {
        "serverapp": "server.app:app",
        "clientapp": "client.app:app",
    }


def test_the_readme_documents_every_key_with_its_default() -> None:
    rows = [line for line in (APP / "README.md").read_text().splitlines() if line.startswith("| `")]
    documented = {row.split("`")[1]: row.split("|")[2].strip().strip("`") for row in rows}
    assert documented == {
        key: to_toml({"": value}).partition("= ")[2].strip().strip('"') or "''"
        for key, value in to_mapping(RunConfig()).items()
    }


@pytest.mark.parametrize(
    ("setting", "code", "message"),
    [
        ("datset=phantom", 2, "Unknown key 'datset' in run-config: did you mean 'dataset'?"),
        ("dataset=pneumonamnist", 2, "did you mean 'pneumoniamnist'?"),
        ("num-rounds=0", 2, "num-rounds must be at least 1, not 0"),
        ("num-rounds=ten", 2, "must be of type int, not str: 'ten'"),
        ("local-steps=2.5", 2, "must be of type int, not float"),
        ("method=fixmach", 2, "did you mean 'fixmatch'?"),
        ("partition=dirichlet:zero", 2, "needs a positive number"),
        ("model=unet-2", 2, "did you mean 'unet-28'?"),
        ("preset=missing.yaml", 2, "does not exist"),
        ("run-name=../evil", 2, "run-name"),
        ("num-labels=1", 2, "num-labels is 1"),
        ("num-labels=1000000", 2, "num-labels is 1000000"),
        ("dataset=npz:/missing.npz", 3, "does not exist"),
        ("num-hospitals=3001", 3, "hospital"),
        ("rounds", 2, "key=value"),
    ],
)
def test_one_clear_error(
    setting: str, code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    got, line = fails(capsys, tmp_path, setting)
    assert got == code
    assert line.startswith("error: ") and message in line


def test_a_truncated_npz_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scans.npz"
    images = np.zeros((20, 28, 28), dtype=np.uint8)
    np.savez(
        path, train_images=images, train_labels=np.arange(20) % 2, test_images=images, test_labels=np.arange(20) % 2
    )
    path.write_bytes(path.read_bytes()[:1000])
    code, line = fails(capsys, tmp_path / "home", f"dataset=npz:{path}")
    assert code == 3 and "scans.npz" in line


def test_an_unwritable_home(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    assert main(["-c", f"home={blocked}/home"]) == 5
    assert "cannot be written" in capsys.readouterr().err


def test_an_existing_run_is_refused_and_untouched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    assert main(["-c", f"home={tmp_path} run-name=mine"]) == 5
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "mine" in line and "resume" in line
    assert not list(folder.iterdir())


def test_an_unknown_simulation_offers_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = fails(capsys, tmp_path, simulation="3_hospital")
    assert code == 2 and "did you mean '3_hospitals'?" in line


def test_a_dry_run_prints_the_configuration_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--dry-run", "-c", f"home={tmp_path} num-labels=20 run-name=try"]) == 0
    config = Config.from_dict(yaml.safe_load(capsys.readouterr().out))
    assert (config.run.num_labels, config.run.run_name, config.run.home) == (20, "try", str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_run_without_a_name_gets_one_that_is_valid_and_new(tmp_path: Path) -> None:
    names = {checks.prepare(APP, [f"home={tmp_path}", "dataset='npz:/x/my scans.npz'"]).run_name for _ in range(3)}
    assert all(name.startswith("my-scans-joint-2") for name in names)


def test_home_is_explicit_and_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOINTDIFF_HOME", str(tmp_path / "from-environment"))
    monkeypatch.chdir(tmp_path)
    assert checks.prepare(APP, []).home == str(tmp_path / "from-environment")
    assert checks.prepare(APP, ["home=here"]).home == str(tmp_path / "here")
