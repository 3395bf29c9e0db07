"""What one simulated hospital holds: its share of a data set, with all but a few labels hidden.

A deployed site reads its own data instead; `dataset` and `data-root` serve simulations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from jointdiff.config import RunConfig
from jointdiff.data.base import UNKNOWN, DatasetInfo, ImageSet, class_counts
from jointdiff.data.labelled_split import heldout_labels, kept_labels
from jointdiff.data.partition import deal, set_aside, strata_of
from jointdiff.data.registry import load_dataset
from jointdiff.data.scanner import draw_scanner, render_set
from jointdiff.errors import DataError


@dataclass(frozen=True)
class HospitalData:
    """One hospital's images. Arrays may be shared between hospitals of a process: nobody writes into them."""

    info: DatasetInfo
    train: ImageSet  # the labels that are not kept read UNKNOWN
    hidden_labels: np.ndarray  # the true labels of `train`: telemetry of simulations, never learned from
    heldout: ImageSet | None  # kept labels that choose the best round; not in `train`
    test: ImageSet  # this hospital's share of the split that is evaluated
    nonmembers: ImageSet | None = None  # `audit-holdout` of the training images, with their labels; nothing sees them


@dataclass(frozen=True)
class _Dealt:
    """Indices into the data set's splits, one array per hospital."""

    train: Sequence[np.ndarray]  # without the non-members
    nonmembers: Sequence[np.ndarray]
    kept: Sequence[np.ndarray]
    heldout: Sequence[np.ndarray]
    test: Sequence[np.ndarray]


def hospital_data(run: RunConfig, hospital_index: int) -> HospitalData:
    """Return what hospital `hospital_index` (0-based) holds; the same for the same run-config, and cheap to call again.

    Raises:
        ConfigError: Unknown data set, or num-labels does not fit it.
        DataError: A file is missing or damaged, or the partition leaves a hospital without data.
    """
    if not 0 <= hospital_index < run.num_hospitals:
        raise IndexError(f"hospital {hospital_index} of {run.num_hospitals}")
    return _hospital_data(_data_keys(run), hospital_index)


def class_table(data: HospitalData) -> dict[str, Any]:
    """Return how many images of each class (or with each finding) a hospital has labelled, and to test."""
    num_outputs = data.info.num_outputs
    num_labelled = data.train.num_labelled
    return {
        "class_names": list(data.info.class_names),
        "labelled": class_counts(data.train.labels, num_outputs),
        "num_labelled": num_labelled,
        "num_unlabelled": len(data.train) - num_labelled,
        "num_train": len(data.train),
        "num_heldout": 0 if data.heldout is None else len(data.heldout),
        "test": class_counts(data.test.labels, num_outputs),
        "num_test": len(data.test),
    }


def _data_keys(run: RunConfig) -> RunConfig:
    """Return the run-config with only the keys that decide what a hospital holds, so that runs share what is cached."""
    return replace(
        RunConfig(),
        dataset=run.dataset, data_root=run.data_root, image_size=run.image_size, num_hospitals=run.num_hospitals,
        num_labels=run.num_labels, partition=run.partition, split_seed=run.split_seed, eval_split=run.eval_split,
        audit_holdout=run.audit_holdout,
    )  # fmt: skip


@lru_cache(maxsize=4)
def _deal(run: RunConfig) -> _Dealt:
    data = load_dataset(run.dataset, data_root=run.data_root, image_size=run.image_size)
    test = data.val if run.eval_split == "val" else data.test
    if not len(test):
        raise DataError(f"{run.dataset} has no '{run.eval_split}' split to evaluate on: take eval-split=test.")
    strata = strata_of(data.train.labels)
    train = deal(run.partition, strata, run.num_hospitals, seed=run.split_seed, sources=data.train.sources)
    # Without sources of its own, a test split is dealt evenly: that changes no pooled number.
    partition = "iid" if run.partition == "by-source" and test.sources is None else run.partition
    shares = deal(
        partition, strata_of(test.labels), run.num_hospitals, seed=run.split_seed, purpose=1, sources=test.sources,
        what=f"images of the {run.eval_split} split",
    )  # fmt: skip
    rng = np.random.default_rng([run.split_seed, 17])
    nonmembers = [set_aside(strata, share, run.audit_holdout, rng) for share in train]
    train = [np.setdiff1d(share, apart) for share, apart in zip(train, nonmembers, strict=True)]
    num_classes = data.info.num_outputs
    kept = kept_labels(strata, train, run.num_labels, num_classes=num_classes, seed=run.split_seed)
    heldout = heldout_labels(strata, kept, num_classes=num_classes, seed=run.split_seed)
    return _Dealt(train=train, nonmembers=nonmembers, kept=kept, heldout=heldout, test=shares)


@lru_cache(maxsize=16)
def _hospital_data(run: RunConfig, hospital_index: int) -> HospitalData:
    data = load_dataset(run.dataset, data_root=run.data_root, image_size=run.image_size)
    dealt = _deal(run)
    held, apart = dealt.heldout[hospital_index], dealt.nonmembers[hospital_index]
    rows = np.setdiff1d(dealt.train[hospital_index], held)
    train = data.train.select(rows)
    hidden_labels = train.labels
    visible = np.isin(rows, dealt.kept[hospital_index])
    labels = np.where(visible if hidden_labels.ndim == 1 else visible[:, None], hidden_labels, UNKNOWN)
    parts = {
        "train": replace(train, labels=labels),
        "heldout": data.train.select(held) if len(held) else None,
        "test": (data.val if run.eval_split == "val" else data.test).select(dealt.test[hospital_index]),
        "nonmembers": data.train.select(apart) if len(apart) else None,
    }
    if run.partition == "scanner":
        scanner = draw_scanner(hospital_index, seed=run.split_seed)
        parts = {
            name: part and render_set(part, scanner, seed=(run.split_seed, hospital_index, number))
            for number, (name, part) in enumerate(parts.items())
        }
    return HospitalData(info=data.info, hidden_labels=hidden_labels, **parts)  # type: ignore[arg-type]
