"""Run-config keys as text: `key=value key="a value"`, read into typed values and written as Flower reads them.

Quotes are optional: the type of a key decides how its value is read, so `run-name=2024` is the text "2024".
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from jointdiff.config import RunConfig
from jointdiff.errors import ConfigError, nearest

_PAIR = re.compile(r"""\s*(?P<key>[^\s=]+)=(?P<value>"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"']\S*|(?=\s|$))(?=\s|$)""")


def key_types() -> dict[str, type]:
    """Return the type of every run-config key.

    >>> key_types()["num-rounds"]
    <class 'int'>
    """
    hints = get_type_hints(RunConfig)
    return {field.name.replace("_", "-"): hints[field.name] for field in fields(RunConfig)}


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Read `key=value ...` texts; a later key wins over an earlier one.

    Args:
        texts: Each holds any number of pairs, separated by spaces. Values with spaces need quotes.

    Raises:
        ConfigError: A piece is no pair, a key is unknown, or a quoted value is not closed.

    >>> parse_overrides(["num-rounds=2 run-name=7", 'data-root="/my scans"'])
    {'num-rounds': 2, 'run-name': '7', 'data-root': '/my scans'}
    """
    known = key_types()
    values: dict[str, Any] = {}
    for text in texts:
        position = 0
        while text[position:].strip():
            pair = _PAIR.match(text, position)
            if pair is None:
                rest = text[position:].strip()
                raise ConfigError(
                    f"Cannot read {rest!r} as key=value: write key=value pairs separated by spaces, without spaces "
                    "around '=', and quote a value that holds spaces."
                )
            key = pair["key"]
            if key not in known:
                raise ConfigError(f"Unknown key '{key}' in run-config: {nearest(key, known)}")
            values[key] = _value(pair["value"], known[key])
            position = pair.end()
    return values


def _value(text: str, kind: type) -> Any:
    quoted = text[:1] in ("'", '"')
    if kind is str and not quoted:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # the strict check of types names key and value


def to_toml(values: Mapping[str, Any]) -> str:
    r"""Write flat settings as TOML, one a line.

    >>> print(to_toml({"num-rounds": 2, "home": 'C:\\x "y"'}), end="")
    num-rounds = 2
    home = "C:\\x \"y\""
    """
    return "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())


def _toml(value: Any) -> str:
    # JSON's strings, numbers and booleans are TOML's; DEL is the one character that only TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def absolute_paths(run: RunConfig) -> RunConfig:
    """Return `run` with every path in it absolute, from the directory of whoever types the command.

    Flower's daemon has a working directory of its own, so a relative path would mean another place there.
    """
    changes: dict[str, Any] = {}
    for name in ("data_root", "home", "sites_home", "initial_weights", "autoencoder", "server_data"):
        if getattr(run, name):
            changes[name] = _absolute(getattr(run, name))
    for name in ("model", "preset", "autoencoder_model", "autoencoder_preset"):
        if getattr(run, name).endswith((".yaml", ".yml")):
            changes[name] = _absolute(getattr(run, name))
    kind, colon, path = run.dataset.partition(":")
    if kind == "npz" and path:
        # A relative file starts at data-root where there is one, else at the current folder.
        changes["dataset"] = kind + colon + _absolute(os.path.join(run.data_root, os.path.expanduser(path)))
    return replace(run, **changes)


def _absolute(path: str) -> str:
    return os.path.abspath(Path(path).expanduser())
