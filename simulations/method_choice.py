"""A method of a comparison: its kind, its training preset, and what is changed in the preset or in the run.

`kind[:preset][+key=value]...` says it in one word: `joint:joint-warmup+pseudo-weight=0.1`; a study file may spell
it out.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from jointdiff import storage
from jointdiff.config import RunConfig, TrainingConfig, from_mapping, preset_of
from jointdiff.errors import ConfigError, nearest
from jointdiff.presets import read_preset
from jointdiff.run_keys import METHODS

PIXELS = "pixels"  # logistic regression on pixels, all hospitals' kept labels in one place
KINDS = (*METHODS, PIXELS)
# Set by whoever makes the runs, not by a method or a setting.
RESERVED = ("method", "preset", "num-labels", "split-seed", "seed", "run-name", "home", "sites-home", "resume")
TRAINING_KEYS = tuple(f.name.replace("_", "-") for f in fields(TrainingConfig))
RUN_KEYS = tuple(k for f in fields(RunConfig) if (k := f.name.replace("_", "-")) not in RESERVED)


@dataclass(frozen=True)
class Method:
    """What is compared."""

    name: str  # how tables call it
    kind: str  # one of KINDS
    preset: str = ""  # a name in configs/training/ or a YAML file; '' = the kind's own
    training: Mapping[str, Any] = field(default_factory=dict)  # changed keys of the preset
    run: Mapping[str, Any] = field(default_factory=dict)  # changed run-config keys


def parse_method(text: str, *, name: str = "") -> Method:
    """Read `kind[:preset][+key=value]...`; a key is one of the training preset or of the run-config.

    Args:
        text: As the user types it: `joint`, `joint:joint-warmup`, `supervised+learning-rate=0.002+ema-decay=0`.
        name: What tables call it; '' = the text.

    Raises:
        ConfigError: No such kind, preset or key, or a value of the wrong type.
    """
    base, *pairs = text.split("+")
    kind, _, preset = base.partition(":")
    if not all("=" in pair for pair in pairs):
        raise ConfigError(f"Changes to a method are written METHOD+key=value+key=value, not {text!r}.")
    changes = {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    of_run = {key: value for key, value in changes.items() if key in RUN_KEYS and key not in TRAINING_KEYS}
    training = {key: value for key, value in changes.items() if key not in of_run}
    method = Method(name or text, kind, preset, training, of_run)
    check_method(method)
    return method


def check_method(method: Method) -> None:
    """Check all of a method that can be checked without a run.

    Raises:
        ConfigError: No such kind, preset or key, a value of the wrong type, or something that `pixels` does not have.
    """
    where = f"'{method.name}'"
    if method.kind not in KINDS:
        raise ConfigError(f"Unknown method '{method.kind}': {nearest(method.kind, KINDS)}")
    check_run_keys(method.run, where)
    if method.kind == PIXELS:
        if method.preset or method.training or method.run:
            raise ConfigError(f"{where}: the method 'pixels' trains no network: it takes no preset and no changed key.")
        return
    if method.training or method.preset:
        tree = {**read_preset("training", method.preset or method.kind), **method.training}
        from_mapping(TrainingConfig, tree, where)


def check_run_keys(keys: Mapping[str, Any], where: str) -> None:
    """Check names and types of run-config keys that a method or a setting changes.

    Raises:
        ConfigError: An unknown key, one that is set elsewhere, or a value of the wrong type.
    """
    for key in keys:
        if key in RESERVED:
            raise ConfigError(f"{key} cannot be set in {where}: {_ELSEWHERE.get(key, 'every run gets its own')}.")
    from_mapping(RunConfig, keys, where)


_ELSEWHERE = {
    "method": "it is the `kind` of a method",
    "preset": "it is the `preset` of a method",
    "num-labels": "it stands on top, a list of counts",
    "split-seed": "it is one of `split-seeds`",
    "seed": "it is one of `seeds`",
    "home": "it is --home of the command, or JOINTDIFF_HOME",
}


def with_method(run: RunConfig, method: Method, folder: Path) -> RunConfig:
    """Return the run-config of a run by this method; for `pixels`, which trains nothing, it is unchanged.

    Args:
        run: All other settings.
        folder: A changed preset is written here as a file, named by its content: the same changes, the same file.

    Raises:
        ConfigError: A key is unknown or of the wrong type.
    """
    if method.kind == PIXELS:
        return run
    run = from_mapping(
        RunConfig, method.run, f"'{method.name}'", replace(run, method=method.kind, preset=method.preset)
    )
    if not method.training:
        return run
    base = preset_of(run)
    tree = {**read_preset("training", base), **method.training}
    from_mapping(TrainingConfig, tree, f"'{method.name}'")
    text = yaml.safe_dump(tree)
    path = Path(os.path.abspath(folder)) / f"{Path(base).stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        storage.write_atomic(path, text)
    return replace(run, preset=str(path))
