from __future__ import annotations

import os
import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest

from jointdiff.config import RunConfig, to_mapping
from jointdiff.errors import ConfigError
from jointdiff.overrides import absolute_paths, key_types, parse_overrides, to_toml


def test_the_type_of_the_key_decides() -> None:
    text = """num-rounds=3 run-name=2024 model='unet-28' home="/a b/c=d" dataset=npz:/x.npz data-root="""
    assert parse_overrides([text]) == {
        "num-rounds": 3, "run-name": "2024", "model": "unet-28", "home": "/a b/c=d", "dataset": "npz:/x.npz",
        "data-root": "",
    }  # fmt: skip


def test_later_texts_win_and_empty_ones_mean_nothing() -> None:
    assert parse_overrides(["seed=1 split-seed=5", "", "  ", "seed=2"]) == {"seed": 2, "split-seed": 5}


@pytest.mark.parametrize("text", ["seed", "seed = 1", "=1", "seed=1 junk", 'home="/a', "home='a'b"])
def test_what_is_no_pair_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="key=value"):
        parse_overrides([text])


def test_a_typo_is_answered_with_the_nearest_key() -> None:
    with pytest.raises(ConfigError, match="did you mean 'num-labels'"):
        parse_overrides(["num-label=3"])


def test_toml_gives_back_what_went_in() -> None:
    values = {**to_mapping(RunConfig()), "home": 'C:\\new "x"\t\x7f é 😀', "seed": 7}
    assert tomllib.loads(to_toml(values)) == values


def test_every_key_has_a_type_that_flower_can_carry() -> None:
    assert len(key_types()) == len(fields(RunConfig))
    assert set(key_types().values()) <= {int, float, str, bool}


def test_paths_start_where_the_user_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunConfig(dataset="npz:mine.npz", sites_home="sites", preset="p.yaml", model="unet-28", home="~/h")
    absolute = absolute_paths(run)
    assert absolute.dataset == f"npz:{tmp_path}/mine.npz"
    assert absolute.sites_home == f"{tmp_path}/sites"
    assert absolute.preset == f"{tmp_path}/p.yaml"
    assert absolute.home == os.path.expanduser("~/h")
    assert absolute.model == "unet-28"
    assert absolute.data_root == ""
    assert absolute_paths(replace(run, data_root="d")).dataset == f"npz:{tmp_path}/d/mine.npz"
    assert absolute_paths(absolute) == absolute
