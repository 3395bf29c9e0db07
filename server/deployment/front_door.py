"""The front door: an nginx of our own, without root, that shows sites `/v1/fleet/` and `/health` and nothing else.

What it does is in configs/deployment/front-door.conf; here that is filled in, tested and told to read itself again.
"""

from __future__ import annotations

import importlib.resources
import os
import re
import shutil
import signal
import string
import subprocess
from pathlib import Path

from jointdiff import storage
from jointdiff.errors import ConfigError, RunError
from server.deployment import certificates, federation_folder
from server.deployment.federation_folder import FederationFolder

CONFIG_NAME = "nginx.conf"
_PID_NAME = "nginx.pid"
_TEST_TIMEOUT_S = 30.0
_UNSAFE = re.compile(r'["\\$\x00-\x1f\x7f]')  # inside nginx's quotes these end the text, escape, or name a variable
_HOST = re.compile(r"[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\]")


class _Template(string.Template):
    """nginx's own variables begin with '$'; ours with '@'. '@' before a name that is not ours stays."""

    delimiter = "@"


def write(
    folder: FederationFolder,
    *,
    host: str = "0.0.0.0",
    port: int = federation_folder.FRONT_PORT,
    superlink_port: int = int(federation_folder.SUPERLINK_ADDRESS.rpartition(":")[2]),
) -> Path:
    """Write the front door's configuration and return its path.

    Args:
        host: The address to listen on; 0.0.0.0 = all of IPv4, [::] = all of IPv6.
        port: The port that sites call; from 1024 on no rights are needed.
        superlink_port: Of the SuperLink, on this machine's loopback.

    Raises:
        ConfigError: An address is none, or the folder's name cannot stand in nginx's configuration.
    """
    if _UNSAFE.search(str(folder.path)):
        raise ConfigError(
            f"The folder {str(folder.path)!r} holds a character that nginx's configuration cannot (one of \" \\ $ or a "
            "control character): choose another home."
        )
    if not _HOST.fullmatch(host):
        raise ConfigError(f"The front door cannot listen on '{host}': give an address such as 0.0.0.0 or [::].")
    for number in (port, superlink_port):
        if not 0 < number < 65536:
            raise ConfigError(f"{number} is no port: 1 to 65535.")
    temp = folder.front / "temp"
    temp.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.front.chmod(0o700)
    text = (importlib.resources.files("configs") / "deployment" / "front-door.conf").read_text(encoding="utf-8")
    values = {
        "pid": _quoted(folder.front / _PID_NAME),
        "error_log": _quoted(folder.front / "error.log"),
        "access_log": _quoted(folder.front / "access.log"),
        "server_crt": _quoted(folder.server_crt),
        "server_key": _quoted(folder.server_key),
        "ca_crt": _quoted(folder.ca_crt),
        "listen": f"{host}:{port}",
        "superlink": f"127.0.0.1:{superlink_port}",
    }
    values |= {f"temp_{name}": _quoted(temp / name) for name in ("body", "proxy", "fastcgi", "uwsgi", "scgi")}
    return storage.write_atomic(config_path(folder), _Template(text).substitute(values), private=True)


def _quoted(path: Path) -> str:
    return f'"{path}"'


def config_path(folder: FederationFolder) -> Path:
    """Return where `write` puts the configuration."""
    return folder.front / CONFIG_NAME


def executable() -> str:
    """Return the path of nginx; ordinary users often do not have /usr/sbin in their PATH.

    Raises:
        RunError: It is not installed.
    """
    places = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))
    found = shutil.which("nginx", path=places)
    if found is None:
        raise RunError(
            "nginx is not installed, and without a front door the SuperLink must not be published: its Control API "
            "asks nobody who he is. Install it: make setup-system (Debian, Ubuntu: sudo apt-get install nginx-light)."
        )
    return found


def problems() -> list[str]:
    """Return what keeps every front door from starting on this machine; none = nothing."""
    try:
        executable()
    except RunError as error:
        return [str(error)]
    return []


def command(folder: FederationFolder) -> list[str]:
    """Return what runs the front door in the foreground; SIGTERM ends it, SIGQUIT ends it after its last answer.

    Raises:
        RunError: nginx is not installed.
    """
    return [executable(), *_arguments(config_path(folder)), "-g", "daemon off;"]


def test(config: Path) -> None:
    """Let nginx read a configuration, with its certificates, and refuse what it refuses (`nginx -t`).

    Raises:
        ConfigError: nginx finds fault with it; its own words are in the error.
        RunError: nginx is not installed, or does not answer.
    """
    try:
        done = subprocess.run(
            [executable(), *_arguments(config), "-t", "-q"], capture_output=True, text=True, timeout=_TEST_TIMEOUT_S,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RunError(f"`nginx -t` does not answer after {_TEST_TIMEOUT_S:.0f} s.") from None
    if done.returncode != 0:
        faults = [line for line in done.stderr.splitlines() if "[emerg]" in line] or done.stderr.splitlines()[-1:]
        raise ConfigError(f"nginx refuses {config}: {' '.join(faults) or f'exit {done.returncode}'}")


def _arguments(config: Path) -> list[str]:
    # -e: before it has read its configuration nginx would write to the system's log, which is not ours.
    return ["-p", str(config.parent), "-c", str(config), "-e", str(config.parent / "error.log")]


def running(folder: FederationFolder) -> int | None:
    """Return the process id of our nginx, or None: a pid file that is stale or of another process is not believed."""
    try:
        pid = int((folder.front / _PID_NAME).read_text(encoding="ascii"))
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if b"nginx: master" in words and os.fsencode(config_path(folder)) in words else None


def reload(folder: FederationFolder) -> bool:
    """Have the running front door read its configuration and certificates again, without losing a connection.

    Returns:
        Whether it runs; where it does not, nothing happens.

    Raises:
        ConfigError: The certificates or the configuration are faulty: it goes on with the old ones.
        RunError: nginx is not installed.
    """
    pid = running(folder)
    if pid is None:
        return False
    if found := certificates.problems(folder):
        raise ConfigError("The front door goes on with its old certificate: " + "; ".join(found))
    test(config_path(folder))
    os.kill(pid, signal.SIGHUP)
    return True
