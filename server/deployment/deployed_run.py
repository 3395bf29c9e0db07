"""A run over a deployed federation: put together, submitted to the SuperLink on this machine, followed to its true end.

The Flower app that is submitted holds settings and no Python, so no code travels: server and sites run what they
installed. SuperLink and run outlive the command that submitted them.
"""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from jointdiff import storage
from jointdiff.config import SITES, RunConfig, parse_run_config, resolve, to_mapping
from jointdiff.errors import ConfigError, RunError, nearest
from jointdiff.overrides import absolute_paths, parse_overrides, to_toml
from jointdiff.settings import AT_SERVER
from server.deployment import admission
from server.deployment.control import RunStatus
from server.deployment.superlink import Deployment
from server.follow import TASK_ENDED, Follower, Tail, Verdict, record_end

# What a simulation says of the data that it deals out: real hospitals bring their own.
_SIMULATED = (
    "dataset", "data-root", "num-labels", "label-split", "server-steps", "num-hospitals", "partition", "split-seed",
    "sites-home", "home",
)  # fmt: skip
PATIENCE_S = 600.0  # how long a SuperLink may be silent before a run that nobody writes is given up
_STOPPED_S = 30.0  # for the server of a stopped run to let go of its folder
_APP = """[project]
name = "jointdiff-run"
version = "0.1.0"
description = "A run over a deployed federation"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "jointdiff"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
"""


@dataclass(frozen=True)
class Submitted:
    """A run that Flower has taken."""

    run_name: str
    run_id: str  # Flower's
    position: int = 0  # bytes of events.jsonl that were there before: those of an attempt that was given up


def prepare(deployment: Deployment, source: str, overrides: Iterable[str]) -> RunConfig:
    """Return the run-config with everything made explicit: who takes part, run-name, absolute paths.

    Args:
        source: Folder of a Flower app (its keys that say which data a simulation deals out are left aside), a YAML file
            of run-config keys, or '' for the defaults.
        overrides: Texts of `key=value` pairs; they win.

    Raises:
        ConfigError: A key or value is wrong, nobody is admitted, or a data set is named: sites bring their own.
    """
    given = {**_read(source), **parse_overrides(overrides)}
    if given.get("dataset", SITES) != SITES:
        raise ConfigError(
            f"dataset={given['dataset']!r} is for simulations: in a deployment every hospital brings its own data "
            "(dataset=sites), and refuses anything else. Leave the key out."
        )
    home = str(deployment.home)
    if given.get("home") and Path(absolute_paths(RunConfig(home=str(given["home"]))).home) != deployment.home:
        raise ConfigError(f"home={given['home']!r} is not the federation's, {home}. Choose it with --home.")
    admitted = admission.admitted(deployment.home)
    if not admitted:
        raise ConfigError("No hospital is admitted yet: `jointdiff-server admit NAME key.pub`.")
    names = given.get("hospitals") or ",".join(admitted)  # in order of admission: who joins later changes nobody's seed
    defaults = {"dataset": SITES, "num-labels": 0, "hospitals": names, "num-hospitals": len(str(names).split(","))}
    run = parse_run_config({**defaults, **given, "hospitals": names, "home": home})
    for name in run.hospital_names:
        if name not in admitted:
            raise ConfigError(f"The hospital '{name}' is not admitted: {nearest(name, admitted)}")
    if not run.run_name:
        from jointdiff.preparation import run_name_for  # brings torch, which takes seconds

        run = replace(run, run_name=run_name_for(run))
    return absolute_paths(run)


def prepare_resume(deployment: Deployment, run_name: str, overrides: Iterable[str]) -> RunConfig:
    """Return what to submit to carry a run on from its last complete round.

    Raises:
        JointDiffError: There is no such run, it has finished, another server writes it, or a setting differs.
    """
    asked = {**parse_overrides(overrides), "run-name": run_name, "resume": True, "home": str(deployment.home)}
    # Its own settings are read from its folder: those of the sites are needed here for the check of keys alone.
    from jointdiff.preparation import reopen

    config, _, folder = reopen(absolute_paths(parse_run_config(asked)))
    with storage.run_locked(folder):
        pass
    return replace(config.run, resume=True)


def check(run: RunConfig) -> None:
    """Build what the server will need, without the hospitals' data; raises JointDiffError for what is wrong first."""
    if not run.resume and storage.run_path(Path(run.home), run.run_name).exists():
        raise RunError(
            f"A run named '{run.run_name}' is there already in {run.home}. Choose another run-name, or carry it on: "
            f"jointdiff-server run --resume {run.run_name}"
        )
    from jointdiff.data import info_of
    from jointdiff.preparation import check_startable
    from jointdiff.training import select_device

    info = info_of(run)
    check_startable(resolve(run, channels=info.channels, num_outputs=info.num_outputs, task=info.task))
    select_device(run.device)
    if run.label_split == AT_SERVER:
        from jointdiff.data.server_set import server_data

        server_data(run)


def write_app(deployment: Deployment, run: RunConfig) -> Path:
    """Write the Flower app of a run, settings and no Python, and return its folder."""
    app = deployment.folder.flower / "runs" / run.run_name
    storage.write_atomic(app / "pyproject.toml", _APP + to_toml(to_mapping(run)))
    return app


def submit(deployment: Deployment, run: RunConfig) -> Submitted:
    """Hand a run to the SuperLink.

    Raises:
        RunError: The federation does not run, or Flower refuses the app.
    """
    for service in (deployment.superlink, deployment.superexec):
        if service.running() is None:
            raise RunError(f"{service.name} does not run: `jointdiff-server start` first (`status` tells more).")
    app = write_app(deployment, run)
    events = _run_folder(deployment, run.run_name) / "events.jsonl"
    position = events.stat().st_size if events.exists() else 0
    submitted = Submitted(run.run_name, deployment.control.submit(app), position)
    record = {"run_id": submitted.run_id, "position": position}
    storage.write_json(_record(deployment, run.run_name), record)
    return submitted


def find(deployment: Deployment, run_name: str) -> Submitted:
    """Return a run that was submitted from this home.

    Raises:
        RunError: There is none of this name.
    """
    if run_name not in (names := submitted_names(deployment)):
        raise RunError(f"No run '{run_name}' was started over this federation: {nearest(run_name, names)}")
    record = storage.read_json(_record(deployment, run_name))
    return Submitted(run_name, str(record["run_id"]), int(record["position"]))


def submitted_names(deployment: Deployment) -> list[str]:
    """Return the names of all runs that were submitted from this home."""
    return [path.name.removesuffix(".json") for path in _record(deployment, "any").parent.glob("*.json")]


def being_written(deployment: Deployment) -> list[str]:
    """Return the names of the runs whose server lives; nobody is asked."""
    return [name for name in submitted_names(deployment) if storage.is_locked(_run_folder(deployment, name))]


def unfinished(deployment: Deployment) -> list[str]:
    """Return the names of the runs that the SuperLink has not ended; one from elsewhere goes by Flower's id.

    Raises:
        RunError: The SuperLink does not answer.
    """
    names = {find(deployment, name).run_id: name for name in submitted_names(deployment)}
    return [names.get(run_id, f"Flower's run {run_id}") for run_id in deployment.control.unfinished()]


def follow(
    deployment: Deployment,
    submitted: Submitted,
    show: Callable[[dict[str, Any]], None],
    say: Callable[[str], None],
) -> Verdict:
    """Hand on the run's events until it has ended, and return how it ended. A SuperLink that restarts is waited for."""
    folder = _run_folder(deployment, submitted.run_name)
    flower = _DeployedFlower(deployment, folder, say)
    verdict = Follower(flower, submitted.run_id, folder, show, position=submitted.position).wait()
    record_end(folder, verdict)
    if verdict.cause.startswith("SystemExit"):  # Flower's way to end an app from outside
        told = "the run's server was told to end: the run was stopped, or the SuperExec ended"
        return replace(verdict, cause=told)
    return verdict


def stop_run(deployment: Deployment, submitted: Submitted) -> None:
    """End a run; what it has reached stays, and it can be carried on.

    Raises:
        RunError: The SuperLink does not answer, or the run has ended already.
    """
    status = deployment.control.status(submitted.run_id)
    if status.is_finished:
        raise RunError(f"The run '{submitted.run_name}' has ended already ({status.status}).")
    deployment.control.stop(submitted.run_id)
    folder = _run_folder(deployment, submitted.run_name)
    deadline = time.monotonic() + _STOPPED_S
    while storage.is_locked(folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    record_end(folder, Verdict(False, "stopped by the coordinator (jointdiff-server stop-run)"))


class _DeployedFlower:
    """A deployment as `Follower` sees it: its SuperLink may be away for a while."""

    def __init__(self, deployment: Deployment, run_folder: Path, say: Callable[[str], None]) -> None:
        self._deployment = deployment
        self._folder = run_folder
        self._say = say
        log = deployment.superlink.log
        self._log = Tail(log, log.stat().st_size if log.exists() else 0)
        self._silent_since = 0.0  # monotonic; 0 = it answers
        self._said = ""

    def trouble(self) -> str:
        silent_s = time.monotonic() - self._silent_since if self._silent_since else 0.0
        if silent_s < PATIENCE_S or storage.is_locked(self._folder):
            return ""
        return f"The SuperLink has not answered for {silent_s:.0f} s, and no server writes the run any more."

    def has_news(self) -> bool:
        return any(TASK_ENDED.search(line) for line in self._log.lines())

    def status(self, run_id: str) -> RunStatus:
        try:
            status = self._deployment.control.status(run_id)
        except RunError:
            if not self._silent_since:
                self._silent_since = time.monotonic()
            self._tell("The SuperLink does not answer. The run's server waits for it, and so does this.")
            return RunStatus("unreachable", "")
        if self._silent_since:
            self._silent_since = 0.0
            self._tell("The SuperLink answers again.")
        if status.status == "pending" and self._deployment.superexec.running() is None:
            self._tell("The run waits: the SuperExec, which starts its server, does not run (jointdiff-server start).")
        return status

    def last_lines(self, run_id: str) -> tuple[str, ...]:
        return self._deployment.control.last_lines(run_id)

    def _tell(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._say(text)


def _read(source: str) -> Mapping[str, Any]:
    """Return the run-config keys of a simulation's folder or of a YAML file."""
    if not source:
        return {}
    path = Path(source).expanduser()
    if (path / "pyproject.toml").is_file():
        try:
            values = tomllib.loads((path / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"][
                "config"
            ]
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path / 'pyproject.toml'} cannot be read: {error}") from None
        except (KeyError, TypeError):
            raise ConfigError(f"{path / 'pyproject.toml'} has no table [tool.flwr.app.config].") from None
        return {key: value for key, value in values.items() if key not in _SIMULATED}
    if not path.is_file() or path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"'{source}' is neither a folder with a pyproject.toml, such as simulations/3_hospitals, nor a YAML file "
            "of run-config keys (name.yaml)."
        )
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must be a mapping of run-config keys to values, such as `num-rounds: 20`.")
    return tree


def _record(deployment: Deployment, run_name: str) -> Path:
    """Return where a run's Submitted is kept; not in the app's folder, which travels."""
    return deployment.folder.flower / "submitted" / f"{run_name}.json"


def _run_folder(deployment: Deployment, run_name: str) -> Path:
    return storage.run_path(deployment.home, run_name)
