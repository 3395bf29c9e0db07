"""Run one named run, or find that it has run: by its name and all of its resolved configuration.

A finished run is read from its folder, one that stopped goes on after its last complete round, and a run of that
name with other settings is never taken for this one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from jointdiff import storage
from jointdiff.config import Config, RunConfig, resolve
from jointdiff.data.registry import info_of
from jointdiff.errors import ConfigError, JointDiffError, RunError
from jointdiff.events import read_events
from jointdiff.history import effective
from jointdiff.overrides import absolute_paths

# Where a run lies and how it is served; what a preset file says stands in the section `training`.
_NO_SETTINGS = ("run-name", "home", "data-root", "resume", "preset", "round-timeout-s", "round-retries")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, ten times faster where it is there
FINISHED, INTERRUPTED, ABSENT = "finished", "interrupted", "absent"
Trainer = Callable[[RunConfig], object]


@dataclass(frozen=True)
class Result:
    """What a finished run has reached: the last round, pooled over the evaluation images of all hospitals."""

    auc: float | None
    balanced_accuracy: float | None
    accuracy: float | None
    log_loss: float | None
    steps: int  # optimiser steps per hospital
    seconds: float  # of all attempts together
    code: str = ""  # hash of the code that ran


def resolved(run: RunConfig) -> Config:
    """Return a run's whole configuration.

    Raises:
        ConfigError: A preset is missing or holds an unknown key, or there is no such data set.
    """
    alike = _resolved_alike(replace(run, split_seed=0, seed=0, run_name=""))  # a study asks for hundreds of draws
    return replace(alike, run=run)


@lru_cache(maxsize=256)
def _resolved_alike(run: RunConfig) -> Config:
    info = info_of(run)
    return resolve(run, channels=info.channels, num_outputs=info.num_outputs, task=info.task)


def fingerprint(run: RunConfig) -> str:
    """Return 8 hexadecimal digits of everything that decides a run's result.

    Only what differs from the defaults counts, so a key that is new in a later version changes no old run's digits.
    """
    default, own = Config().to_dict(), resolved(absolute_paths(run)).to_dict()
    told = {
        f"{section}.{key}": value
        for section, values in own.items()
        for key, value in values.items()
        if value != default[section][key] and not (section == "run" and key in _NO_SETTINGS)
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]


def run_named(run: RunConfig, train: Trainer, *, resumable: bool = True) -> Result:
    """Return a run's result; it runs, or goes on, only where it has not finished before.

    Args:
        run: With run-name and home.
        train: Carries a run out, or on where `resume` is set.
        resumable: Whether `train` can carry on what it left; else what it left is removed and it starts anew.

    Raises:
        ConfigError: A run of that name is there, with other settings.
        JointDiffError: The run failed.
    """
    run = absolute_paths(run)
    folder = storage.run_path(storage.home_path(run.home), run.run_name)
    state = state_of(folder)
    if state != ABSENT:
        check_same(folder, run)
    if folder.exists() and (state == ABSENT or (state == INTERRUPTED and not resumable)):
        _clear(folder, state)
        state = ABSENT
    if state != FINISHED:
        train(replace(run, resume=state == INTERRUPTED))
        drop_state(folder)
    return result_of(folder)


def _clear(folder: Path, state: str) -> None:
    """Remove what a run left that cannot go on; one that was killed before it said anything left next to nothing."""
    strange = {path.name for path in folder.iterdir()} - {storage.LOCK_FILE, "config.yaml", "events.jsonl"}
    if state == ABSENT and any(not name.startswith(".") for name in strange):
        raise ConfigError(f"{folder} is in the way, and is no run: it holds {', '.join(sorted(strange))}. Remove it.")
    with storage.run_locked(folder):
        shutil.rmtree(folder)


def state_of(folder: Path) -> str:
    """Return whether a run's folder holds a finished run, one that stopped or still goes on, or none at all."""
    if not (folder / "events.jsonl").is_file() or not (folder / "config.yaml").is_file():
        return ABSENT
    ended = [e["event"] for e in effective(read_events(folder / "events.jsonl"))]
    return FINISHED if "run_finished" in ended else INTERRUPTED


def check_same(folder: Path, run: RunConfig) -> None:
    """Refuse to take an old run's numbers for those of a run with other settings, presets included.

    Raises:
        ConfigError: A setting differs, or the old run's configuration cannot be read.
    """
    found = config_of(folder).to_dict()
    for section, values in resolved(run).to_dict().items():
        for key, value in values.items():
            if run.latent and (section, key) == ("model", "autoencoder"):
                continue  # a run of two phases comes to know its own on the way
            if found[section][key] != value and not (section == "run" and key in _NO_SETTINGS):
                raise ConfigError(
                    f"{folder} has run with {section} {key}={found[section][key]!r}, now {value!r} is asked for: "
                    "give another --name, or remove that folder."
                )


def config_of(folder: Path) -> Config:
    """Return the resolved configuration that a run has left.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        return Config.from_dict(yaml.load((folder / "config.yaml").read_text(encoding="utf-8"), Loader=_LOADER))
    except (OSError, yaml.YAMLError, JointDiffError, AttributeError, TypeError) as error:
        raise ConfigError(f"{folder} holds a run whose configuration cannot be read ({error}): remove it.") from None


def result_of(folder: Path) -> Result:
    """Return what a finished run has reached.

    Raises:
        RunError: The folder holds no finished run, or its numbers are damaged.
    """
    try:
        pooled = dict(storage.read_json(folder / "metrics.json")["final"]["pooled"])
    except (JointDiffError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"The run has finished, but its numbers cannot be read ({type(error).__name__}: {error}). Remove the "
            f"folder {folder}, and it runs anew."
        ) from None
    run = config_of(folder).run
    events = read_events(folder / "events.jsonl")
    codes = [str(event["code_hash"]) for event in events if event.get("code_hash")]
    return Result(
        pooled.get("auc"), pooled.get("balanced_accuracy"), pooled.get("accuracy"), pooled.get("log_loss"),
        run.num_rounds * run.local_steps, seconds_of(events), codes[-1] if codes else "",
    )  # fmt: skip


def seconds_of(events: list[dict[str, Any]]) -> float:
    """Return how long a run took, all attempts together; the time between them does not count.

    >>> at = "2026-01-01T00:00:0{}+00:00".format
    >>> seconds_of([{"event": "run_started", "time": at(0)}, {"event": "evaluated", "time": at(2)},
    ...             {"event": "run_resumed", "time": at(6)}, {"event": "run_finished", "time": at(9)}])
    5.0
    """
    total, began, last = 0.0, None, None
    for event in events:
        now = datetime.fromisoformat(event["time"])
        if event["event"] in ("run_started", "run_resumed"):
            total += (last - began).total_seconds() if began and last else 0.0
            began = now
        last = now
    return total + ((last - began).total_seconds() if began and last else 0.0)


def drop_state(folder: Path) -> None:
    """Remove what a finished run keeps in order to be resumed: most of its bytes, of no use any more."""
    for state in (folder / "state", *folder.glob("sites/*/state")):
        with contextlib.suppress(OSError):
            shutil.rmtree(state)
