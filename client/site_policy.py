"""What a site allows: its own `site.yaml`, strict, in the site's own folder. It can only tighten what the server asks.

In a deployment it lies in the site's home, in a simulation in the hospital's folder, if it is there at all. An unknown
section is refused: a new one is a line in _SECTIONS, with its keys in a table of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from jointdiff import storage
from jointdiff.errors import ConfigError, RefusedError, nearest
from jointdiff.protocol import RoundInstructions

POLICY_FILE = "site.yaml"
UNITS = ("image",)
DEPLOYED_MIN_CELL_COUNT = 10
LOWEST_CELL_COUNT = 3  # below it nothing is hidden: "less than 2" says 1
REPORTS = ("grades", "none")


@dataclass(frozen=True)
class SitePolicy:
    """The limits of one site. The defaults are those of a deployment."""

    epsilon: float | None = None  # ceiling over the site's whole life, so only private runs; None = no ceiling
    delta: float | None = None  # of epsilon; None = none is promised
    unit: str = "image"  # what epsilon protects
    require_secure_aggregation: bool = False  # refuse to send weights and head sums that the server could read singly
    min_cell_count: int = DEPLOYED_MIN_CELL_COUNT  # statistics on fewer images are withheld; 0 = none are
    server_samples: bool = False  # whether the server may draw samples of a model trained on real scans
    render_explanations: bool = True  # whether a run's end renders the site's gallery
    explanations_report: str = "grades"  # what of it may leave: grades with their counts | none
    show_names: bool = False  # whether a page of scans given by hand shows their file names


SIMULATED = SitePolicy(min_cell_count=0, server_samples=True)


def policy_of(instructions: RoundInstructions) -> SitePolicy:
    """Return the policy under which a site answers these instructions.

    Raises:
        RefusedError: The server names a folder, as a simulation does, for a site that has a policy of its own.
        ConfigError: site.yaml is damaged, or holds an unknown key or a value out of its range.
    """
    if instructions.site_folder and is_deployed():
        raise RefusedError(
            "The server names a folder for this site, as only a simulation does, but the home on this machine belongs "
            "to a site with a policy of its own. A simulation here needs another home: set JOINTDIFF_HOME."
        )
    return read_policy(folder_of(instructions), simulated=bool(instructions.site_folder))


def folder_of(instructions: RoundInstructions) -> Path:
    """Return the site's own folder: in a simulation the one that the server names, else the site's home.

    Where the home has a site.yaml the server names nothing.
    """
    if instructions.site_folder and not is_deployed():
        return Path(instructions.site_folder)
    return storage.home()


def is_deployed() -> bool:
    """Tell whether this machine's home is that of a site: it has a site.yaml."""
    return (storage.home_path() / POLICY_FILE).is_file()


def read_policy(folder: Path, *, simulated: bool) -> SitePolicy:
    """Read site.yaml from a site's folder; without one the defaults of a simulation or of a deployment hold.

    Raises:
        ConfigError: As `policy_of`.
    """
    path = Path(folder) / POLICY_FILE
    default = SIMULATED if simulated else SitePolicy()
    if not path.exists():
        return default
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. See configs/site.example.yaml for its form.") from None
    policy = default
    for key, section in _mapping({} if tree is None else tree, str(path)).items():
        if key not in _SECTIONS:
            raise ConfigError(f"Unknown section '{key}' in {path}: {nearest(str(key), _SECTIONS)}")
        policy = _SECTIONS[key](policy, _mapping(section, f"'{key}' in {path}"), str(path))
    return policy


def _privacy(policy: SitePolicy, values: Mapping[str, Any], where: str) -> SitePolicy:
    policy = _changed(policy, "privacy", _PRIVACY, values, where)
    if policy.epsilon is not None and policy.delta is None:
        raise ConfigError(
            f"privacy in {where} has an epsilon but no delta: a ceiling needs both. Take a delta below 1 / number of "
            "images, such as 1e-5."
        )
    return policy


def _explanations(policy: SitePolicy, values: Mapping[str, Any], where: str) -> SitePolicy:
    return _changed(policy, "explanations", _EXPLANATIONS, values, where)


@dataclass(frozen=True)
class _Rule:
    """One key of site.yaml."""

    field: str  # of SitePolicy
    allowed: Callable[[Any], bool]
    wanted: str  # the same in words


def _changed(
    policy: SitePolicy, section: str, rules: Mapping[str, _Rule], values: Mapping[str, Any], where: str
) -> SitePolicy:
    """Return the policy with one section's values, each held against its rule."""
    changes = {}
    for key, value in values.items():
        if key not in rules:
            raise ConfigError(f"Unknown key '{key}' under {section} in {where}: {nearest(str(key), rules)}")
        if not rules[key].allowed(value):
            raise ConfigError(f"{key} under {section} in {where} must be {rules[key].wanted}, not {value!r}.")
        changes[rules[key].field] = value
    return replace(policy, **changes)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_cell_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and (value == 0 or value >= LOWEST_CELL_COUNT)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


_PRIVACY = {
    "epsilon": _Rule(
        "epsilon", lambda v: v is None or (_is_number(v) and 0 < v < float("inf")), "a number above 0, or null"
    ),
    "delta": _Rule("delta", lambda v: v is None or (_is_number(v) and 0 < v < 1), "a number between 0 and 1, or null"),
    "unit": _Rule("unit", lambda v: v in UNITS, f"one of {', '.join(UNITS)}"),
    "require-secure-aggregation": _Rule("require_secure_aggregation", _is_bool, "true or false"),
    "min-cell-count": _Rule(
        "min_cell_count", _is_cell_count, f"0, or a whole number of at least {LOWEST_CELL_COUNT}"
    ),
    "server-samples": _Rule("server_samples", _is_bool, "true or false"),
}  # fmt: skip
_EXPLANATIONS = {
    "render": _Rule("render_explanations", _is_bool, "true or false"),
    "report": _Rule("explanations_report", lambda v: v in REPORTS, f"one of {', '.join(REPORTS)}"),
    "show-names": _Rule("show_names", _is_bool, "true or false"),
}
_SECTIONS: dict[str, Callable[[SitePolicy, Mapping[str, Any], str], SitePolicy]] = {
    "privacy": _privacy,
    "explanations": _explanations,
}


def _mapping(value: Any, what: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{what} must be a mapping of keys to values, not {type(value).__name__}.")
    return value
