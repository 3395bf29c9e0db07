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

from jointdiff import checkpoint, identity, storage
from jointdiff.config import Config
from jointdiff.data.base import DatasetInfo
from jointdiff.errors import JointDiffError
from jointdiff.events import EventLog
from jointdiff.views.report import write_report

SCHEMA_VERSION = 1
Listener = Callable[[dict[str, Any]], None]
_log = logging.getLogger(__name__)


class RunRecord:
    """The run's folder. Every change reaches the disk before the method returns."""

    def __init__(self, folder: Path, config: Config, listener: Listener | None = None) -> None:
        self.folder = folder
        self.config = config
        self._events = EventLog(folder / "events.jsonl", listener)
        self._started = time.monotonic()
        self._best: float | None = None
        self.metrics: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION, "rounds": [], "best": {}, "final": {}, "samples": {}, "explanations": {},
        }  # fmt: skip
        storage.write_atomic(folder / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))

    def event(self, name: str, **fields: Any) -> None:
        """Append one event."""
        self._events.append(name, **fields)

    def start(self, info: DatasetInfo, hospitals: Sequence[str]) -> None:
        """Say what is about to run, on which data, with which code."""
        self.event(
            "run_started",
            config=self.config.to_dict(),
            run_name=self.config.run.run_name,
            dataset={**asdict(info), "num_outputs": info.num_outputs},
            hospitals=list(hospitals),
            code_version=identity.code_version(),
            code_hash=identity.code_hash(),
            flwr_version=importlib.metadata.version("flwr"),
            torch_version=torch.__version__,
        )

    def add_round(self, entry: Mapping[str, Any]) -> None:
        """Add one round's numbers to metrics.json; the newest round is `final` until the next one."""
        self.metrics["rounds"].append(dict(entry))
        self.metrics["final"] = dict(entry)
        self._write_metrics()

    def add(self, name: str, value: Mapping[str, Any]) -> None:
        """Set one of metrics.json's sections: best, samples or explanations."""
        self.metrics[name] = dict(value)
        self._write_metrics()

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
            round_number=round_number,
            metric=metric,
            metric_name=metric_name,
            code_hash=identity.code_hash(),
        )
        self.event("checkpoint_saved", round=round_number, path=path.relative_to(self.folder).as_posix(), kind=kind)

    def save_round(self, tensors: Mapping[str, np.ndarray], *, round_number: int, heldout_auc: float | None) -> None:
        """Save `last`; and `best`, chosen on held-out kept labels, or the same as `last` where there are none."""
        name = "" if heldout_auc is None else "heldout_auc"
        self.save_checkpoint("last", tensors, round_number=round_number, metric=heldout_auc, metric_name=name)
        # Of equals the later: it has seen more steps, and few held-out labels give many ties.
        if heldout_auc is None or self._best is None or heldout_auc >= self._best:
            self._best = heldout_auc
            self.save_checkpoint("best", tensors, round_number=round_number, metric=heldout_auc, metric_name=name)
            self.add("best", self.metrics["final"])

    def finish(self) -> Path:
        """Say that the run is done and write its report; return the report's path."""
        report = self.folder / "report.html"
        self.event(
            "run_finished",
            duration_s=time.monotonic() - self._started,
            report=report,
            final=self.metrics["final"],
            best=self.metrics["best"],
        )
        return write_report(self.folder)

    def fail(self, error: BaseException) -> None:
        """Say that the run has failed and why; never raise, so that the error itself reaches the user."""
        try:
            self.event("run_failed", reason=reason_of(error), duration_s=time.monotonic() - self._started)
            write_report(self.folder)
        except Exception:
            _log.warning("The failed run could not be recorded in %s.", self.folder, exc_info=True)

    def _write_metrics(self) -> None:
        storage.write_json(self.folder / "metrics.json", self.metrics)


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
