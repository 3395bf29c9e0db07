"""From what the user asked to a run that can start: resolved configuration, first weights, a folder of its own."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import yaml

from jointdiff import checkpoint, latent_run, storage
from jointdiff.config import Config, RunConfig, resolve, to_mapping
from jointdiff.data import DatasetInfo, info_of
from jointdiff.errors import ConfigError, RunError, nearest
from jointdiff.events import read_events
from jointdiff.networks import build, design_of
from jointdiff.phases import phases_of
from jointdiff.reproducibility import SERVER, seed_for


def prepare(run: RunConfig) -> tuple[Config, DatasetInfo, Path]:
    """Resolve the configuration and make the run's folder. No images are loaded: the hospitals have them.

    Returns:
        The configuration with the run's name and absolute folders; what the data set says of itself; the run's folder.

    Raises:
        JointDiffError: Unknown data set or preset, an existing run-name, an unwritable home, a model that does not fit.
    """
    info = info_of(run)
    home = storage.home(run.home)
    run = replace(
        run,
        run_name=run.run_name or run_name_for(run),
        home=str(home),
        sites_home=str(Path(run.sites_home).expanduser().absolute()) if run.sites_home else "",
    )
    config = resolve(run, channels=info.channels, num_outputs=info.num_outputs, task=info.task)
    check_startable(config)  # what cannot start must say so before there is a folder
    folder = storage.create_run(home, run.run_name)
    if run.autoencoder:
        latent_run.chosen(run, channels=info.channels).save(folder / latent_run.FILE)
    return config, info, folder


def check_startable(config: Config) -> None:
    """Check the parts of a configuration that need torch, but no images.

    Raises:
        ConfigError: The model cannot be built, or something in a private run cannot be private.
        CheckpointError: The weights to start from are missing, damaged, or of another architecture.
    """
    for phase in phases_of(config):
        with torch.device("meta"):
            build(design_of(phase))
        if phase.private:
            from jointdiff.privacy import refuse_what_cannot_be_private  # Opacus is slow to load, and few need it

            refuse_what_cannot_be_private(phase)
    if config.run.initial_weights:
        initial_weights(config)


def reopen(run: RunConfig) -> tuple[Config, DatasetInfo, Path]:
    """Return what `prepare` returned when the run of this name began: its own settings, its own folder.

    Args:
        run: Names the run and its home. Other keys come from the run itself; one that was set to something else than
            the run's own value and the default is refused, but for those that change no result.

    Raises:
        ConfigError: No run-name, or a setting of another configuration.
        RunError: There is no such run, it has finished, or its config.yaml is damaged.
    """
    if not run.run_name:
        raise ConfigError("resume=true needs the run-name of the run to carry on.")
    home = storage.home(run.home)
    folder = storage.run_path(home, run.run_name)
    if not folder.is_dir():
        names = [path.name for path in folder.parent.glob("*") if path.is_dir() and not path.is_symlink()]
        raise RunError(f"There is no run '{run.run_name}' in {home} to resume: {nearest(run.run_name, names)}")
    stored = _stored_config(folder)
    endings = [e["event"] for e in read_events(folder / "events.jsonl") if e["event"] in _ENDINGS]
    if endings[-1:] == ["run_finished"]:
        report = folder / "report.html"
        raise RunError(f"The run '{run.run_name}' has finished: there is nothing to resume. Its report: {report}")
    changes: dict[str, object] = {"home": str(home), "resume": False}
    default, asked, own = (to_mapping(c) for c in (RunConfig(), run, stored.run))
    for key, value in asked.items():
        if key in ("home", "resume") or value in (default[key], own[key]):
            continue
        if key not in _OPERATIONAL:
            raise ConfigError(
                f"The run '{run.run_name}' was started with {key}={own[key]!r}; now {value!r} is asked for. A run goes "
                "on with its own settings: leave the key out, or start a run of another name."
            )
        changes[key.replace("-", "_")] = value
    config = replace(stored, run=replace(stored.run, **changes))  # type: ignore[arg-type]
    info = info_of(config.run)
    return config, info, folder


_ENDINGS = ("run_started", "run_resumed", "run_finished", "run_failed")
_OPERATIONAL = (
    "device",
    "min-hospitals",
    "round-timeout-s",
    "round-retries",
)  # change no result of a run without faults


def _stored_config(folder: Path) -> Config:
    path = folder / "config.yaml"
    try:
        return Config.from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ConfigError, AttributeError, TypeError) as error:
        raise RunError(f"The run cannot be resumed: its {path} cannot be read ({error}). Start a new run.") from None


def run_name_for(run: RunConfig) -> str:
    """Return a name made from the data set, the method and the time."""
    source = Path(run.dataset.partition(":")[2]).stem if run.dataset.startswith("npz:") else run.dataset
    slug = re.sub(r"[^A-Za-z0-9]+", "-", source).strip("-")[:40] or "run"
    return f"{slug}-{run.method}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"[:-3]


def initial_weights(config: Config) -> dict[str, np.ndarray]:
    """Return the weights a run starts from, as float32 arrays: a checkpoint's, or a fresh model's drawn from the seed.

    Raises:
        ConfigError: The model does not fit the images.
        CheckpointError: The checkpoint is missing, damaged, or of another architecture.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(config.run.seed, SERVER, 0, "initial weights"))
        model = build(design_of(config))
    if config.run.initial_weights:
        checkpoint.load_into(model, config.run.initial_weights)
    return {name: tensor.numpy().astype(np.float32) for name, tensor in model.state_dict().items()}
