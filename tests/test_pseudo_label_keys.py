from dataclasses import fields, replace

import pytest

from jointdiff.config import RunConfig, TrainingConfig, resolve
from jointdiff.errors import ConfigError
from jointdiff.presets import preset_names
from jointdiff.pseudo_label_keys import ALIGNMENTS, POLICIES, TEACHERS, check_pseudo_labels

GOOD = TrainingConfig()


def said(task="multi-class", **changes):
    with pytest.raises(ConfigError) as error:
        check_pseudo_labels(replace(GOOD, **changes), task)
    return str(error.value)


def test_unknown_names_are_told_with_the_nearest():
    assert said(pseudo_policy="flexmatsch") == "Unknown pseudo-policy 'flexmatsch': did you mean 'flexmatch'?"
    assert said(teacher="local-em") == "Unknown teacher 'local-em': did you mean 'local-ema'?"
    assert said(alignment="labelled") == "Unknown alignment 'labelled': known: estimated, none, uniform"


@pytest.mark.parametrize("key", ["threshold", "pseudo_start_fraction", "pseudo_ramp_fraction"])
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_shares_lie_between_nothing_and_everything(key, value):
    assert said(**{key: value}) == f"{key.replace('_', '-')} must be a share between 0 and 1, not {value}."


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_an_average_must_be_able_to_move(value):
    assert "teacher-ema-decay must be at least 0 and below 1" in said(teacher_ema_decay=value)


def test_what_excludes_each_other_is_told_with_a_way_out():
    for teacher in ("local", "local-ema", "agreement"):
        text = said(pseudo_policy="mixture", teacher=teacher)
        assert f"teacher={teacher}" in text and "Take teacher=global" in text
    assert "Take alignment=none" in said(pseudo_policy="mixture", alignment="uniform")
    assert "Take alignment=estimated or none" in said("multi-label", alignment="uniform")


def test_everything_else_goes_together():
    for task in ("multi-class", "multi-label"):
        for policy in POLICIES:
            for teacher in TEACHERS if policy != "mixture" else ("global",):
                for alignment in ALIGNMENTS if policy != "mixture" else ("none",):
                    if (task, alignment) != ("multi-label", "uniform"):
                        changed = replace(GOOD, pseudo_policy=policy, teacher=teacher, alignment=alignment)
                        check_pseudo_labels(changed, task)


def test_a_run_is_refused_before_it_starts(tmp_path):
    path = tmp_path / "wrong.yaml"
    for line, part in (
        ("pseudo-policy: flexmatsch", "did you mean 'flexmatch'"),
        ("teacher: locl", "did you mean 'local'"),
        ("alignment: unform", "did you mean 'uniform'"),
        ("teacher-ema-decay: 1.0", "teacher-ema-decay must be"),
        ("pseudo-ramp-fraction: 2.0", "pseudo-ramp-fraction must be"),
        ("pseudo-ramp-fraction: often", "must be of type float"),
    ):
        path.write_text(line + "\n")
        with pytest.raises(ConfigError, match=part):
            resolve(RunConfig(preset=str(path)), channels=1, num_outputs=2, task="multi-class")


def test_every_preset_passes_and_takes_none_of_the_new_ways():
    default = {f.name: f.default for f in fields(TrainingConfig)}
    for name in preset_names("training"):
        for task in ("multi-class", "multi-label"):
            training = resolve(RunConfig(preset=name), channels=1, num_outputs=2, task=task).training
            for key in ("alignment", "teacher_ema_decay", "pseudo_ramp_fraction"):
                assert getattr(training, key) == default[key]
