"""How a deployment stands: its processes, the front door, certificates, hospitals, the run in progress."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from jointdiff import identity, processes
from jointdiff.certificate_checks import utc_now
from jointdiff.errors import JointDiffError, RunError
from jointdiff.views.format import MISSING, num_bytes
from jointdiff.views.terminal import printable
from server.deployment import admission, certificates, deployed_run, superlink
from server.deployment.node_registry import Node
from server.deployment.services import Service
from server.deployment.superlink import Deployment

CONNECTED = "connected"
NOT_CONNECTED = "not connected"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class ProcessStatus:
    """One process that should run."""

    name: str
    running: bool
    answers: bool  # to /health; the SuperExec listens nowhere and answers by running
    pid: int | None
    since: str | None  # UTC, ISO 8601
    memory_bytes: int  # with what it has started
    supervised: bool  # by systemd
    log: str | None  # None: in the journal


@dataclass(frozen=True)
class Status:
    """Everything that `jointdiff-server status` shows."""

    address: str  # HOST:PORT of the front door, '' without one
    superlink_address: str
    processes: tuple[ProcessStatus, ...]
    certificates: dict[str, int]  # authority, server -> days left
    problems: tuple[str, ...]  # what keeps sites from connecting
    warnings: tuple[str, ...]  # what will
    hospitals: dict[str, str]  # admitted -> connected | not connected | unknown
    runs: tuple[str, ...]  # in progress
    code: str  # version and hash of what is installed here: a site with other code refuses

    @property
    def ok(self) -> bool:
        """Whether everything runs and answers; a site that is away is its own affair."""
        return not self.problems and all(process.running and process.answers for process in self.processes)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, fit for JSON."""
        return {"ok": self.ok, **asdict(self)}


def look(deployment: Deployment) -> Status:
    """Ask everything that can be asked now; what cannot be reached is said so and stops nothing."""
    settings = deployment.settings
    found = tuple(_process(deployment, service) for service in deployment.services())
    problems = [*certificates.problems(deployment.folder)]
    nodes: dict[str, Node] | None = None
    running = deployed_run.being_written(deployment)
    if found[0].answers:
        try:
            nodes = admission.connected(deployment.home)
            running = sorted({*running, *deployed_run.unfinished(deployment)})
        except RunError as error:
            problems.append(str(error))
    try:
        admitted = admission.admitted(deployment.home)
    except JointDiffError as error:
        problems.append(str(error))
        admitted = {}
    return Status(
        address=f"{settings.host}:{settings.port}" if settings.front_door else "",
        superlink_address=f"{superlink.LOOPBACK}:{settings.superlink_port}",
        processes=found,
        certificates=_days_left(deployment),
        problems=tuple(problems),
        warnings=tuple(certificates.warnings(deployment.folder)),
        hospitals={name: _connected(nodes, node_id) for name, node_id in sorted(admitted.items())},
        runs=tuple(running),
        code=f"{identity.code_version()} ({identity.code_hash()[:12]})",
    )


def _process(deployment: Deployment, service: Service) -> ProcessStatus:
    running = service.running()
    members = service.members() if running else set()
    return ProcessStatus(
        name=service.name,
        running=running is not None,
        answers=running is not None and deployment.answers(service, deployment.settings),
        pid=running.pid if running else None,
        since=running.since if running else None,
        memory_bytes=processes.memory_bytes(members),
        supervised=bool(running and running.supervised),
        log=None if running and running.supervised else str(service.log),
    )


def _days_left(deployment: Deployment) -> dict[str, int]:
    try:
        return {issued.what: issued.days_left for issued in certificates.listing(deployment.folder, now=utc_now())}
    except JointDiffError:
        return {}  # `problems` says it


def _connected(nodes: dict[str, Node] | None, node_id: int) -> str:
    if nodes is None:
        return UNKNOWN
    node = nodes.get(str(node_id))
    return CONNECTED if node is not None and node.online else NOT_CONNECTED


def lines(status: Status) -> Iterator[str]:
    """Yield what a person reads."""
    for process in status.processes:
        state = "runs" if process.answers else "runs, but does not answer" if process.running else "DOES NOT RUN"
        facts = [f"process {process.pid}", f"since {process.since}", num_bytes(process.memory_bytes)]
        facts += ["systemd"] * process.supervised
        yield f"{process.name:<11} {state}" + (f" ({', '.join(facts)})" if process.running else f". Log: {process.log}")
    yield f"{'address':<11} {status.address or MISSING} (SuperLink on {status.superlink_address}, this machine alone)"
    days = ", ".join(f"{what} {left} days" for what, left in status.certificates.items())
    yield f"{'certified':<11} {days or MISSING}"
    for name, state in status.hospitals.items():
        yield f"{'hospital':<11} {printable(name)}: {state}"
    if not status.hospitals:
        yield f"{'hospital':<11} none is admitted: jointdiff-server admit NAME key.pub"
    yield f"{'run':<11} {', '.join(map(printable, status.runs)) or 'none in progress'}"
    yield f"{'code':<11} {status.code}"
    for problem in status.problems:
        yield f"PROBLEM: {problem}"
    for warning in status.warnings:
        yield f"warning: {warning}"
