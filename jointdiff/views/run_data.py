"""What a report is made of: a run's folder read into plain dicts. A failed run has a report too, so gaps are normal."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from jointdiff.errors import RunError
from jointdiff.events import read_events
from jointdiff.history import History, effective
from jointdiff.storage import read_json
from jointdiff.views.format import is_number

Event = dict[str, Any]
TROUBLE = ("hospital_failed", "hospital_refused", "update_rejected", "update_questioned")


@dataclass(frozen=True)
class RunData:
    """One run, as its folder tells it."""

    folder: Path  # absolute
    events: list[Event]  # those that still count
    metrics: dict[str, Any] = field(default_factory=dict)  # what metrics.json holds
    config: dict[str, Any] = field(default_factory=dict)  # Config.to_dict()

    def of(self, *names: str) -> list[Event]:
        """Return the events of these names, in order of time."""
        return [event for event in self.events if event["event"] in names]

    def last(self, name: str) -> Event:
        """Return the newest event of a name, {} where there is none."""
        found = self.of(name)
        return found[-1] if found else {}

    @property
    def ending(self) -> Event:
        """How the run ended last: run_finished or run_failed; {} where it has not, or was carried on since."""
        for event in reversed(self.of("run_started", "run_resumed", "run_finished", "run_failed")):
            return event if event["event"] in ("run_finished", "run_failed") else {}
        return {}

    @property
    def started(self) -> Event:
        """The event run_started."""
        return self.last("run_started")

    @property
    def run_name(self) -> str:
        """The run's name; that of its folder where no event tells."""
        return str(self.started.get("run_name") or self.folder.name)

    @property
    def run_config(self) -> dict[str, Any]:
        """The section `run` of the resolved configuration."""
        return mapping(self.config.get("run"))

    @property
    def split(self) -> str:
        """What the images are of that the run was evaluated on: `test` or `validation`."""
        return "validation" if self.run_config.get("eval-split") == "val" else "test"

    @property
    def evaluated_on(self) -> str:
        """What the images are called that the run was evaluated on."""
        count = self.run_config.get("eval-scanners")
        return f"{self.split} images" + (f" as {count} scanners show them that no hospital has" if count else "")

    @property
    def dataset(self) -> dict[str, Any]:
        """What the data set says of itself."""
        return mapping(self.started.get("dataset"))

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, [] where not known."""
        return [str(name) for name in self.dataset.get("class_names") or []]

    @property
    def hospitals(self) -> list[str]:
        """Names of all hospitals that the run knew of, in its own order."""
        names = dict.fromkeys(str(name) for name in self.started.get("hospitals") or [])
        for event in self.events:
            if "hospital" in event:
                names.setdefault(str(event["hospital"]))
        return list(names)

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """Evaluated rounds, one dict each: round, pooled, hospitals, training."""
        return [entry for entry in self.metrics.get("rounds") or [] if isinstance(entry, dict)]

    @property
    def final(self) -> dict[str, Any]:
        """The last round's entry; {} where nothing was evaluated."""
        return mapping(self.metrics.get("final")) or (self.rounds[-1] if self.rounds else {})

    @property
    def num_rounds(self) -> int | None:
        """How many rounds the run was asked for, all phases together; None where nothing tells."""
        asked, first = self.run_config.get("num-rounds"), self.run_config.get("autoencoder-rounds")
        if not isinstance(asked, int):
            return None
        return asked + first if self.run_config.get("latent") is True and isinstance(first, int) else asked

    @property
    def phases(self) -> list[RunData]:
        """The run's phases that have begun, each with its own rounds; of a run of one phase itself."""
        begun = {event.get("number"): event for event in self.of("phase_started")}
        ranges = [(event.get("first_round"), event.get("last_round")) for event in begun.values()]
        return [self._between(first, last) for first, last in ranges if first and last] or [self]

    def _between(self, first: int, last: int) -> RunData:
        def inside(entry: Mapping[str, Any]) -> bool:
            return isinstance(entry.get("round"), int) and first <= entry["round"] <= last

        rounds = [entry for entry in self.rounds if inside(entry)]
        metrics = {**self.metrics, "rounds": rounds, "final": rounds[-1] if rounds else {}}
        return replace(self, events=[event for event in self.events if inside(event)], metrics=metrics)

    def replies(self, kind: str | None = None) -> list[Event]:
        """Return the replies of the hospitals, of one kind or of all."""
        return [event for event in self.of("hospital_replied") if kind is None or event.get("kind") == kind]

    def training_curve(self, key: str) -> dict[str, list[tuple[float, float | None]]]:
        """Return one training metric over the rounds, for every hospital that reports it.

        Hospitals stand in the order of the evaluations: replies come in any, and a colour must mean one hospital.
        """
        curves: dict[str, dict[int, float | None]] = {}
        for event in self.replies("train"):
            if key in mapping(event.get("metrics")):
                # A round that was repeated after a restart counts once: the newest reply stands.
                curves.setdefault(str(event["hospital"]), {})[int(event["round"])] = event["metrics"][key]
        known = [str(name) for entry in self.rounds for name in mapping(entry.get("hospitals"))]
        return {name: sorted(curves[name].items()) for name in dict.fromkeys((*known, *curves)) if name in curves}

    def site_folder(self, hospital: str) -> Path | None:
        """Return a simulated site's folder; None where there is none, as in deployment."""
        if not hospital or hospital in (".", "..") or Path(hospital).name != hospital:
            return None
        sites_home = self.run_config.get("sites-home")
        for parent in (self.folder / "sites", Path(str(sites_home)) if sites_home else None):
            if parent is not None and (parent / hospital).is_dir():
                return Path(os.path.abspath(parent / hospital))
        return None

    def galleries(self) -> Iterator[tuple[str, Path, dict[str, Any]]]:
        """Yield hospital, folder and metrics.json of every gallery that can be read from here."""
        for hospital in self.hospitals:
            site = self.site_folder(hospital)
            folder = site / "explanations" / self.run_name if site else None
            if folder is not None and (folder / "index.html").is_file() and (folder / "metrics.json").is_file():
                yield hospital, folder, mapping(read_json(folder / "metrics.json"))


def load_run(folder: Path) -> RunData:
    """Read config.yaml and events.jsonl of a run; only the events must be there.

    Raises:
        RunError: The folder or its events are missing, or a file is damaged.
    """
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        raise RunError(f"There is no run at {folder}. A run's folder is HOME/runs/<run-name>.")
    events = effective(read_events(folder / "events.jsonl"))
    run = RunData(folder, events)
    config = mapping(run.started.get("config"))
    if (folder / "config.yaml").is_file():
        try:
            config = mapping(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))) or config
        except yaml.YAMLError as error:
            raise RunError(
                f"{folder / 'config.yaml'} is no YAML: {error}. It was written whole; was it edited?"
            ) from error
    return RunData(folder, events, History(events).to_metrics(), config)


def privacy_spent(run: RunData) -> dict[str, dict[str, Any]]:
    """Return what each hospital last said of its privacy: epsilon (over its ledger's life), delta and how it trained.

    A site's epsilon adds up over rounds, so the largest is the newest.
    """
    spent: dict[str, dict[str, Any]] = {}
    for event in run.replies():
        facts, name = {**mapping(event.get("metrics")), **event}, str(event["hospital"])
        if is_number(facts.get("epsilon")) and facts["epsilon"] >= spent.get(name, facts)["epsilon"]:
            spent[name] = facts
    return spent


def mapping(value: Any) -> dict[str, Any]:
    """Return `value` where it is a mapping, else {}: a gap in a file must not stop a report."""
    return dict(value) if isinstance(value, Mapping) else {}
