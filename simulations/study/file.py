"""A study file: which methods, in which settings, with how many labels, on which draws. Read strictly.

name: demo
base: {num-rounds: 6, local-steps: 20}         # run-config keys of every run
settings:                                      # optional; each a line of run-config keys
  iid: {partition: iid}
  skewed: {partition: "dirichlet:0.3"}

Methods:
  joint: joint:joint-warmup                    # kind[:preset][+key=value]..., or spelled out:
  supervised: {kind: supervised, training: {learning-rate: 0.002}, run: {strategy: fedprox}}
  supervised-longer: {like: supervised, seconds-of: joint}   # as many steps as fit into the seconds of joint
num-labels: [6, 12]
split-seeds: 0-9                               # or a list
reference: joint                               # every other row is paired with it
bounds: {lower: supervised, upper: supervised} # labelled only; the same with all labels
centralised: [joint]                           # baselines of these methods
local-only: [joint]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jointdiff.errors import ConfigError, nearest
from jointdiff.views.study_words import UNNAMED
from simulations.baselines import CENTRALISED_STEPS, TOTAL
from simulations.method_choice import PIXELS, Method, check_method, check_run_keys, parse_method
from simulations.strict import known_keys, mapping, numbers, one_of, read_yaml, short_name

LOCAL, FLWR = "local", "flwr"
RUNNERS = (LOCAL, FLWR)
KEYS = (
    "name", "base", "settings", "methods", "num-labels", "split-seeds", "seeds", "workers", "reference", "bounds",
    "centralised", "centralised-steps", "local-only", "exclude", "runner",
)  # fmt: skip
_METHOD_KEYS = ("kind", "preset", "training", "run", "like", "seconds-of")
_STUDY_NAME_LENGTH = 20


@dataclass(frozen=True)
class Study:
    """A study file, read."""

    name: str
    base: Mapping[str, Any]
    settings: Mapping[str, Mapping[str, Any]]
    methods: Mapping[str, Method]
    num_labels: tuple[int, ...]
    split_seeds: tuple[int, ...]
    seeds: tuple[int, ...] = (0,)
    workers: int = 0  # processes; 0 = as many as there are processors
    reference: str = ""
    lower: str = ""  # '' = no such bound
    upper: str = ""
    centralised: tuple[str, ...] = ()
    centralised_steps: str = TOTAL
    local_only: tuple[str, ...] = ()
    seconds_of: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # method: (like, seconds of whom)
    exclude: frozenset[tuple[str, str]] = frozenset()  # (setting, method)
    runner: str = LOCAL


def read_study(path: Path, overrides: Mapping[str, Any] | None = None) -> Study:
    """Read a study file.

    Args:
        overrides: Run-config keys that win over those of `base`.

    Raises:
        ConfigError: It cannot be read, a key is unknown (the nearest is named), or a value does not fit.
    """
    tree = read_yaml(path)
    return parse_study(tree, where=str(path), overrides=overrides, folder=path.absolute().parent)


def parse_study(
    tree: Any, *, where: str, overrides: Mapping[str, Any] | None = None, folder: Path | None = None
) -> Study:
    """Check the content of a study file.

    Args:
        folder: Where relative paths in it begin; None = the current folder. Those in `overrides` always begin there.

    Raises:
        ConfigError: As `read_study`.
    """
    tree = mapping(tree, where)
    known_keys(tree, KEYS, where)
    for key in ("name", "methods", "num-labels"):
        if not tree.get(key) and tree.get(key) != 0:
            raise ConfigError(f"{where} needs the key '{key}'.")
    name = short_name(tree["name"], f"name in {where}", _STUDY_NAME_LENGTH)
    folder = folder or Path.cwd()
    base = {**_with_paths(mapping(tree.get("base"), f"base in {where}"), folder), **(overrides or {})}
    check_run_keys(base, f"base in {where}")
    settings = {
        short_name(key, f"settings in {where}"): _with_paths(mapping(value, f"setting '{key}' in {where}"), folder)
        for key, value in mapping(tree.get("settings") or {UNNAMED: {}}, f"settings in {where}").items()
    }
    for key, value in settings.items():
        check_run_keys(value, f"setting '{key}' in {where}")
    methods, seconds_of = _methods(tree["methods"], where, folder)
    bounds = mapping(tree.get("bounds"), f"bounds in {where}")
    known_keys(bounds, ("lower", "upper"), f"bounds in {where}")
    pick = {key: _method_named(value, methods, f"{key} in {where}") for key, value in bounds.items()}
    workers = tree.get("workers", 0)
    if type(workers) is not int or workers < 0:
        raise ConfigError(f"workers in {where} must be a whole number, 0 = the processors there are, not {workers!r}.")
    return Study(
        name=name,
        base=base,
        settings=settings,
        methods=methods,
        num_labels=numbers(tree["num-labels"], f"num-labels in {where}"),
        split_seeds=numbers(tree.get("split-seeds", 0), f"split-seeds in {where}"),
        seeds=numbers(tree.get("seeds", 0), f"seeds in {where}"),
        workers=workers,
        reference=_method_named(tree.get("reference", next(iter(methods))), methods, f"reference in {where}"),
        lower=pick.get("lower", ""),
        upper=_trained(pick.get("upper", ""), methods, seconds_of, f"bounds in {where}"),
        centralised=_baselines(tree.get("centralised"), methods, seconds_of, f"centralised in {where}"),
        centralised_steps=one_of(
            tree.get("centralised-steps", TOTAL), CENTRALISED_STEPS, f"centralised-steps in {where}"
        ),
        local_only=_baselines(tree.get("local-only"), methods, seconds_of, f"local-only in {where}"),
        seconds_of=seconds_of,
        exclude=_excluded(tree.get("exclude") or [], settings, methods, where),
        runner=one_of(tree.get("runner", LOCAL), RUNNERS, f"runner in {where}"),
    )


def _methods(value: Any, where: str, folder: Path) -> tuple[dict[str, Method], dict[str, tuple[str, str]]]:
    given = mapping(value, f"methods in {where}")
    methods: dict[str, Method] = {}
    later: dict[str, tuple[str, str]] = {}
    for name, entry in given.items():
        what = f"method '{name}' in {where}"
        short_name(name, f"methods in {where}")
        if entry is None or isinstance(entry, str):
            methods[name] = parse_method(entry or name, name=name)
            continue
        entry = mapping(entry, what)
        known_keys(entry, _METHOD_KEYS, what)
        if "like" in entry or "seconds-of" in entry:
            if set(entry) != {"like", "seconds-of"}:
                raise ConfigError(f"{what}: `like` and `seconds-of` go together, and with nothing else.")
            later[name] = (str(entry["like"]), str(entry["seconds-of"]))
            methods[name] = Method(name, "")  # holds its place in the order
            continue
        parts = {key: mapping(entry.get(key), f"{key} of {what}") for key in ("training", "run")}
        preset = _with_paths({"preset": str(entry.get("preset", ""))}, folder)["preset"]
        parts["run"] = _with_paths(parts["run"], folder)
        methods[name] = Method(name, str(entry.get("kind", name)), preset, **parts)
        check_method(methods[name])
    for name, pair in later.items():
        for other in pair:
            _method_named(other, methods, f"method '{name}' in {where}")
            if other in later or methods[other].kind == PIXELS:
                raise ConfigError(f"method '{name}' in {where}: '{other}' has no steps of its own to go by.")
        like = methods[pair[0]]
        methods[name] = Method(name, like.kind, like.preset, like.training, like.run)
    return methods, later


def _with_paths(keys: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return run-config keys with the relative paths among them made absolute, from the study file's folder."""

    def path(key: str, value: str) -> str:
        kind, colon, rest = value.partition(":")
        if key == "dataset" and kind == "npz" and rest:
            return kind + colon + (rest if "data-root" in keys else str(folder / Path(rest).expanduser()))
        is_path = key in ("data-root", "initial-weights", "autoencoder") or value.endswith((".yaml", ".yml"))
        return str(folder / Path(value).expanduser()) if is_path and value else value

    return {key: path(key, value) if isinstance(value, str) else value for key, value in keys.items()}


def _baselines(value: Any, methods: Mapping[str, Method], later: Mapping[str, Any], what: str) -> tuple[str, ...]:
    if value in (None, False):
        return ()
    if value is True:
        return tuple(name for name, method in methods.items() if method.kind != PIXELS and name not in later)
    names = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(_trained(_method_named(name, methods, what), methods, later, what) for name in names))


def _trained(name: str, methods: Mapping[str, Method], later: Mapping[str, Any], what: str) -> str:
    if name and (methods[name].kind == PIXELS or name in later):
        why = "it trains no network" if methods[name].kind == PIXELS else "its steps come from other runs' seconds"
        raise ConfigError(f"{what}: '{name}' cannot be this: {why}.")
    return name


def _excluded(
    value: Any, settings: Mapping[str, Any], methods: Mapping[str, Any], where: str
) -> frozenset[tuple[str, str]]:
    found = set()
    for entry in value if isinstance(value, list) else [value]:
        entry = mapping(entry, f"exclude in {where}")
        known_keys(entry, ("setting", "method"), f"exclude in {where}")
        setting, method = str(entry.get("setting", "")), str(entry.get("method", ""))
        if setting not in settings:
            raise ConfigError(f"exclude in {where}: unknown setting '{setting}': {nearest(setting, settings)}")
        found.add((setting, _method_named(method, methods, f"exclude in {where}")))
    return frozenset(found)


def _method_named(value: Any, methods: Mapping[str, Any], what: str) -> str:
    if str(value) not in methods:
        raise ConfigError(f"{what}: unknown method '{value}': {nearest(str(value), methods)}")
    return str(value)
