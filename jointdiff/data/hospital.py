"""What one simulated hospital holds: its share of a data set, with all but a few labels hidden.

A deployed site reads its own data instead; `dataset` and `data-root` serve simulations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from jointdiff.config import RunConfig
from jointdiff.data.base import MULTI_LABEL, UNKNOWN, DatasetInfo, ImageSet, class_counts
from jointdiff.data.labelled_split import heldout_labels, kept_labels
from jointdiff.data.partition import deal, set_aside, strata_of
from jointdiff.data.registry import load_dataset
from jointdiff.data.scanner import draw_scanner, render_set, seen_abroad
from jointdiff.errors import ConfigError, DataError
from jointdiff.settings import AT_SERVER, partition_of

if TYPE_CHECKING:
    from jointdiff.augment import ViewSource


@dataclass(frozen=True)
class HospitalData:
    """One hospital's images. Arrays may be shared between hospitals of a process: nobody writes into them."""

    info: DatasetInfo
    train: ImageSet  # the labels that are not kept read UNKNOWN
    hidden_labels: np.ndarray  # the true labels of `train`: telemetry of simulations, never learned from
    heldout: ImageSet | None  # kept labels that choose the best round; not in `train`
    test: ImageSet  # this hospital's share of the split that is evaluated
    nonmembers: ImageSet | None = None  # `audit-holdout` of the training images, with their labels; nothing sees them
    view_source: ViewSource | None = None  # of `train`; None = the views of its own images


@dataclass(frozen=True)
class _Dealt:
    """Indices into the data set's splits, one array per hospital."""

    train: Sequence[np.ndarray]  # without the non-members
    nonmembers: Sequence[np.ndarray]
    kept: Sequence[np.ndarray]
    heldout: Sequence[np.ndarray]
    test: Sequence[np.ndarray]
    server: (
        np.ndarray
    )  # in no hospital's `train`: the server's own labelled images, of which `server_heldout` is a part
    server_heldout: np.ndarray


def hospital_data(run: RunConfig, hospital_index: int) -> HospitalData:
    """Return what hospital `hospital_index` (0-based) holds; the same for the same run-config, and cheap to call again.

    Raises:
        ConfigError: Unknown data set, or num-labels does not fit it.
        DataError: A file is missing or damaged, or the partition leaves a hospital without data.
    """
    if not 0 <= hospital_index < run.num_hospitals:
        raise IndexError(f"hospital {hospital_index} of {run.num_hospitals}")
    return _hospital_data(_data_keys(run), hospital_index)


def dealt_to_server(run: RunConfig) -> HospitalData:
    """Return the labelled images that label-split=server takes out of the hospitals; no scanner of theirs shifts them.

    Its test set is empty.

    Raises:
        ConfigError, DataError: As `hospital_data`.
    """
    run = _data_keys(run)
    data, dealt = load_dataset(run.dataset, data_root=run.data_root, image_size=run.image_size), _deal(run)
    train = data.train.select(np.setdiff1d(dealt.server, dealt.server_heldout))
    heldout = data.train.select(dealt.server_heldout) if len(dealt.server_heldout) else None
    return HospitalData(data.info, train, train.labels, heldout, test=data.test.select(np.arange(0)))


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
        num_labels=run.num_labels, label_split=run.label_split, partition=run.partition, split_seed=run.split_seed,
        eval_split=run.eval_split, eval_scanners=run.eval_scanners, audit_holdout=run.audit_holdout,
    )  # fmt: skip


@lru_cache(maxsize=4)
def _deal(run: RunConfig) -> _Dealt:
    data = load_dataset(run.dataset, data_root=run.data_root, image_size=run.image_size)
    test = data.val if run.eval_split == "val" else data.test
    if not len(test):
        raise DataError(f"{run.dataset} has no '{run.eval_split}' split to evaluate on: take eval-split=test.")
    strata, num_classes = strata_of(data.train.labels), data.info.num_outputs
    if data.info.task == MULTI_LABEL and partition_of(run.partition).name == "gaps":
        raise ConfigError(
            f"partition={run.partition} takes classes away, but an image of {run.dataset} can have several findings: "
            "take partition=dirichlet:0.1, or a set with classes."
        )
    train = deal(
        run.partition, strata, run.num_hospitals, seed=run.split_seed, num_classes=num_classes,
        sources=data.train.sources,
    )  # fmt: skip
    # Without sources of its own, a test split is dealt evenly: that changes no pooled number.
    partition = "iid" if run.partition == "by-source" and test.sources is None else run.partition
    shares = deal(
        partition, strata_of(test.labels), run.num_hospitals, seed=run.split_seed, num_classes=num_classes, purpose=1,
        sources=test.sources, what=f"images of the {run.eval_split} split",
    )  # fmt: skip
    rng = np.random.default_rng([run.split_seed, 17])
    nonmembers = [set_aside(strata, share, run.audit_holdout, rng) for share in train]
    train = [np.setdiff1d(share, apart) for share, apart in zip(train, nonmembers, strict=True)]
    kept = kept_labels(
        strata, train, run.num_labels, num_classes=num_classes, seed=run.split_seed, split=run.label_split
    )
    server = np.empty(0, dtype=np.int64)
    if run.label_split == AT_SERVER:
        server, kept, train = _taken_out(kept, train, run)
    heldout = heldout_labels(strata, [*kept, server], num_classes=num_classes, seed=run.split_seed)
    return _Dealt(
        train=train, nonmembers=nonmembers, kept=kept, heldout=heldout[:-1], test=shares, server=server,
        server_heldout=heldout[-1],
    )  # fmt: skip


def _taken_out(
    kept: Sequence[np.ndarray], train: Sequence[np.ndarray], run: RunConfig
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Return the server's images, and the kept ones (none) and training images that the hospitals have left."""
    server = np.sort(np.concatenate(kept))
    train = [np.setdiff1d(share, own) for share, own in zip(train, kept, strict=True)]
    if not all(map(len, train)):
        raise DataError(
            f"label-split=server with num-labels={run.num_labels} takes all {len(server)} labelled images out of the "
            "hospitals, and leaves one of them without any: take a smaller num-labels."
        )
    return server, [server[:0] for _ in kept], train


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
    if run.eval_scanners and (test := parts["test"]) is not None:
        parts["test"] = seen_abroad(test, run.eval_scanners, seed=(run.split_seed, hospital_index))
    return HospitalData(info=data.info, hidden_labels=hidden_labels, **parts)  # type: ignore[arg-type]
