"""The coordinator's processes: a SuperLink on loopback, the SuperExec that starts the server of a run, the front door.

Flower's Control API asks nobody who they are, so the SuperLink listens on this machine alone, and the front door
publishes only what sites need. The server of a run is a process of the SuperExec, so a SuperLink may die and be started
again while a run goes on.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from jointdiff import storage
from jointdiff.errors import ConfigError, RunError
from server.deployment import certificates, federation_folder, front_door
from server.deployment.control import Control, flower_environment, tool
from server.deployment.federation_folder import FRONT_PORT, SUPERLINK_ADDRESS
from server.deployment.services import Running, Service

LOOPBACK, _, _port = SUPERLINK_ADDRESS.partition(":")
SUPERLINK_PORT = int(_port)
START_TIMEOUT_S = 90.0
_LOOK_S = 0.1


@dataclass(frozen=True)
class Settings:
    """Where a deployment listens; kept in its folder, so that every later command knows."""

    host: str = "0.0.0.0"  # address of the front door
    port: int = FRONT_PORT  # what sites are given
    superlink_port: int = SUPERLINK_PORT  # on loopback
    front_door: bool = True  # False: something else publishes the SuperLink, or nobody does


class Deployment:
    """The coordinator's side of a federation: its folder and its processes."""

    def __init__(self, home: Path) -> None:
        """Look at HOME/federation/; nothing is made or started."""
        self.home = home
        self.folder = federation_folder.of(home)
        self.superlink = Service("superlink", self.folder.superlink)
        self.superexec = Service("superexec", self.folder.superlink)
        self.front_door = Service("front-door", self.folder.front)
        self.lock = self.folder.superlink / "start.lock"
        self._settings_path = self.folder.superlink / "settings.json"
        self.environment = {**flower_environment(self.folder.flower), storage.HOME_VARIABLE: str(home)}
        self.control = Control(self.folder.flower, self.environment, federation_folder.CONNECTION)

    @property
    def settings(self) -> Settings:
        """What the last start was told; the defaults before the first."""
        try:
            return Settings(**json.loads(self._settings_path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return Settings()

    def services(self, settings: Settings | None = None) -> tuple[Service, ...]:
        """Return the processes that should run, in the order of their start."""
        inner = (self.superlink, self.superexec)
        return (*inner, self.front_door) if (settings or self.settings).front_door else inner

    def command(self, service: Service, settings: Settings) -> list[str]:
        """Return what starts a process in the foreground."""
        address = f"{LOOPBACK}:{settings.superlink_port}"
        if service == self.superlink:
            return [
                *(
                    sys.executable,
                    "-m",
                    "server.deployment.superlink_process",
                    "--host",
                    LOOPBACK,
                    "--port",
                    str(settings.superlink_port),
                ),
                *("--ssl-ca-certfile", str(self.folder.ca_crt), "--ssl-certfile", str(self.folder.server_crt)),
                *("--ssl-keyfile", str(self.folder.server_key), "--enable-supernode-auth"),
                *("--isolation", "process", "--superexec-auth-secret-file", str(self.folder.superexec_secret)),
                # Sites and server run what they installed: no index is asked at run time.
                *("--database", str(self.superlink.folder / "state.db"), "--disable-runtime-dependency-installation"),
            ]
        if service == self.superexec:
            return [
                *(tool("flower-superexec"), "--runtime-api-address", address),
                *("--root-certificates", str(self.folder.ca_crt)),
                *("--superexec-auth-secret-file", str(self.folder.superexec_secret)),
            ]
        return front_door.command(self.folder)

    def prepare(self, settings: Settings) -> None:
        """Make what the processes need: folders, the SuperExec's secret, the connection of our own commands."""
        for folder in (self.folder.superlink, self.folder.front, self.folder.flower):
            folder.mkdir(exist_ok=True, mode=0o700)
        if not self.folder.superexec_secret.exists():
            storage.write_atomic(self.folder.superexec_secret, secrets.token_bytes(32), private=True)
        storage.write_json(self._settings_path, asdict(settings))
        federation_folder.write_flower_home(self.folder, f"{LOOPBACK}:{settings.superlink_port}")
        if settings.front_door:
            config = front_door.write(
                self.folder, host=settings.host, port=settings.port, superlink_port=settings.superlink_port
            )
            front_door.test(config)

    def answers(self, service: Service, settings: Settings) -> bool:
        """Ask /health, over TLS under our own authority; the SuperExec listens nowhere, so it answers by running."""
        if service == self.superexec:
            return service.running() is not None
        host, port = LOOPBACK, settings.superlink_port
        if service == self.front_door:
            host, port = _reachable(settings.host), settings.port
        return _healthy(host, port, self.folder.ca_crt)


def problems(deployment: Deployment, settings: Settings) -> Iterator[str]:
    """Yield everything that stands in the way of a start, each with its remedy."""
    yield from certificates.problems(deployment.folder)
    yield from federation_folder.wrong_modes(deployment.folder)
    if settings.front_door:
        yield from front_door.problems()
    taken = {
        deployment.superlink: (LOOPBACK, settings.superlink_port, "--superlink-port"),
        deployment.front_door: (settings.host, settings.port, "--port"),
    }
    for service in deployment.services(settings):
        if service in taken and service.running() is None:
            host, port, option = taken[service]
            if cause := _cannot_listen(host, port):
                yield f"{service.name} cannot listen on {host}:{port}: {cause}. Free it, or choose another {option}."


def check(deployment: Deployment, settings: Settings) -> None:
    """Refuse a start that cannot go well.

    Raises:
        ConfigError: Names everything that is wrong.
    """
    check_ports(settings)
    if found := list(problems(deployment, settings)):
        raise ConfigError("The federation cannot start:" + "".join(f"\n  {line}" for line in found))


def check_ports(settings: Settings) -> None:
    """Refuse, with a ConfigError, ports that are none or the same."""
    for port in (settings.port, settings.superlink_port):
        if not 0 < port < 65536:
            raise ConfigError(f"A port must be between 1 and 65535, not {port}.")
    if settings.front_door and settings.port == settings.superlink_port:
        raise ConfigError(f"Front door and SuperLink cannot both listen on port {settings.port}: choose two.")


def start(deployment: Deployment, settings: Settings, say: Callable[[str], None]) -> None:
    """Start what does not run yet, and wait until it answers; what was started here is stopped where that fails.

    Raises:
        ConfigError: Something is missing or wrong (`problems`).
        RunError: All run already, or one ended at its start or does not answer.
    """
    with _starting(deployment):
        there = {service: service.running() for service in deployment.services(settings)}
        pids = ", ".join(f"{service.name} {running.pid}" for service, running in there.items() if running)
        if all(there.values()):
            raise RunError(f"The federation runs already (process ids: {pids}). `jointdiff-server status` tells more.")
        if pids and settings != deployment.settings:
            raise RunError(f"Parts of the federation run with other settings ({pids}): `jointdiff-server stop` first.")
        check(deployment, settings)
        deployment.prepare(settings)
        if pids:
            say(f"Running already: {pids}. Only what is missing is started.")
        started: list[Service] = []
        try:
            for service, running in there.items():
                if running is None:
                    started.append(service)
                    service.start(deployment.command(service, settings), deployment.environment)
                    _wait(deployment, service, settings)
        except BaseException:
            for service in reversed(started):
                service.stop(grace_s=5.0)
            raise


def _wait(deployment: Deployment, service: Service, settings: Settings) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    if service == deployment.superexec:
        time.sleep(1.0)  # it says nothing when it is ready, but ends at once where its settings are wrong
    while not deployment.answers(service, settings):
        if service.running() is None:
            lines = "".join(f"\n  | {line}" for line in service.last_lines(8))
            raise RunError(f"{service.name} ended at its start. Its log, {service.log}, ends with:{lines}")
        if time.monotonic() > deadline:
            raise RunError(f"{service.name} does not answer after {START_TIMEOUT_S:.0f} s. Its log: {service.log}")
        time.sleep(_LOOK_S)


def stop(deployment: Deployment, say: Callable[[str], None], *, force: bool = False) -> bool:
    """End all processes, the front door first, so that sites see a closed door and not a half-dead server.

    Args:
        force: Also while a run is in progress: its server ends too, and it can be resumed.

    Returns:
        Whether anything had run.

    Raises:
        RunError: A run is in progress and `force` is not set, or systemd would start the processes again.
    """
    everything = (deployment.front_door, deployment.superexec, deployment.superlink)
    running = {service: service.running() for service in everything}
    if supervised := [service.name for service, found in running.items() if found and found.supervised]:
        raise RunError(
            f"systemd supervises {', '.join(supervised)} and would start them again. Stop them with: "
            "sudo systemctl stop jointdiff-server.target"
        )
    if (pids := servers(deployment)) and not force:
        raise RunError(
            f"A run is in progress (its server: process {', '.join(map(str, sorted(pids)))}). Wait for its end, "
            "stop it (jointdiff-server stop-run RUN), or use --force: it then stands at its last complete round."
        )
    ended = False
    for service in everything:
        if service.members():
            obeyed = service.stop()
            ended = True
            say(f"{service.name} stopped" + ("." if obeyed else ", by force: it did not end when it was asked."))
        service.pid_file.unlink(missing_ok=True)
    return ended


def servers(deployment: Deployment) -> set[int]:
    """Return the process ids of the runs' servers: what the SuperExec has started and has not ended."""
    running = deployment.superexec.running()
    return deployment.superexec.members() - ({running.pid} if running else set())


def run_in_foreground(deployment: Deployment, name: str, settings: Settings) -> None:
    """Become one of the processes, for systemd, which starts it again when it ends; does not return.

    Raises:
        ConfigError: Something is missing or wrong, or there is no process of this name.
        RunError: It runs already.
    """
    services = {service.name: service for service in deployment.services(settings)}
    if name not in services:
        raise ConfigError(f"There is no process '{name}' to run: {', '.join(services)}.")
    found: Running | None = services[name].running()
    if found:
        raise RunError(f"{name} runs already: process {found.pid}.")
    with _starting(deployment):  # three units start at once
        check(deployment, settings)
        deployment.prepare(settings)
    services[name].become(deployment.command(services[name], settings), deployment.environment)


@contextlib.contextmanager
def _starting(deployment: Deployment) -> Iterator[None]:
    """Let nobody else start anything meanwhile.

    Raises:
        ConfigError: There is no federation in this home.
    """
    federation_folder.existing(deployment.home)
    deployment.lock.parent.mkdir(exist_ok=True, mode=0o700)
    with storage.locked(deployment.lock):
        yield


def _cannot_listen(host: str, port: int) -> str:
    """Return why nobody can listen there, '' where it is free."""
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        return str(getattr(error, "strerror", "") or error)
    return ""


def _reachable(host: str) -> str:
    return {"0.0.0.0": LOOPBACK, "[::]": "::1"}.get(host, host.strip("[]"))


def _healthy(host: str, port: int, ca: Path) -> bool:
    try:
        context = ssl.create_default_context(cafile=str(ca))
        context.check_hostname = False  # our own authority signed it, and we ask this machine, by whatever address
        connection = http.client.HTTPSConnection(host, port, timeout=5, context=context)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        finally:
            connection.close()
    except (OSError, http.client.HTTPException):
        return False
