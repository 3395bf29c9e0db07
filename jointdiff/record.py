"""What a run leaves in its folder while it goes: config.yaml, events.jsonl, metrics.json, checkpoints, report.html."""

from __future__ import annotations

import importlib.metadata
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from jointdiff import checkpoint, identity, latent_run, storage
from jointdiff.config import Config
from jointdiff.data.base import DatasetInfo
from jointdiff.errors import JointDiffError
from jointdiff.events import EventLog, read_events
from jointdiff.history import History, how_to_resume
from jointdiff.views.report import write_report

Listener = Callable[[dict[str, Any]], None]
_log = logging.getLogger(__name__)


class RunRecord:
    """The run's folder. Every change reaches the disk before the method returns."""

    def __init__(
        self, folder: Path, config: Config, listener: Listener | None = None, *, resumable: bool = False
    ) -> None:
        """Open the record of a run, a new one or one that goes on.

        Args:
            folder: HOME/runs/<run>.
            config: The resolved configuration.
            listener: Called with every event after it is on disk.
            resumable: Whether the run can be carried on after a failure; its last event then says how.
        """
        self.folder = folder
        self.config = config
        self._events = EventLog(folder / "events.jsonl", listener)
        self._resumable = resumable
        self._part: checkpoint.Part | None = None  # the autoencoder of a latent run, once it was read
        self._started = time.monotonic()
        self._history = History(read_events(folder / "events.jsonl") if (folder / "events.jsonl").exists() else ())
        self.write_config(config)

    def write_config(self, config: Config) -> None:
        """Write config.yaml: the configuration of the whole run."""
        storage.write_atomic(self.folder / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))

    def enter(self, config: Config, *, anew: bool = True) -> None:
        """Go into a phase of the run: from here on its rounds are told, and checkpoints hold its configuration.

        Args:
            config: Of the phase, which in most runs is the only one.
            anew: False where a run that is resumed was in the phase already.
        """
        self.config, self._part = config, None
        if (phase := config.phase) is not None and anew:
            first, last = phase.rounds_before + 1, phase.rounds_before + config.run.num_rounds
            self.event("phase_started", round=0, phase=phase.name, number=phase.number, num_phases=2,
                       first_round=first, last_round=last, autoencoder=config.model.autoencoder or None)  # fmt: skip

    def event(self, name: str, **fields: Any) -> None:
        """Append one event; metrics.json follows where the event changes its numbers.

        Args:
            fields: `round` is counted within the phase, and written as counted through the run.
        """
        if "round" in fields:
            fields["round"] += self.config.rounds_before
        if self._history.add(self._events.append(name, **fields)):
            storage.write_json(self.folder / "metrics.json", self._history.to_metrics())

    def start(self, info: DatasetInfo, hospitals: Sequence[str]) -> None:
        """Say what is about to run, on which data, with which code."""
        self.event(
            "run_started",
            config=self.config.to_dict(),
            run_name=self.config.run.run_name,
            dataset={**asdict(info), "num_outputs": info.num_outputs},
            hospitals=list(hospitals),
            **_versions(),
        )

    def resume(self, round_number: int) -> None:
        """Say that the run goes on after a round, counted through it: what its events tell of later ones was given up.

        It comes before any phase is entered.
        """
        self.event("run_resumed", round=round_number, **_versions())

    @property
    def heldout_auc(self) -> float | None:
        """The held-out AUC of the last evaluated round, if there is any."""
        return self._history.final.get("heldout_auc")

    @property
    def last_pooled(self) -> dict[str, Any]:
        """The pooled metrics of the last evaluated round; {} where every hospital withheld them."""
        return self._history.final.get("pooled") or {}

    @property
    def _autoencoder(self) -> checkpoint.Part | None:
        """Of a latent run: its autoencoder goes into every checkpoint, so that one file is the whole model."""
        if self.config.model.latent and self._part is None:
            self._part = checkpoint.Part(*latent_run.to_tensors(latent_run.open_in(self.folder, self.config.model)))
        return self._part

    def save_checkpoint(
        self, kind: str, tensors: Mapping[str, np.ndarray], *, round_number: int, metric: float | None, metric_name: str
    ) -> None:
        """Write checkpoints/<kind>.safetensors (`last` or `best`)."""
        path = self.folder / "checkpoints" / f"{kind}.safetensors"
        path.parent.mkdir(exist_ok=True)
        checkpoint.save(
            path,
            {name: torch.from_numpy(array) for name, array in tensors.items()},
            self.config,
            round_number=round_number + self.config.rounds_before,
            metric=metric,
            metric_name=metric_name,
            code_hash=identity.code_hash(),
            autoencoder=self._autoencoder,
        )
        self.event("checkpoint_saved", round=round_number, path=path.relative_to(self.folder).as_posix(), kind=kind)

    def save_round(self, tensors: Mapping[str, np.ndarray], *, round_number: int, heldout_auc: float | None) -> None:
        """Save `last`; and `best`, chosen on held-out kept labels, or the same as `last` where there are none."""
        name = "" if heldout_auc is None else "heldout_auc"
        self.save_checkpoint("last", tensors, round_number=round_number, metric=heldout_auc, metric_name=name)
        best = self._history.best.get("heldout_auc")
        # Of equals the later: it has seen more steps, and few held-out labels give many ties.
        if heldout_auc is None or best is None or heldout_auc >= best:
            self.save_checkpoint("best", tensors, round_number=round_number, metric=heldout_auc, metric_name=name)

    def finish(self) -> Path:
        """Say that the run is done and write its report; return the report's path."""
        self.event(
            "run_finished",
            duration_s=time.monotonic() - self._started,
            report=self.folder / "report.html",
            final=self._history.final,
            best=self._history.best,
        )
        return write_report(self.folder)

    def fail(self, error: BaseException) -> None:
        """Say that the run has failed and why; never raise, so that the error itself reaches the user."""
        try:
            self.event(
                "run_failed",
                reason=reason_of(error),
                duration_s=time.monotonic() - self._started,
                resume=how_to_resume(self.config.run.run_name) if self._resumable else None,
            )
            write_report(self.folder)
        except Exception:
            _log.warning("The failed run could not be recorded in %s.", self.folder, exc_info=True)


def _versions() -> dict[str, str]:
    return {
        "code_version": identity.code_version(),
        "code_hash": identity.code_hash(),
        "flwr_version": importlib.metadata.version("flwr"),
        "torch_version": torch.__version__,
    }


def reason_of(error: BaseException) -> str:
    """Return what a user should read about the error: our own errors speak for themselves.

    >>> reason_of(KeyboardInterrupt())
    'interrupted'
    """
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    text = str(error).strip()
    if isinstance(error, JointDiffError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
