"""Read what a person wrote, strictly: a typo is told with the nearest name, and nothing is passed over in silence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from jointdiff.errors import ConfigError, nearest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,23}")


class StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader that does not let a second key of one name win in silence."""


def _no_duplicates(loader: StrictLoader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, str) and key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' stands twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _no_duplicates)


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file in which no key stands twice.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=StrictLoader)  # a safe loader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The study file {path} cannot be read: {error}") from None


def parse_numbers(text: str, what: str) -> list[int]:
    """Read `0-9` or `0,3,5-7`.

    Args:
        what: Named in the error.

    Raises:
        ConfigError: Something in it is no number and no range.

    >>> parse_numbers("0,3,5-7", "--split-seeds")
    [0, 3, 5, 6, 7]
    """
    numbers: list[int] = []
    try:
        for part in text.split(","):
            low, _, high = part.partition("-")
            numbers += range(int(low), int(high or low) + 1)
    except ValueError:
        raise ConfigError(f"{what} takes numbers and ranges such as 0-9 or 0,3,5-7, not {text!r}.") from None
    return numbers


def numbers(value: Any, what: str) -> tuple[int, ...]:
    """Return whole numbers from a number, a range in words, or a list of both."""
    entries = value if isinstance(value, list) else [value]
    found: list[int] = []
    for entry in entries:
        if type(entry) is int:
            found.append(entry)
        elif isinstance(entry, str):
            found += parse_numbers(entry, what)
        else:
            raise ConfigError(f"{what} takes numbers and ranges such as 0-9, not {entry!r}.")
    if not found or min(found) < 0:
        raise ConfigError(f"{what} needs at least one number, none below 0, not {value!r}.")
    if len(set(found)) < len(found):
        raise ConfigError(f"{what} names a number twice: {value!r}.")
    return tuple(found)


def one_of(value: Any, known: tuple[str, ...], what: str) -> str:
    """Return a value that is one of the known ones."""
    if value not in known:
        raise ConfigError(f"{what}: unknown value '{value}': {nearest(str(value), known)}")
    return str(value)


def short_name(value: Any, what: str, length: int = 24) -> str:
    """Return a value that can be part of the name of a run."""
    if not isinstance(value, str) or not _NAME.fullmatch(value) or len(value) > length:
        raise ConfigError(
            f"{what}: {value!r} must be 1 to {length} letters, digits, '.', '_' or '-', and begin with a letter or "
            "digit: names of runs and folders are made of it."
        )
    return value


def mapping(value: Any, what: str) -> dict[str, Any]:
    """Return a mapping with names for keys; None is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{what} must be a mapping of names to values, not {value!r}.")
    return dict(value)


def known_keys(tree: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    """Refuse a key that nobody knows."""
    for key in tree:
        if key not in known:
            raise ConfigError(f"Unknown key '{key}' in {where}: {nearest(key, known)}")
