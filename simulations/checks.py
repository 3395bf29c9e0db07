"""Everything that can be wrong with a run and can be known in a second, before Flower is started."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jointdiff import storage
from jointdiff.config import Config, RunConfig, parse_run_config, resolve, to_mapping
from jointdiff.errors import ConfigError, RunError, nearest
from jointdiff.overrides import absolute_paths, parse_overrides
from jointdiff.settings import AT_SERVER


def find_app(simulation: str) -> Path:
    """Return the absolute folder of a simulation: a name in simulations/, or a path.

    Raises:
        ConfigError: There is no such simulation; the nearest name is offered.
    """
    ours = Path(__file__).parent
    for folder in (ours / simulation, Path(simulation).expanduser()):
        if simulation and (folder / "pyproject.toml").is_file():
            return folder.resolve()
    names = [path.parent.name for path in ours.glob("*/pyproject.toml")]
    raise ConfigError(
        f"Unknown simulation '{simulation}': {nearest(simulation, names)}. "
        "The path of a folder with a pyproject.toml works too."
    )


def app_defaults(app: Path) -> dict[str, Any]:
    """Return the app's [tool.flwr.app.config].

    Raises:
        ConfigError: Its pyproject.toml cannot be read as TOML, or holds no such table.
    """
    path = app / "pyproject.toml"
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
        return dict(tree["tool"]["flwr"]["app"]["config"])
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except (KeyError, TypeError):
        raise ConfigError(f"{path} has no table [tool.flwr.app.config]: {app.name} is no Flower app of ours.") from None


def prepare(app: Path, overrides: Iterable[str]) -> RunConfig:
    """Return the run-config with everything made explicit: run-name, and absolute paths.

    Args:
        app: Folder of the Flower app that holds the defaults.
        overrides: Texts of `key=value` pairs.

    Raises:
        ConfigError: A key or value is wrong.
        RunError: The home cannot be written.
    """
    run = parse_run_config({**app_defaults(app), **parse_overrides(overrides)})
    home = storage.home(run.home)
    name = run.run_name or _new_name(run)
    return absolute_paths(parse_run_config({**to_mapping(run), "run-name": name, "home": str(home)}))


def prepare_resume(run_name: str, overrides: Iterable[str]) -> tuple[RunConfig, Config]:
    """Return what to submit to carry a run on, and its own configuration.

    Args:
        run_name: Of the unfinished run.
        overrides: Texts of `key=value` pairs; `home` says where it is, others must be the run's own.

    Raises:
        JointDiffError: There is no such run, it has finished, another server writes it, or a setting differs.
    """
    given = parse_overrides(overrides)
    asked = absolute_paths(parse_run_config({**to_mapping(RunConfig()), **given, "run-name": run_name, "resume": True}))
    from jointdiff.preparation import reopen

    config, _, folder = reopen(asked)
    with storage.run_locked(folder):
        pass
    return replace(config.run, resume=True), config


def _new_name(run: RunConfig) -> str:
    from jointdiff.preparation import run_name_for  # brings torch, which takes seconds: a typo has been answered by now

    return run_name_for(run)


def check(run: RunConfig) -> Config:
    """Build what the run will need, on its real data, and return the resolved configuration.

    Raises:
        JointDiffError: The first thing that is wrong, with its remedy.
    """
    if storage.run_path(Path(run.home), run.run_name).exists():
        raise RunError(
            f"A run named '{run.run_name}' is there already in {run.home}. Choose another run-name, or carry it on: "
            f"jointdiff-simulate --resume {run.run_name}"
        )
    if run.sites_home:
        storage.home(run.sites_home)
    # torch takes seconds to import: what can be known without it has been checked above.
    from jointdiff.data import hospital_data, info_of
    from jointdiff.data.server_set import server_data

    info = info_of(run)
    config = resolve(run, channels=info.channels, num_outputs=info.num_outputs, task=info.task)
    from jointdiff.preparation import check_startable
    from jointdiff.training import select_device

    check_startable(config)
    select_device(config.run.device)
    if run.label_split == AT_SERVER:
        server_data(run)
    for index in range(run.num_hospitals):
        data = hospital_data(run, index)
        if config.private:
            from jointdiff.phases import phases_of
            from jointdiff.privacy import num_units
            from jointdiff.private_training import plan_for

            for phase in phases_of(config):
                plan_for(phase, num_units(data.train))
    return config
