"""How edits are searched, from NAME=VALUE on a command line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from jointdiff.edit_task import CounterfactualSettings
from jointdiff.errors import ConfigError, nearest


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


SIGNED = ("tolerance", "slack", "overshoot")  # of margins, which are: a region may have to pass what is wanted
DEFAULTS = {field.name: _text(field.default) for field in fields(CounterfactualSettings)}


def settings_of(changes: Sequence[str]) -> CounterfactualSettings:
    """Return the default settings with these changes.

    Raises:
        ConfigError: An unknown name, or a value that is no number (or list of numbers with commas) of at least 0.

    >>> settings_of(["depths=0.3,0.5", "redraw_steps=6"]).depths
    (0.3, 0.5)
    """
    values: dict[str, Any] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or name not in DEFAULTS:
            raise ConfigError(f"Unknown setting '{change}' in --set: {nearest(name, DEFAULTS)}")
        values[name] = _value(name, text)
    return replace(CounterfactualSettings(), **values)


def _value(name: str, text: str) -> int | float | tuple[float, ...]:
    default = getattr(CounterfactualSettings(), name)
    try:
        if isinstance(default, tuple):
            value: Any = tuple(float(part) for part in text.split(",") if part.strip())
        else:
            value = type(default)(text)
    except ValueError:
        value = None
    numbers = value if isinstance(value, tuple) else (value,)
    lowest = -math.inf if name in SIGNED else 0
    if not all(number is not None and number >= lowest and math.isfinite(number) for number in numbers):
        kind = "numbers with commas" if isinstance(default, tuple) else f"a {type(default).__name__}"
        least = "" if name in SIGNED else ", at least 0"
        raise ConfigError(f"{name} in --set must be {kind}{least}, not '{text}' (default: {DEFAULTS[name]}).")
    return value
