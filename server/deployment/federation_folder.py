"""The coordinator's folder HOME/federation/: which file is where, and who may read it."""

from __future__ import annotations

import os
import shlex
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path

from jointdiff import storage
from jointdiff.errors import ConfigError, RunError
from jointdiff.overrides import to_toml

SUPERLINK_ADDRESS = "127.0.0.1:9400"  # loopback only: Flower's Control API asks nobody who he is
FRONT_PORT = 8443
CONNECTION = "federation"  # the name of our SuperLink in Flower's own configuration


@dataclass(frozen=True)
class FederationFolder:
    """Paths of one federation; nothing is made by asking for them."""

    path: Path  # absolute

    @property
    def ca_key(self) -> Path:
        """Private key of the federation's authority: it signs server certificates, and is needed for nothing else."""
        return self.path / "ca.key"

    @property
    def ca_crt(self) -> Path:
        """Certificate of the authority: every site gets it."""
        return self.path / "ca.crt"

    @property
    def server_key(self) -> Path:
        """Private key of front door and SuperLink."""
        return self.path / "server.key"

    @property
    def server_crt(self) -> Path:
        """Certificate of front door and SuperLink, followed by the authority's."""
        return self.path / "server.crt"

    @property
    def hospitals(self) -> Path:
        """Who was admitted and revoked, and when."""
        return self.path / "hospitals.json"

    @property
    def superexec_secret(self) -> Path:
        """What the SuperLink and its executor know each other by."""
        return self.path / "superexec.secret"

    @property
    def superlink(self) -> Path:
        """Database, logs and process ids."""
        return self.path / "superlink"

    @property
    def front(self) -> Path:
        """Configuration, process id and logs of nginx."""
        return self.path / "front"

    @property
    def flower(self) -> Path:
        """Flower's own home (FLWR_HOME) for commands to our SuperLink."""
        return self.path / "flower"

    @property
    def lock(self) -> Path:
        """Held while certificates or hospitals are changed."""
        return self.path / ".lock"

    @property
    def secrets(self) -> tuple[Path, ...]:
        """Files that only their owner may read."""
        return self.ca_key, self.server_key, self.superexec_secret


def of(home: Path) -> FederationFolder:
    """Return HOME/federation, whether it is there or not."""
    return FederationFolder(Path(os.path.abspath(home)) / "federation")


def make(home: Path) -> FederationFolder:
    """Return HOME/federation, made for its owner alone.

    Raises:
        RunError: It cannot be made.
    """
    folder = of(home)
    try:
        folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"The folder {folder.path} cannot be made: {error.strerror or error}.") from None
    return folder


def existing(home: Path) -> FederationFolder:
    """Return HOME/federation.

    Raises:
        ConfigError: There is no federation in this home.
    """
    folder = of(home)
    if not folder.ca_crt.is_file():
        raise ConfigError(
            f"There is no federation in {folder.path} (no {folder.ca_crt.name}). Begin with `jointdiff-server "
            "certificates init`, or name another home with --home."
        )
    return folder


def wrong_modes(folder: FederationFolder) -> list[str]:
    """Return one line for every file that others can read though it is a secret, with the command that mends it."""
    found = []
    for path, wanted in ((folder.path, "700"), *((secret, "600") for secret in folder.secrets)):
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError:
            continue
        if mode & 0o077:
            found.append(f"{path} is open to others (mode {mode:04o}): chmod {wanted} {shlex.quote(str(path))}")
    return found


def write_flower_home(folder: FederationFolder, address: str) -> Path:
    """Write Flower's configuration for commands to our SuperLink, and return the folder for FLWR_HOME.

    Args:
        address: HOST:PORT of the SuperLink. It is remembered: `superlink_address` returns it.
    """
    folder.flower.mkdir(mode=0o700, parents=True, exist_ok=True)
    default = to_toml({"default": CONNECTION})
    entry = to_toml({"address": address, "root-certificates": str(folder.ca_crt)})
    content = f"[superlink]\n{default}\n[superlink.{CONNECTION}]\n{entry}"
    storage.write_atomic(folder.flower / "config.toml", content, private=True)
    return folder.flower


def superlink_address(folder: FederationFolder) -> str:
    """Return where our SuperLink was last told to listen, or where it does unless told otherwise."""
    try:
        tree = tomllib.loads((folder.flower / "config.toml").read_text(encoding="utf-8"))
        return str(tree["superlink"][CONNECTION]["address"])
    except (OSError, ValueError, KeyError, TypeError):
        return SUPERLINK_ADDRESS
