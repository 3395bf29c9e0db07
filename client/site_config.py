"""A site's own `site.yaml`, read strictly: what the site allows, where its data are, which federation it joins.

In a deployment it lies in the site's home, in a simulation in the hospital's folder, if it is there at all. A section
or a key that nobody knows is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from client import site_policy
from client.site_policy import SIMULATED, SitePolicy
from jointdiff import storage
from jointdiff.data.site_source import SiteSource, read_source
from jointdiff.errors import ConfigError, RefusedError, nearest
from jointdiff.protocol import RoundInstructions

SITE_FILE = "site.yaml"
DEVICE = re.compile(r"auto|cpu|cuda|cuda:\d+")
_SERVER = re.compile(r"(?P<host>[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\]):(?P<port>\d{1,5})")


@dataclass(frozen=True)
class FederationAddress:
    """Which federation a site joins, and how it knows the server and is known to it."""

    server: str  # HOST:PORT of the front door
    ca: Path  # certificate of the federation's authority, from the coordinator
    key: Path  # the site's private key; it never leaves the site

    @property
    def host(self) -> str:
        """Name or address alone."""
        return self.server.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Port alone."""
        return int(self.server.rpartition(":")[2])


@dataclass(frozen=True)
class SiteConfig:
    """Everything that a hospital says of itself."""

    folder: Path  # where its site.yaml lies: the site's home
    policy: SitePolicy = field(default_factory=SitePolicy)
    data: SiteSource | None = None  # None: a simulation's data, named by the run
    federation: FederationAddress | None = None
    device: str = ""  # auto | cpu | cuda | cuda:N; '' = as the run says

    @property
    def path(self) -> Path:
        """Of site.yaml, whether it is there or not."""
        return self.folder / SITE_FILE

    @property
    def cache(self) -> Path:
        """Folder of the fitted scans; it may be deleted at any time."""
        return self.folder / "data-cache"


def config_of(instructions: RoundInstructions) -> SiteConfig:
    """Return the configuration under which a site answers these instructions.

    Raises:
        RefusedError: The server names a folder, as a simulation does, for a site that has a site.yaml of its own.
        ConfigError: site.yaml is damaged, or holds an unknown key or a value out of its range.
    """
    if instructions.site_folder and is_deployed():
        raise RefusedError(
            "The server names a folder for this site, as only a simulation does, but the home on this machine belongs "
            "to a site with a policy of its own. A simulation here needs another home: set JOINTDIFF_HOME."
        )
    return read(folder_of(instructions), simulated=bool(instructions.site_folder))


def policy_of(instructions: RoundInstructions) -> SitePolicy:
    """Return what the site allows that answers these instructions; raises as `config_of`."""
    return config_of(instructions).policy


def folder_of(instructions: RoundInstructions) -> Path:
    """Return the site's own folder: in a simulation the one that the server names, else the site's home.

    Where the home has a site.yaml the server names nothing.
    """
    if instructions.site_folder and not is_deployed():
        return Path(instructions.site_folder)
    return storage.home()


def is_deployed() -> bool:
    """Tell whether this machine's home is that of a site: it has a site.yaml."""
    return (storage.home_path() / SITE_FILE).is_file()


def site_folder(chosen: str) -> Path:
    """Return the folder that `--site PATH` means: of a site.yaml, the folder itself, or the home for ''.

    Raises:
        ConfigError: The path is a file of another name.
        RunError: The home cannot be written.
    """
    if not chosen:
        return storage.home()
    path = Path(chosen).expanduser().absolute()
    if path.is_file() and path.name != SITE_FILE:
        raise ConfigError(f"--site must name a {SITE_FILE} or the folder that holds it, not {path}.")
    return path.parent if path.name == SITE_FILE else path


def read(path: Path, *, simulated: bool = False) -> SiteConfig:
    """Read a site.yaml; without one the defaults of a simulation or of a deployment hold.

    Args:
        path: The file, or the folder that holds it.

    Raises:
        ConfigError: As `config_of`.
    """
    path = Path(path)
    path = path if path.name == SITE_FILE else path / SITE_FILE
    policy = SIMULATED if simulated else SitePolicy()
    folder = path.parent
    if not path.exists():
        return SiteConfig(folder, policy)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. See configs/site.example.yaml for its form.") from None
    found: dict[str, Any] = {}
    for key, value in _mapping({} if tree is None else tree, str(path)).items():
        where = f"'{key}' in {path}"
        if key in site_policy.SECTIONS:
            policy = site_policy.SECTIONS[key](policy, _mapping(value, where), str(path))
        elif key == "data":
            found["data"] = read_source(_mapping(value, where), where, folder)
        elif key == "federation":
            found["federation"] = read_federation(_mapping(value, where), where, folder)
        elif key == "device":
            if not isinstance(value, str) or not DEVICE.fullmatch(value):
                raise ConfigError(f"device in {path} must be auto, cpu, cuda or cuda:N, not {value!r}.")
            found["device"] = value
        else:
            known = [*site_policy.SECTIONS, "data", "federation", "device"]
            raise ConfigError(f"Unknown section '{key}' in {path}: {nearest(str(key), known)}")
    return SiteConfig(folder, policy, **found)


def read_federation(values: Mapping[Any, Any], where: str, folder: Path) -> FederationAddress:
    """Read the section `federation`; raises ConfigError."""
    texts = {"server": "", "ca": "ca.crt", "key": "site.key"}
    for key, value in values.items():
        if key not in texts:
            raise ConfigError(f"Unknown key '{key}' under {where}: {nearest(str(key), texts)}")
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{key} under {where} must be text, not {value!r}.")
        texts[key] = value
    match = _SERVER.fullmatch(texts["server"])
    if not match or not 0 < int(match["port"]) < 65536:
        raise ConfigError(
            f"server under {where} must be HOST:PORT, as the coordinator names it, such as "
            f"federation.example.org:8443, not {texts['server']!r}."
        )
    return FederationAddress(texts["server"], *(folder / Path(texts[name]).expanduser() for name in ("ca", "key")))


def _mapping(value: Any, what: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{what} must be a mapping of keys to values, not {type(value).__name__}.")
    return value
