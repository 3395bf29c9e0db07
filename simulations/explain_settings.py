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


DEFAULTS = {field.name: _text(field.default) for field in fields(CounterfactualSettings)}
_BELOW_ONE = {"confidence", "depth", "redraw_depth", "depths"}
_AT_MOST_ONE = {"features", "shares", "retry_shares", "diffuse", "widest", "most_changed", "mirrored"}
_FROM_ONE = {"num_steps", "redraw_steps", "apart"}
_SIGNED = {"tolerance", "slack", "overshoot"}  # differences of margins


def settings_of(changes: Sequence[str]) -> CounterfactualSettings:
    """Return the default settings with these changes.

    Raises:
        ConfigError: An unknown name, or a value that is no number, no list of numbers, or out of its range.

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
    if not all(number is not None and math.isfinite(number) and _allowed(name, number) for number in numbers):
        kind = {tuple: "numbers with commas", int: "a whole number", float: "a number"}[type(default)]
        raise ConfigError(f"{name} in --set must be {kind}{_limits(name)}, not '{text}' (default: {DEFAULTS[name]}).")
    return value


def _allowed(name: str, number: float) -> bool:
    if name in _SIGNED:
        return True
    lowest = 1 if name in _FROM_ONE else 0
    return number >= lowest and not (name in _AT_MOST_ONE and number > 1) and not (name in _BELOW_ONE and number >= 1)


def _limits(name: str) -> str:
    if name in _SIGNED:
        return ""
    most = ", below 1" if name in _BELOW_ONE else ", at most 1" if name in _AT_MOST_ONE else ""
    return f", at least {1 if name in _FROM_ONE else 0}{most}"
