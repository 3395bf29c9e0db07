"""The ladder before joining: a model of this site's data alone, a federation's model, and both on the same own scans.

Nothing travels. What is found goes to ladder.json in the site's folder, from where the site's page shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from client import site_process
from client.data_look import class_names
from client.site_config import SiteConfig
from jointdiff import checkpoint, storage
from jointdiff.autoencoder_keys import AUTOENCODER
from jointdiff.config import SITES, RunConfig, parse_run_config, to_mapping
from jointdiff.data import DatasetInfo, HospitalData, info_of
from jointdiff.data.site_data import load_site
from jointdiff.errors import ConfigError, DataError
from jointdiff.intervals import estimates
from jointdiff.ledger import dataset_fingerprint
from jointdiff.local_work import statistics_of
from jointdiff.preparation import run_name_for
from jointdiff.spaces import seen_images
from jointdiff.standalone import train_on
from jointdiff.trained import Trained, open_trained
from jointdiff.views.live.ladder import ALONE, FEDERATION, LADDER_FILE, SCHEMA_VERSION

NAME = "this-site"  # of the only hospital of a run alone
_MEANINGLESS = (
    "target-epsilon", "noise-multiplier", "secure-aggregation", "home", "resume", "sites-home", "dataset", "data-root",
    "upload", "download", "share", "personal", "participation", "label-split", "server-data", "server-steps",
    "autoencoder-budget",
)  # fmt: skip


def run_alone(config: SiteConfig, asked: Mapping[str, Any]) -> RunConfig:
    """Return what training alone does: the keys of a federation's run-config, over this site's own data.

    Args:
        asked: Run-config keys; how many hospitals there are is passed over; without `classes` they are the data's.

    Raises:
        ConfigError: A key is unknown, or means nothing where one site trains alone.
    """
    default = to_mapping(RunConfig())
    for key in _MEANINGLESS:
        if asked.get(key, default[key]) not in (default[key], SITES):
            raise ConfigError(f"{key} means nothing where one site trains alone and nothing leaves it: leave it out.")
    classes = {} if "classes" in asked or config.data is None else {"classes": ",".join(class_names(config.data))}
    alone = {"dataset": SITES, "num-labels": 0, "num-hospitals": 1, "hospitals": "", "home": str(config.folder)}
    keys = {**classes, **asked, **alone}
    if config.device:
        keys["device"] = config.device
    run = parse_run_config(keys)
    if run.method == AUTOENCODER:
        raise ConfigError("method=autoencoder trains no classifier, and the ladder compares classifiers: leave it out.")
    if not run.run_name:
        run = replace(run, run_name=f"alone-{run_name_for(run)}")
    return run


def train_local(
    config: SiteConfig, asked: Mapping[str, Any], *, callback: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Train on this site's data alone, as long as a federation would, and put the result on the ladder.

    Args:
        asked: As `run_alone`.
        callback: Called with every event of the run.

    Returns:
        The ladder: schema_version, and `alone` and `federation` where they were measured.

    Raises:
        JointDiffError: Configuration or data are no good.
    """
    run = run_alone(config, asked)
    data = own_data(config, info_of(run))
    folder = train_on(run, data, name=NAME, callback=callback)
    return _measure(config, ALONE, folder / "checkpoints" / "best.safetensors", data)


def evaluate(config: SiteConfig, path: Path, *, device: str = "") -> dict[str, Any]:
    """Evaluate a federation's model, exported or a checkpoint, on this site's test scans; return the ladder.

    Raises:
        JointDiffError: Model or data are no good, or do not fit each other.
    """
    return _measure(config, FEDERATION, path, None, device=device)


def _measure(
    config: SiteConfig, rung: str, path: Path, data: HospitalData | None, *, device: str = ""
) -> dict[str, Any]:  # fmt: skip
    trained = open_trained(path, device=device or config.device or "auto")
    if rung == FEDERATION and trained.config.run.num_hospitals == 1:
        raise ConfigError(f"{path} was trained by one hospital alone: it is no federation's model. Name one that is.")
    test = (data or own_data(config, info_of_model(trained))).test
    found = statistics_of(trained.model, seen_images(test, trained.space), trained.config, trained.device).finish()
    told = estimates(found, trained.config.model.task)
    run = trained.config.run
    entry = {
        "time": site_process.now(),
        "run": run.run_name,
        "method": run.method,
        "round": checkpoint.load(path).round_number,
        "steps": run.num_rounds * run.local_steps,
        "num_hospitals": run.num_hospitals,
        "image_size": trained.config.model.image_size,
        "num_images": found["num_images"],
        "test_sha256": dataset_fingerprint(test.images),
        "metrics": {name: asdict(value) for name, value in told.items()},
    }
    with storage.locked(config.folder / f".{LADDER_FILE}.lock"):
        ladder = {**_read(config.folder), "schema_version": SCHEMA_VERSION, rung: entry}
        storage.write_json(config.folder / LADDER_FILE, ladder)
    return ladder


def own_data(config: SiteConfig, wanted: DatasetInfo) -> HospitalData:
    """Return this site's data as a model wants to see them.

    Raises:
        ConfigError: site.yaml names no data.
        DataError: They cannot be read, or hold no labelled scan to evaluate on.
    """
    if config.data is None:
        raise ConfigError(f"{config.path} has no section `data`: `jointdiff-client init` writes it.")
    data = load_site(config.data, wanted, cache=config.cache)
    if not data.test.num_labelled:
        raise DataError("This site has no labelled scan in its test part, so no model can be measured: label some.")
    return data


def info_of_model(trained: Trained) -> DatasetInfo:
    """Return what a model wants to see: its classes in their order, channels and size."""
    model = trained.config.model
    return DatasetInfo(
        name=SITES, task=model.task, class_names=trained.class_names, channels=model.channels,
        image_size=model.image_size, real=True, description="", licence="",
    )  # fmt: skip


def _read(folder: Path) -> dict[str, Any]:
    path = folder / LADDER_FILE
    found = storage.read_json(path) if path.exists() else {}
    return found if isinstance(found, dict) else {}
