"""What a site allows: the sections of `site.yaml` that can only tighten what the server asks. Each is a table of rules.

Where the file lies and what else it holds: site_config.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jointdiff.errors import ConfigError, nearest

UNITS = ("image", "patient")
DEPLOYED_MIN_CELL_COUNT = 10
LOWEST_CELL_COUNT = 3  # below it nothing is hidden: "less than 2" says 1
REPORTS = ("grades", "none")


@dataclass(frozen=True)
class SitePolicy:
    """The limits of one site. The defaults are those of a deployment."""

    epsilon: float | None = None  # ceiling over the site's whole life, so only private runs; None = no ceiling
    delta: float | None = None  # of epsilon; None = none is promised
    unit: str = "image"  # what epsilon has to protect: patient refuses data that name none
    require_secure_aggregation: bool = False  # refuse to send weights and head sums that the server could read singly
    min_cell_count: int = DEPLOYED_MIN_CELL_COUNT  # statistics on fewer images are withheld; 0 = none are
    server_samples: bool = False  # whether the server may draw samples of a model trained on real scans
    render_explanations: bool = True  # whether a run's end renders the site's gallery
    explanations_report: str = "grades"  # what of it may leave: grades with their counts | none
    latents_on_disk: bool = True  # whether latents of scans are kept on the site's own disk between rounds
    latents_key: str = ""  # file of the key that they are sealed with there; '' = they lie there as they are
    show_names: bool = False  # whether a page of scans given by hand shows their file names


SIMULATED = SitePolicy(min_cell_count=0, server_samples=True)


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


def _latents(policy: SitePolicy, values: Mapping[str, Any], where: str) -> SitePolicy:
    policy = _changed(policy, "latents", _LATENTS, values, where)
    if policy.latents_key and not policy.latents_on_disk:
        raise ConfigError(
            f"latents in {where} has an encryption-key, and on-disk: false, so that nothing is written that it could "
            "seal: take out one of them."
        )
    return policy


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


def _is_absolute(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("/")


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
_LATENTS = {
    "on-disk": _Rule("latents_on_disk", _is_bool, "true or false"),
    "encryption-key": _Rule("latents_key", lambda v: v == "" or _is_absolute(v), "'' or the absolute path of a file"),
}
SECTIONS: dict[str, Callable[[SitePolicy, Mapping[str, Any], str], SitePolicy]] = {
    "privacy": _privacy,
    "explanations": _explanations,
    "latents": _latents,
}
