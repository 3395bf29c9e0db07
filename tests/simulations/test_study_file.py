"""Study files: what they may say, and what is told of a mistake in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jointdiff.errors import ConfigError
from simulations.study.file import parse_study, read_study

GOOD: dict[str, Any] = {
    "name": "s",
    "base": {"num-rounds": 2},
    "settings": {"iid": {"partition": "iid"}, "skew": {"partition": "dirichlet:0.3"}},
    "methods": {
        "joint": "joint:joint-warmup+pseudo-weight=0.1+weighting=labels",
        "sup": {"kind": "supervised", "training": {"learning-rate": 0.002}, "run": {"strategy": "fedprox"}},
        "longer": {"like": "sup", "seconds-of": "joint"},
        "pixels": None,
    },
    "num-labels": [6, 12],
    "split-seeds": "0-2,5",
    "bounds": {"lower": "sup", "upper": "sup"},
    "local-only": True,
    "centralised": "joint",
}


def test_a_study_file_is_read():
    study = parse_study(GOOD, where="f")
    assert study.split_seeds == (0, 1, 2, 5) and study.seeds == (0,) and study.num_labels == (6, 12)
    joint, sup, longer = (study.methods[name] for name in ("joint", "sup", "longer"))
    assert (joint.kind, joint.preset, joint.training, joint.run) == (
        "joint", "joint-warmup", {"pseudo-weight": 0.1}, {"weighting": "labels"},
    )  # fmt: skip
    assert (sup.kind, sup.training, sup.run) == ("supervised", {"learning-rate": 0.002}, {"strategy": "fedprox"})
    assert (longer.kind, longer.training, study.seconds_of) == (sup.kind, sup.training, {"longer": ("sup", "joint")})
    assert study.reference == "joint" and study.local_only == ("joint", "sup") and study.centralised == ("joint",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metods": {}}, "Unknown key 'metods' in f: did you mean 'methods'?"),
        ({"base": {"num-round": 2}}, "Unknown key 'num-round' in base in f: did you mean 'num-rounds'?"),
        ({"base": {"num-rounds": "two"}}, "must be of type int"),
        ({"base": {"num-labels": 12}}, "num-labels cannot be set in base in f: it stands on top"),
        ({"settings": {"iid": {"partitio": "iid"}}}, "Unknown key 'partitio' in setting 'iid' in f"),
        ({"settings": {"a b": {}}}, "'a b' must be 1 to 24 letters"),
        ({"methods": {"joint": "jiont"}}, "Unknown method 'jiont': did you mean 'joint'?"),
        ({"methods": {"joint": {"knd": "joint"}}}, "Unknown key 'knd' in method 'joint' in f: did you mean 'kind'?"),
        ({"methods": {"joint": {"training": {"ridg": 1}}}}, "Unknown key 'ridg' in 'joint': did you mean 'ridge'?"),
        ({"methods": {"joint": "joint:joint-warm"}}, "did you mean 'joint-warmup'?"),
        ({"methods": {"pixels": {"training": {"ridge": 1.0}}}}, "'pixels' trains no network"),
        ({"methods": {**GOOD["methods"], "longer": {"like": "sup"}}}, "`like` and `seconds-of` go together"),
        ({"methods": {**GOOD["methods"], "longer": {"like": "supp", "seconds-of": "joint"}}}, "did you mean 'sup'?"),
        ({"methods": {**GOOD["methods"], "longer": {"like": "pixels", "seconds-of": "joint"}}}, "no steps of its own"),
        ({"reference": "joit"}, "reference in f: unknown method 'joit': did you mean 'joint'?"),
        ({"bounds": {"uper": "sup"}}, "Unknown key 'uper' in bounds in f: did you mean 'upper'?"),
        ({"bounds": {"upper": "pixels"}}, "'pixels' cannot be this: it trains no network"),
        ({"exclude": [{"setting": "idd", "method": "sup"}]}, "unknown setting 'idd': did you mean 'iid'?"),
        ({"runner": "flower"}, "runner in f: unknown value 'flower'"),
        ({"num-labels": [6, 6]}, "num-labels in f names a number twice"),
        ({"num-labels": []}, "needs the key 'num-labels'"),
        ({"split-seeds": "0-x"}, "split-seeds in f takes numbers and ranges"),
        ({"workers": "many"}, "workers in f must be a whole number"),
        ({"name": "../up"}, "'../up' must be 1 to 20 letters"),
    ],
)
def test_a_mistake_is_named(change: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as told:
        parse_study({**GOOD, **change}, where="f")
    assert message in str(told.value)


def test_a_key_that_stands_twice_is_no_choice_of_ours(tmp_path: Path):
    path = tmp_path / "s.yaml"
    path.write_text("name: s\nmethods: {joint: }\nnum-labels: 6\nnum-labels: 12\n")
    with pytest.raises(ConfigError, match="the key 'num-labels' stands twice"):
        read_study(path)
    path.write_text("name: [")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_study(path)


def test_relative_paths_begin_at_the_file_and_overrides_win(tmp_path: Path):
    path = tmp_path / "s.yaml"
    path.write_text("name: s\nbase: {model: m.yaml, data-root: d}\nmethods: {joint: }\nnum-labels: 6\n")
    base = read_study(path, {"data-root": "/elsewhere"}).base
    assert base == {"model": str(tmp_path / "m.yaml"), "data-root": "/elsewhere"}


@pytest.mark.parametrize("name", ["demo", "pneumoniamnist", "pneumoniamnist_cpu"])
def test_shipped_studies_can_be_read(name: str):
    from simulations.study.command import find_study

    assert read_study(find_study(name)).name == name
