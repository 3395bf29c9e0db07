"""Presets: the YAML files in configs/, or files of the user's own that are given by their path."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

import yaml

from jointdiff.errors import ConfigError, nearest


def preset_names(kind: str) -> list[str]:
    """Return the names of the YAML presets in configs/`kind`/, sorted."""
    folder = importlib.resources.files("configs") / kind
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def read_preset(kind: str, name: str) -> dict[str, Any]:
    """Return configs/`kind`/`name`.yaml, or the YAML file that `name` is the path of.

    Raises:
        ConfigError: There is no such preset, or it is not a mapping.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"The {kind} preset file does not exist: {name}")
        text = path.read_text(encoding="utf-8")
    elif name in (known := preset_names(kind)):
        text = (importlib.resources.files("configs") / kind / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise ConfigError(f"Unknown {kind} preset '{name}': {nearest(name, known)}")
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The {kind} preset '{name}' is not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"The {kind} preset '{name}' must be a mapping of keys to values.")
    return tree
