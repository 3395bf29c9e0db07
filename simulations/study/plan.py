"""From a study to its runs: each with a name, a run-config of its own, and a row that waits for its result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jointdiff.config import RunConfig, parse_run_config, preset_of, to_mapping
from jointdiff.data.registry import info_of
from jointdiff.errors import ConfigError, JointDiffError
from jointdiff.overrides import absolute_paths
from jointdiff.presets import read_preset
from jointdiff.study_summary import CENTRALISED, FEDERATED, LOCAL_ONLY, Design, StudyRow
from simulations import baselines
from simulations.method_choice import PIXELS, Method, with_method
from simulations.named_run import fingerprint, resolved
from simulations.pixels import check_pixels
from simulations.study.file import FLWR, Study

_MAX_NAME = 80  # of a run, as jointdiff.storage has it


@dataclass(frozen=True)
class PlannedRun:
    """One run that a study asks for."""

    row: StudyRow
    run: RunConfig
    kind: str  # of its method
    runner: str  # local | flwr

    @property
    def work(self) -> int:
        """How many optimiser steps are to be computed, by all hospitals together."""
        if self.kind == PIXELS:
            return 0
        return self.row.steps * (self.run.num_asked if self.row.place == FEDERATED else 1)


def plan(
    study: Study, home: Path, *, local_steps: Mapping[tuple[str, str, int], int] | None = None
) -> list[PlannedRun]:
    """Return all runs of a study, draw by draw, so that an early stop leaves whole draws.

    Args:
        home: Folder of the runs, absolute.
        local_steps: For methods that go by another one's seconds: (method, setting, num-labels) to local-steps. What is
            not there yet is left out.

    Raises:
        ConfigError: A setting and a method exclude each other, or a value is wrong; names both.
    """
    planned: dict[tuple[str, str, int], PlannedRun] = {}
    decided = local_steps or {}
    for split_seed in study.split_seeds:
        for seed in study.seeds:
            for setting in study.settings:
                for method, count, place in _cells(study, setting, decided):
                    run = _run_of(study, setting, method, count, home, decided)
                    run = replace(run, split_seed=split_seed, seed=seed)
                    for one in _placed(study, setting, method, count, place, run):
                        planned.setdefault((one.row.run, one.row.place, one.row.hospital), one)
    return list(planned.values())


def undecided(study: Study, decided: Mapping[tuple[str, str, int], int]) -> list[tuple[str, str, int]]:
    """Return the cells (method, setting, num-labels) whose steps wait for other runs' seconds."""
    return [
        (name, setting, count)
        for name in study.seconds_of
        for setting in study.settings
        for count in study.num_labels
        if (setting, name) not in study.exclude and (name, setting, count) not in decided
    ]


def check(planned: list[PlannedRun]) -> None:
    """Check what can be known before anything runs: presets, models, devices, the data set's kind; no image is loaded.

    Raises:
        JointDiffError: The first thing that is wrong; names setting and method.
    """
    from jointdiff.preparation import check_startable  # torch takes seconds to import: typos were told before
    from jointdiff.training import select_device

    seen = set()
    for one in planned:
        key = (one.row.setting, one.row.method, one.row.num_labels, one.row.place)
        if key in seen:
            continue
        seen.add(key)
        with _named(one.row.setting, one.row.method):
            if one.kind == PIXELS:
                check_pixels(info_of(one.run))
            else:
                check_startable(resolved(one.run))
                select_device(one.run.device)


def design_of(study: Study, seed: int) -> Design:
    """Return what tables compare with what.

    Args:
        seed: Of the bootstrap.
    """
    return Design(
        tuple(study.methods), tuple(study.settings), study.num_labels, study.reference, study.lower, study.upper, seed
    )


def resolved_study(study: Study, decided: Mapping[tuple[str, str, int], int]) -> dict[str, Any]:
    """Return a study with everything that it leaves to defaults, fit for YAML."""
    methods: dict[str, Any] = {}
    for name, method in study.methods.items():
        entry: dict[str, Any] = {"kind": method.kind, "preset": method.preset, "run": dict(method.run)}
        if method.kind != PIXELS:
            base = preset_of(replace(RunConfig(), method=method.kind, preset=method.preset))
            entry["training"] = {**read_preset("training", base), **method.training}
        if name in study.seconds_of:
            like, whom = study.seconds_of[name]
            steps = {f"{s}, {n} labels": v for (m, s, n), v in decided.items() if m == name}
            entry |= {"like": like, "seconds-of": whom, "local-steps": steps}
        methods[name] = entry
    base_run = parse_run_config({**to_mapping(RunConfig()), **study.base})
    left_out = ("method", "preset", "num-labels", "split-seed", "seed", "run-name", "home", "sites-home", "resume")
    return {
        "name": study.name,
        "base": {key: value for key, value in to_mapping(base_run).items() if key not in left_out},
        "settings": {name: dict(keys) for name, keys in study.settings.items()},
        "methods": methods,
        "num-labels": list(study.num_labels),
        "split-seeds": list(study.split_seeds),
        "seeds": list(study.seeds),
        "workers": study.workers,
        "reference": study.reference,
        "bounds": {"lower": study.lower, "upper": study.upper},
        "centralised": list(study.centralised),
        "centralised-steps": study.centralised_steps,
        "local-only": list(study.local_only),
        "exclude": [{"setting": s, "method": m} for s, m in sorted(study.exclude)],
        "runner": study.runner,
    }


def _cells(
    study: Study, setting: str, decided: Mapping[tuple[str, str, int], int]
) -> Iterator[tuple[Method, int, str]]:
    for count in study.num_labels:
        for name, method in study.methods.items():
            if (setting, name) in study.exclude or (name in study.seconds_of and (name, setting, count) not in decided):
                continue
            yield method, count, FEDERATED
            if name in study.centralised:
                yield method, count, CENTRALISED
            if name in study.local_only:
                yield method, count, LOCAL_ONLY
    if study.upper:  # every label at its own hospital, however a setting deals the few
        method = study.methods[study.upper]
        yield replace(method, run={**method.run, "label-split": "even"}), 0, FEDERATED


def _run_of(
    study: Study, setting: str, method: Method, count: int, home: Path, decided: Mapping[tuple[str, str, int], int]
) -> RunConfig:
    """Return the run-config of a cell, of no draw yet."""
    with _named(setting, method.name):
        keys = {**to_mapping(RunConfig()), **study.base, **study.settings[setting], **method.run}
        run = parse_run_config({**keys, "num-labels": count, "home": str(home)})
        if method.name in study.seconds_of:
            run = replace(run, local_steps=decided[method.name, setting, count])
            method = replace(method, run={k: v for k, v in method.run.items() if k != "local-steps"})
        run = with_method(absolute_paths(run), method, home / "presets")
        return absolute_paths(parse_run_config(to_mapping(run)))


def _placed(study: Study, setting: str, method: Method, count: int, place: str, run: RunConfig) -> Iterator[PlannedRun]:
    with _named(setting, method.name):
        if place == CENTRALISED:
            runs = [(0, baselines.centralised(run, study.centralised_steps))]
        elif place == LOCAL_ONLY:
            runs = [(k + 1, baselines.alone(run)) for k in range(run.num_hospitals)]
        else:
            runs = [(0, run)]
        for hospital, own in runs:
            name = run_name(study.name, setting, method.name, own, place=place, hospital=hospital)
            steps = 0 if method.kind == PIXELS else own.num_rounds * own.local_steps
            row = StudyRow(
                study.name, setting, method.name, place, hospital, count, run.split_seed, run.seed, name, steps
            )
            runner = study.runner if place == FEDERATED and method.kind != PIXELS else "local"
            yield PlannedRun(row, replace(own, run_name=name), method.kind, runner)


def run_name(study: str, setting: str, method: str, run: RunConfig, *, place: str, hospital: int) -> str:
    """Return a run's name: readable parts, then the digits of its resolved configuration."""
    where = {FEDERATED: "", CENTRALISED: "-all", LOCAL_ONLY: f"-h{hospital}"}[place]
    tail = f"-{run.num_labels or 'full'}-{run.split_seed}-{run.seed}{where}-{fingerprint(run)}"
    return f"{study}-{setting}-{method}"[: _MAX_NAME - len(tail)] + tail


class _named:
    """Say in every error which setting and method it is about."""

    def __init__(self, setting: str, method: str) -> None:
        self._where = f"setting '{setting}' with method '{method}'"

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, JointDiffError):
            kind = type(error) if isinstance(error, ConfigError) else ConfigError
            raise kind(f"{self._where}: {error}") from None


def runner_of_flower(one: PlannedRun) -> bool:
    """Whether a run goes through Flower's own processes."""
    return one.runner == FLWR
