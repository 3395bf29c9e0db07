"""Run-config keys that say whose data a run is over: the hospitals' own, or shares of a data set."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from jointdiff.errors import ConfigError, nearest

if TYPE_CHECKING:
    from jointdiff.config import RunConfig

TASKS = ("multi-class", "multi-label")
_HOSPITAL = re.compile(r"[a-z][a-z0-9-]{0,39}")


def check_sites(run: RunConfig) -> None:
    """Check what says which data the hospitals have: their own, or shares of a data set, never half of each.

    Raises:
        ConfigError: Says which key, and what to do.
    """
    default = type(run)()
    if not run.over_sites:
        for key in ("classes", "channels", "task", "hospitals"):
            if getattr(run, key) != getattr(default, key):
                raise ConfigError(
                    f"{key}={getattr(run, key)!r} is for dataset=sites alone; dataset={run.dataset} knows its own. "
                    "Leave it out."
                )
        return
    if run.task not in TASKS:
        raise ConfigError(f"Unknown task '{run.task}': {nearest(run.task, TASKS)}")
    classes, least = run.class_names, 2 if run.task == "multi-class" else 1
    if len(classes) < least or len(set(classes)) < len(classes) or not all(classes):
        raise ConfigError(
            f"dataset=sites needs classes: at least {least} different names with commas between them, such as "
            f"classes=normal,pneumonia, not {run.classes!r}."
        )
    if run.channels not in (1, 3):
        raise ConfigError(f"channels must be 1 (grey) or 3 (RGB), not {run.channels}.")
    for key, wanted in (
        ("num_labels", 0), ("data_root", ""), ("partition", "iid"), ("eval_split", "test"),
        ("eval_scanners", 0), ("sites_home", ""),
    ):  # fmt: skip
        if getattr(run, key) != wanted:
            raise ConfigError(
                f"{key.replace('_', '-')}={getattr(run, key)!r} makes no sense with dataset=sites: every hospital "
                f"brings its own data and labels. Set {key.replace('_', '-')}={wanted!r}."
            )
    names = run.hospital_names
    if len(set(names)) != run.num_hospitals or len(names) != run.num_hospitals:
        raise ConfigError(
            f"hospitals={run.hospitals!r} must name as many different hospitals as num-hospitals says: "
            f"{run.num_hospitals}."
        )
    for name in names:
        if not _HOSPITAL.fullmatch(name):
            raise ConfigError(
                f"A hospital's name must be 1 to 40 small letters, digits or '-', with a letter first, not {name!r}."
            )
