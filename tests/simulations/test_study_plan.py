"""From a study to its runs: which, in which order, under which names, and what excludes what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jointdiff.data import hospital_data
from jointdiff.errors import ConfigError
from jointdiff.study_summary import CENTRALISED, FEDERATED, LOCAL_ONLY
from simulations.baselines import alone, centralised, pooled_data
from simulations.study.file import parse_study
from simulations.study.plan import PlannedRun, check, plan, undecided


@pytest.fixture
def planned(tiny_run, tmp_path: Path):
    """A function that plans a tiny study."""
    run = tiny_run()
    base = {
        "dataset": run.dataset,
        "image-size": 16,
        "model": run.model,
        "num-rounds": 2,
        "local-steps": 3,
        "explain": 0,
    }

    def make(steps: dict[tuple[str, str, int], int] | None = None, **changes: Any) -> list[PlannedRun]:
        tree = {
            "name": "s", "base": base, "methods": {"joint": None, "sup": "supervised"}, "num-labels": [6, 12],
            "split-seeds": [0, 1], **{key.replace("_", "-"): value for key, value in changes.items()},
        }  # fmt: skip
        make.study = parse_study(tree, where="f")
        return plan(make.study, tmp_path / "home", local_steps=steps)

    return make


def told(runs: list[PlannedRun]) -> list[tuple[str, str, int, int, int]]:
    return [(r.row.method, r.row.place, r.row.num_labels, r.row.split_seed, r.row.hospital) for r in runs]


def test_runs_come_draw_by_draw_and_bounds_once(planned):
    runs = planned(bounds={"upper": "sup"})
    assert told(runs) == [
        (method, FEDERATED, count, split, 0)
        for split in (0, 1)
        for count, method in ((6, "joint"), (6, "sup"), (12, "joint"), (12, "sup"), (0, "sup"))
    ]
    assert len({one.row.run for one in runs}) == len(runs) and all(one.row.run == one.run.run_name for one in runs)
    assert runs[4].run.num_labels == 0 and runs[0].row.steps == 6 and runs[0].work == 18
    both = planned(bounds={"upper": "sup"}, num_labels=[0, 6])
    assert len(both) == 8, "the upper bound is the row with all labels, not a second run"


def test_baselines_stand_beside_every_row(planned):
    runs = planned(centralised="joint", local_only="joint", num_labels=6, split_seeds=0)
    assert told(runs) == [
        ("joint", FEDERATED, 6, 0, 0), ("joint", CENTRALISED, 6, 0, 0), ("joint", LOCAL_ONLY, 6, 0, 1),
        ("joint", LOCAL_ONLY, 6, 0, 2), ("joint", LOCAL_ONLY, 6, 0, 3), ("sup", FEDERATED, 6, 0, 0),
    ]  # fmt: skip
    assert [r.row.steps for r in runs] == [6, 18, 6, 6, 6, 6] and [r.work for r in runs] == [18, 18, 6, 6, 6, 18]
    (_, central, *_) = planned(centralised="joint", centralised_steps="one-hospital", num_labels=6)
    assert central.row.steps == 6


def test_steps_count_those_hospitals_that_a_round_asks(planned):
    (one, central, *_) = planned(centralised="joint", num_labels=6, settings={"some": {"participation": 0.4}})
    assert one.run.num_hospitals == 3 and one.row.steps == 6 and one.work == central.work == 6


def test_a_changed_setting_is_another_run_and_an_unrelated_change_is_not(planned):
    names = [one.row.run for one in planned()]
    assert names == [one.row.run for one in planned(workers=3, local_only="joint") if one.row.place == FEDERATED]
    changed = planned(methods={"joint": "joint+pseudo-weight=0.5", "sup": "supervised"})
    different = [a != one.row.run for a, one in zip(names, changed, strict=True)]
    assert different == [one.row.method == "joint" for one in changed]


def test_what_excludes_itself_is_told_with_its_names_before_anything_runs(planned):
    settings = {"iid": {}, "odd": {"strategy": "krum"}}
    with pytest.raises(ConfigError, match="setting 'odd' with method 'joint': strategy=krum with num-faulty=1 needs"):
        planned(settings=settings)
    left = planned(settings=settings, exclude=[{"setting": "odd", "method": m} for m in ("joint", "sup")])
    assert {one.row.setting for one in left} == {"iid"}
    with pytest.raises(ConfigError, match="setting 'default' with method 'sup': a private run has no centralised"):
        planned(methods={"sup": {"kind": "supervised", "run": {"target-epsilon": 8.0}}}, centralised="sup")
    with pytest.raises(ConfigError, match="setting 'default' with method 'joint': There is no checkpoint at /nowhere"):
        check(planned(base={"dataset": "phantom", "initial-weights": "/nowhere.safetensors"}))
    with pytest.raises(ConfigError, match="with method 'pixels': The method 'pixels' is for two classes"):
        check(planned(base={"dataset": "phantom:3-classes"}, methods={"pixels": None}))


def test_a_method_may_go_by_anothers_seconds(planned):
    methods = {"joint": None, "sup": "supervised", "longer": {"like": "sup", "seconds-of": "joint"}}
    runs = planned(methods=methods, num_labels=6)
    assert "longer" not in {one.row.method for one in runs}
    assert undecided(planned.study, {}) == [("longer", "default", 6)]
    decided = {("longer", "default", 6): 8}
    runs = planned(decided, methods=methods, num_labels=6)
    assert [one.row.steps for one in runs if one.row.method == "longer"] == [16, 16]
    assert undecided(planned.study, decided) == []


@pytest.mark.usefixtures("small_holdouts")
def test_centralised_has_the_hospitals_images_and_kept_labels(tiny_run):
    run = tiny_run(partition="scanner", num_labels=6, strategy="fedprox", upload="int8")
    parts, pooled = [hospital_data(run, k) for k in range(3)], pooled_data(run)
    assert np.array_equal(pooled.train.images, np.concatenate([part.train.images for part in parts]))
    assert np.array_equal(pooled.train.labels, np.concatenate([part.train.labels for part in parts]))
    assert pooled.train.num_labelled == 6 and len(pooled.test) == sum(len(part.test) for part in parts)
    assert len(pooled.hidden_labels) == len(pooled.train) and pooled.heldout is None
    many = tiny_run(num_labels=40)
    held = [hospital_data(many, k).heldout for k in range(3)]
    assert len(pooled_data(many).heldout) == sum(len(h) for h in held if h is not None) > 0
    kept = centralised(run, "total")
    assert (kept.local_steps, kept.strategy, kept.upload, kept.split_seed) == (6, "fedavg", "fp32", run.split_seed)
    assert alone(run).local_steps == run.local_steps
