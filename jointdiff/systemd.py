"""systemd units for the coordinator's processes and for a site: templates in configs/deployment/, filled in here.

Every service runs as a user of its own, may write its home and nothing else, and is started again when it ends.
"""

from __future__ import annotations

import importlib.resources
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from jointdiff import storage
from jointdiff.errors import ConfigError, RunError

SERVER_TARGET = "jointdiff-server.target"
CLIENT_UNIT = "jointdiff-client.service"
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_PLACE = re.compile(r"@([A-Z_]+)@")


def write_server_units(
    output: Path, *, home: Path, user: str, options: Sequence[str] = (), front_door: bool = True
) -> list[Path]:
    """Write the coordinator's units: a target, and a service for each process.

    Args:
        output: Folder for the files, made if needed.
        home: JOINTDIFF_HOME of the federation, absolute.
        user: Name of the user that the services run as.
        options: Of `jointdiff-server start`, such as --port.
        front_door: Whether one of the processes is the front door.

    Returns:
        The absolute paths of the files, the target first.

    Raises:
        ConfigError: The user's name or the folder's cannot stand in a unit.
        RunError: The files cannot be written.
    """
    services = [f"jointdiff-{name}.service" for name in ("superlink", "superexec", "front-door")]
    services = services if front_door else services[:-1]
    values = {"UNITS": " ".join(services), "OPTIONS": " ".join(map(word, options))}
    return _write([SERVER_TARGET, *services], output, home, user, values)


def write_client_unit(output: Path, *, site: Path, user: str) -> list[Path]:
    """Write a site's unit; arguments and errors as of `write_server_units`.

    Args:
        site: The folder that holds site.yaml, absolute.
    """
    return _write([CLIENT_UNIT], output, site, user, {})


def how_to_install(written: Sequence[Path], enable: str, *, user: str, folder: Path) -> list[str]:
    """Return what an administrator types next, and what it is for.

    Args:
        written: The units.
        enable: The unit that starts all.
        user: Whom they run as.
        folder: What that user must own.
    """
    where = shlex.quote(str(folder))
    return [
        f"Written: {', '.join(str(path) for path in written)}",
        "As root, once:",
        f"  useradd --system --home-dir {where} --shell /usr/sbin/nologin {user}   # unless there is such a user",
        f"  chown -R {user}: {where}",
        f"  install -m 644 {' '.join(shlex.quote(str(path)) for path in written)} /etc/systemd/system/",
        f"  systemctl daemon-reload && systemctl enable --now {enable}",
        f"{user} must be able to read {Path(sys.prefix)}, where JointDiff is installed.",
    ]


def _write(names: Sequence[str], output: Path, folder: Path, user: str, values: Mapping[str, str]) -> list[Path]:
    if not _USER.fullmatch(user):
        raise ConfigError(f"--user must be the name of a user of this machine, such as jointdiff, not {user!r}.")
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in str(folder)):
        raise ConfigError(f"The folder {str(folder)!r} holds a control character: a systemd unit cannot name it.")
    commands = Path(sys.executable).parent
    values = {
        **values,
        "USER": user,
        "FOLDER": quoted(str(folder)),
        "HOME_VARIABLE": quoted(f"{storage.HOME_VARIABLE}={folder}"),
        "SERVER": word(str(commands / "jointdiff-server")),
        "CLIENT": word(str(commands / "jointdiff-client")),
        "SITE": word(str(folder)),
    }
    values["HARDENING"] = _filled("hardening.conf", values).rstrip()
    try:
        return [storage.write_atomic(Path(output) / name, _filled(name, values)) for name in names]
    except OSError as error:
        raise RunError(f"The units cannot be written to {output}: {error.strerror or error}.") from None


def _filled(name: str, values: Mapping[str, str]) -> str:
    text = (importlib.resources.files("configs") / "deployment" / name).read_text(encoding="utf-8")
    return _PLACE.sub(lambda place: values[place[1]], text)


def quoted(text: str) -> str:
    r"""Return one value in a unit file, with everything escaped that systemd would read as more than itself.

    >>> print(quoted('/srv/50% "my" scans'))
    "/srv/50%% \"my\" scans"
    """
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def word(text: str) -> str:
    """Return one word of a command in a unit file, where systemd would read variables too.

    >>> print(word("/srv/$HOME"))
    "/srv/$$HOME"
    """
    return quoted(text.replace("$", "$$"))
