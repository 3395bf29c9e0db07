"""`jointdiff-client audit`: attack a finished run's model with this site's own data. Nothing travels."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from client import site_config
from jointdiff import checkpoint, ledger, storage
from jointdiff.attacks.audit import NOISE_MULTIPLIER, audit
from jointdiff.checkpoint import Checkpoint
from jointdiff.config import SITES, Config, RunConfig
from jointdiff.data import HospitalData, hospital_data
from jointdiff.data.registry import info_of
from jointdiff.data.site_data import load_site
from jointdiff.errors import CheckpointError, ConfigError
from jointdiff.model import JointModel
from jointdiff.networks import check_joint
from jointdiff.training import select_device
from jointdiff.views.audit_page import AuditFacts, write_audit
from jointdiff.views.audit_sections import Privacy

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True)
class Request:
    """What was typed."""

    source: str  # a run's folder, its name, or a checkpoint file
    site_folder: str  # '' = where the run keeps this hospital's folder, else the home
    hospital: int  # 1-based
    num_references: int
    num_inversions: int
    device: str = "auto"


def audit_run(request: Request, *, progress: Callable[[str], None]) -> Path:
    """Attack and write SITE/audit/<run>/index.html with metrics.json and pictures beside it.

    Returns:
        The absolute path of the page.

    Raises:
        ConfigError: A number out of its range, or a run of real hospitals where site.yaml names no data.
        CheckpointError: There is no such run or checkpoint, or it is damaged.
        DataError: The site's data are not there.
        RefusedError: The ledger is not in order.
    """
    began = time.perf_counter()
    path = find_checkpoint(request.source)
    loaded = checkpoint.load(path)
    config = loaded.config
    _check(request, config)
    if config.model.latent:
        raise CheckpointError(
            "The attacks of the audit work on pixels, and this model works on latents of an autoencoder: they cannot "
            "be made yet. Audit a run without autoencoder."
        )
    index = request.hospital - 1
    folder = site_folder(request, path, config)
    name = config.run.run_name
    if not _PLAIN_NAME.fullmatch(name):
        name = path.stem
    privacy = read_privacy(folder)
    device = select_device(request.device)
    data = _data(config.run, index, folder)
    found = audit(
        _model(loaded, device), config, data, hospital_index=index, device=device,
        num_references=request.num_references, num_inversions=request.num_inversions,
        noise_multiplier=_noise_multiplier(folder, config.run.run_name), progress=progress,
    )  # fmt: skip
    facts = AuditFacts(
        run_name=name, dataset=data.info.name, real=data.info.real, round_number=loaded.round_number,
        method=config.run.method, duration_s=time.perf_counter() - began,
    )  # fmt: skip
    return write_audit(folder / "audit" / name, found, facts, privacy)


def _data(run: RunConfig, index: int, folder: Path) -> HospitalData:
    """Return what the run trained on here: a hospital's share of the run's data set, or what site.yaml names."""
    if run.dataset != SITES:
        return hospital_data(run, index)
    own = site_config.read(folder)
    if own.data is None:
        raise ConfigError(
            f"The run was trained on the hospitals' own data, and {own.path} names none: name your "
            "site.yaml with --site."
        )
    return load_site(own.data, info_of(run), cache=own.cache, audit_holdout=run.audit_holdout)


def find_checkpoint(source: str) -> Path:
    """Return the checkpoint of a run's folder, of a run's name in the home, or the file itself.

    Raises:
        CheckpointError: There is none.
    """
    path = Path(source).expanduser()
    if not path.exists() and _PLAIN_NAME.fullmatch(source):
        path = storage.home() / "runs" / source
    if path.is_dir():
        path = path / "checkpoints" / "last.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint at {path.absolute()}. Name a run's folder, its name in the home, or a .safetensors"
            " file."
        )
    return path.resolve()


def site_folder(request: Request, path: Path, config: Config) -> Path:
    """Return the site's own folder: the one that was named, else the run's for this hospital, else the home."""
    if request.site_folder:
        return Path(request.site_folder).expanduser().absolute()
    hospital, run_folder = f"hospital-{request.hospital}", path.parent.parent
    if config.run.sites_home:
        return Path(config.run.sites_home) / hospital
    if path.parent.name == "checkpoints" and run_folder.name == config.run.run_name:
        return run_folder / "sites" / hospital
    return storage.home()


def read_privacy(folder: Path) -> Privacy | None:
    """Return what the site's ledger says was spent; None where it has none, or no finite epsilon.

    Raises:
        RefusedError: The ledger is not in order: a page that shows no epsilon would be wrong.
    """
    found = ledger.summary(folder)
    if found is None or not found["entries"] or found["epsilon"] is None:
        return None
    return Privacy(epsilon=float(found["epsilon"]), delta=float(found["delta"]))


def _check(request: Request, config: Config) -> None:
    if not 1 <= request.hospital <= config.run.num_hospitals:
        raise ConfigError(f"--hospital must be 1 to {config.run.num_hospitals}, not {request.hospital}.")
    if request.num_references < 0 or request.num_references % 2:
        raise ConfigError(
            f"--references must be an even number, or 0 for none, not {request.num_references}: reference models come"
            " in pairs, so that each image is unknown to one of each pair."
        )
    if request.num_inversions < 0:
        raise ConfigError(f"--inversions must be 0 or more, not {request.num_inversions}.")


def _noise_multiplier(folder: Path, run_name: str) -> float:
    """Return the noise multiplier of the run's last private round here, else the one that is shown for comparison."""
    found = ledger.summary(folder)
    used = [e["noise_multiplier"] for e in (found["entries"] if found else ()) if e["run"] == run_name]
    return float(used[-1] if used and used[-1] else NOISE_MULTIPLIER)


def _model(loaded: Checkpoint, device: torch.device) -> JointModel:
    check_joint(loaded.config, "of the run")
    with torch.random.fork_rng(devices=[]):
        model = JointModel(loaded.config.model)
    model.load_state_dict(loaded.state)
    return model.to(device).eval()
