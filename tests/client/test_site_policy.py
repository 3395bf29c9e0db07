from __future__ import annotations

import dataclasses
import importlib.resources

import pytest
import yaml

from client import site_config
from client.site_policy import SIMULATED, SitePolicy
from jointdiff.config import Config
from jointdiff.errors import ConfigError, RefusedError
from jointdiff.protocol import RoundInstructions


@pytest.fixture
def ask(tmp_path, monkeypatch):
    monkeypatch.setenv("JOINTDIFF_HOME", str(tmp_path / "home"))
    asked = RoundInstructions(
        kind="describe", run_name="run", hospital="hospital-1", hospital_index=0, round=0, config=Config().to_dict(),
        site_folder=str(tmp_path / "site"), code_version="", code_hash="",
    )  # fmt: skip
    return lambda **changes: dataclasses.replace(asked, **changes)


def write(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "site.yaml").write_text(text)


def test_without_a_file_a_deployment_withholds_and_a_simulation_does_not(ask):
    deployed, simulated = site_config.policy_of(ask(site_folder="")), site_config.policy_of(ask())
    assert (deployed.min_cell_count, deployed.server_samples) == (10, False)
    assert (simulated.min_cell_count, simulated.server_samples) == (0, True)
    assert (deployed.epsilon, deployed.delta, deployed.unit) == (None, None, "image")
    for policy in (deployed, simulated):
        assert (policy.render_explanations, policy.explanations_report, policy.show_names) == (True, "grades", False)


def test_the_example_says_the_defaults_of_a_deployment(tmp_path):
    text = (importlib.resources.files("configs") / "site.example.yaml").read_text()
    write(tmp_path, text)
    assert (
        site_config.read(tmp_path, simulated=False).policy
        == site_config.read(tmp_path, simulated=True).policy
        == SitePolicy()
    )


def test_the_example_names_every_key():
    """A key that is missing there would be found by nobody, and the comparison above would not miss it."""
    tree = yaml.safe_load((importlib.resources.files("configs") / "site.example.yaml").read_text())
    num_fields = len(dataclasses.fields(SitePolicy))
    assert sum(len(section) for section in tree.values()) == num_fields and set(tree) == {
        "privacy",
        "latents",
        "explanations",
    }


def test_a_file_changes_what_it_names_and_nothing_else(tmp_path):
    write(tmp_path, "privacy:\n  epsilon: 8\n  delta: 1.0e-4\n  min-cell-count: 5\n")
    found = site_config.read(tmp_path, simulated=True).policy
    assert found == dataclasses.replace(SIMULATED, epsilon=8, delta=1e-4, min_cell_count=5)
    write(
        tmp_path, "explanations:\n  render: false\n  report: none\n  show-names: true\nprivacy:\n  min-cell-count: 5\n"
    )
    found = site_config.read(tmp_path, simulated=False).policy
    assert found == SitePolicy(min_cell_count=5, render_explanations=False, explanations_report="none", show_names=True)
    write(tmp_path, "")
    assert site_config.read(tmp_path, simulated=True).policy == SIMULATED


@pytest.mark.parametrize(
    "text, said",
    [
        ("privacy:\n  min-cel-count: 5\n", "did you mean 'min-cell-count'?"),
        ("privacy:\n  min-cell-count: 2\n", "at least 3, not 2"),
        ("privacy:\n  min-cell-count: true\n", "at least 3, not True"),
        ("privacy:\n  min-cell-count: 10.0\n", "at least 3, not 10.0"),
        ("privacy:\n  epsilon: 0\n  delta: 0.1\n", "a number above 0"),
        ("privacy:\n  epsilon: .inf\n  delta: 0.1\n", "a number above 0"),
        ("privacy:\n  epsilon: .nan\n  delta: 0.1\n", "a number above 0"),
        ("privacy:\n  epsilon: '1'\n", "a number above 0"),
        ("privacy:\n  epsilon: 1\n", "no delta"),
        ("privacy:\n  delta: 1.0\n", "between 0 and 1"),
        ("privacy:\n  unit: person\n", "one of image, patient"),
        ("privacy:\n  server-samples: 'no'\n", "true or false"),
        ("privacy:\n  server-samples: 1\n", "true or false"),
        ("explanations:\n  rendr: true\n", "Unknown key 'rendr' under explanations"),
        ("explanations:\n  min-cell-count: 5\n", "Unknown key 'min-cell-count' under explanations"),
        ("explanations:\n  render: 'no'\n", "render under explanations"),
        ("explanations:\n  report: grade\n", "must be one of grades, none, not 'grade'"),
        ("explanations:\n  report: null\n", "must be one of grades, none, not None"),
        ("explanations:\n  show-names: 1\n", "true or false"),
        ("explanations: true\n", "must be a mapping"),
        ("explanation:\n  render: true\n", "did you mean 'explanations'?"),
        ("privacy:\n  render: true\n", "Unknown key 'render' under privacy"),
        ("data:\n  kind: folder\n", "path is missing under 'data'"),
        ("privacy: [1]\n", "must be a mapping"),
        ("- privacy\n", "must be a mapping"),
        ("privacy: {\n", "cannot be read"),
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path, text, said):
    write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        site_config.read(tmp_path, simulated=True)
    assert said in str(caught.value) and "site.yaml" in str(caught.value)


def test_a_server_cannot_lead_a_deployed_site_away_from_its_own_policy(ask, tmp_path):
    """It would name an empty folder, and with it the lax defaults of a simulation and an empty ledger."""
    write(tmp_path / "home", "privacy:\n  min-cell-count: 20\n")
    with pytest.raises(RefusedError, match="policy of its own"):
        site_config.policy_of(ask())
    assert site_config.folder_of(ask()) == tmp_path / "home"
    assert site_config.policy_of(ask(site_folder="")).min_cell_count == 20
