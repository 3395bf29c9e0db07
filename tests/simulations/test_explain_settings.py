"""Settings of a search from NAME=VALUE."""

from __future__ import annotations

import pytest

from jointdiff.edit_task import CounterfactualSettings
from jointdiff.errors import ConfigError
from simulations.explain import main
from simulations.explain_settings import DEFAULTS, settings_of


def test_what_is_not_named_keeps_its_default():
    assert settings_of([]) == CounterfactualSettings()
    assert settings_of([f"{name}={text}" for name, text in DEFAULTS.items()]) == CounterfactualSettings()
    changed = settings_of(["depths=0.3,0.5", "features=0.5", "redraw_steps=6", "tolerance=-2", "retry_shares="])
    assert (changed.depths, changed.features, changed.redraw_steps) == ((0.3, 0.5), 0.5, 6)
    assert (changed.tolerance, changed.retry_shares) == (-2.0, ()) and changed.shares == CounterfactualSettings().shares


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("feature=0.5", "Unknown setting 'feature=0.5' in --set: did you mean 'features'"),
        ("features", "Unknown setting 'features'"),
        ("features=much", "features in --set must be a number, at least 0, at most 1, not 'much'"),
        ("depth=-0.1", "depth in --set must be a number, at least 0, below 1"),
        ("depths=0.1,nan", "depths in --set must be numbers with commas, at least 0"),
        ("depths=0.5,1.5", "depths in --set must be numbers with commas, at least 0, below 1"),
        ("redraw_steps=2.5", "redraw_steps in --set must be a whole number, at least 1"),
        ("slack=inf", "slack in --set must be a number, not 'inf'"),
    ],
)
def test_what_is_no_setting_is_one_clear_error(text, message, capsys):
    with pytest.raises(ConfigError) as error:
        settings_of([text])
    assert message in str(error.value)
    assert main(["somewhere", "--set", text]) == 2 and message in capsys.readouterr().err
