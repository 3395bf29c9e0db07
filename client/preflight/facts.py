"""What the checks of a preflight share: the site's configuration and what is asked of it, each looked up once."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from client import site_config
from client.data_look import class_names
from client.preflight.reach import Reach, reach
from client.site_config import SiteConfig
from jointdiff.config import SITES, Config, RunConfig, parse_run_config, resolve
from jointdiff.data import info_of
from jointdiff.data.site_data import LoadedSite, open_site
from jointdiff.errors import ConfigError
from jointdiff.overrides import parse_overrides

_STAND_INS = ("first", "second")  # for the size of the model, where neither run nor data name classes
PASS, WARN, FIX, UNKNOWN = "PASS", "WARN", "FIX", "UNKNOWN"


@dataclass(frozen=True)
class Line:
    """What one check found."""

    status: str  # PASS | WARN | FIX | UNKNOWN = could not be found out
    text: str
    remedy: str = ""  # the command or the change that mends it
    name: str = ""

    def named(self, name: str) -> Line:
        """Return the same with its name."""
        return replace(self, name=name)


@dataclass(frozen=True)
class Facts:
    """One site, and what a run would ask of it."""

    folder: Path  # the site's
    asked: Mapping[str, Any] | None = None  # run-config keys; None = nothing was given, and defaults stand for it

    @cached_property
    def config(self) -> SiteConfig:
        """What site.yaml says.

        Raises:
            ConfigError: It is damaged.
        """
        return site_config.read(self.folder)

    @cached_property
    def run(self) -> RunConfig:
        """What is asked: the run-config over the defaults of a run over sites, and over the classes of the site's data.

        Raises:
            ConfigError: A key or a value of the run-config is no good.
        """
        asked = dict(self.asked or {})
        if asked.setdefault("dataset", SITES) != SITES:
            raise ConfigError(
                f"dataset={asked['dataset']!r} is for simulations: a run over real sites has dataset=sites."
            )
        if "classes" not in asked:
            names = class_names(self.config.data) if self.config.data else ()
            asked["classes"] = ",".join(names if len(names) > 1 else _STAND_INS)
        return parse_run_config({"num-labels": 0, **asked})

    @cached_property
    def model(self) -> Config:
        """The resolved configuration: network and training of the run that is asked; raises as `run`."""
        info = info_of(self.run)
        return resolve(self.run, channels=info.channels, num_outputs=info.num_outputs, task=info.task)

    @cached_property
    def site(self) -> LoadedSite:
        """The site's data as the run would see them.

        Raises:
            JointDiffError: There are none, or they cannot be read.
        """
        if self.config.data is None:
            raise ConfigError(f"{self.config.path} has no section `data`: `jointdiff-client init` writes it.")
        return open_site(
            self.config.data, info_of(self.run), cache=self.config.cache, audit_holdout=self.run.audit_holdout
        )

    @cached_property
    def reach(self) -> Reach:
        """How far this machine gets towards the federation."""
        return reach(self.config.federation)


def read_run_config(words: Sequence[str]) -> dict[str, Any]:
    """Read what `--run-config` says: a file (pyproject.toml of a Flower app, or YAML), or KEY=VALUE pairs.

    Raises:
        ConfigError: The file is missing or damaged, or a pair cannot be read.
    """
    if len(words) == 1 and "=" not in words[0]:
        return _of_file(Path(words[0]).expanduser())
    return parse_overrides(words)


def _of_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".toml":
            found = tomllib.loads(text)["tool"]["flwr"]["app"]["config"]
        else:
            found = yaml.safe_load(text)
            found = found["run"] if isinstance(found, dict) and isinstance(found.get("run"), dict) else found
    except (OSError, UnicodeDecodeError, yaml.YAMLError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise ConfigError(f"The run-config {path} cannot be read ({reason}).") from None
    if not isinstance(found, dict):
        raise ConfigError(f"The run-config {path} must be a mapping of keys to values.")
    return found
