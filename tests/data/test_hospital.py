"""What a simulated hospital holds."""

from __future__ import annotations

import numpy as np
import pytest

from jointdiff.config import RunConfig, parse_run_config
from jointdiff.data import UNKNOWN, HospitalData, class_table, hospital_data, load_dataset
from jointdiff.data.hospital import dealt_to_server
from jointdiff.errors import ConfigError, DataError


def hospitals(**keys) -> list[HospitalData]:
    run = RunConfig(**keys)
    return [hospital_data(run, index) for index in range(run.num_hospitals)]


def rows(images: np.ndarray) -> list[bytes]:
    return sorted(image.tobytes() for image in images)


@pytest.mark.parametrize("partition", ["iid", "dirichlet:0.5"])
@pytest.mark.parametrize("eval_split", ["test", "val"])
def test_the_hospitals_tests_are_together_exactly_the_official_split(partition: str, eval_split: str) -> None:
    parts = hospitals(partition=partition, eval_split=eval_split, num_hospitals=4)
    official = getattr(load_dataset("phantom"), eval_split)
    assert rows(np.concatenate([part.test.images for part in parts])) == rows(official.images)
    assert sum(part.test.labels.sum() for part in parts) == official.labels.sum()


@pytest.mark.parametrize("dataset", ["phantom", "phantom:3-classes", "phantom:multi-label"])
def test_all_labels_but_the_kept_ones_are_hidden(dataset: str) -> None:
    parts = hospitals(dataset=dataset, num_labels=12)
    assert sum(part.train.num_labelled for part in parts) == 12
    assert sum(len(part.train) for part in parts) == len(load_dataset(dataset).train)
    for part in parts:
        kept = part.train.labelled
        assert (part.train.labels[~kept] == UNKNOWN).all() and (part.hidden_labels != UNKNOWN).all()
        np.testing.assert_array_equal(part.train.labels[kept], part.hidden_labels[kept])
        assert part.heldout is None


def test_a_multi_label_set_keeps_every_finding_and_some_without() -> None:
    parts = hospitals(dataset="phantom:multi-label", num_labels=12)
    labels = np.concatenate([part.train.labels[part.train.labelled] for part in parts])
    assert (labels.sum(axis=0) >= 4).all() and (~labels.any(axis=1)).sum() == 4


def test_held_out_images_are_kept_labels_that_nobody_trains_on() -> None:
    parts = hospitals(num_labels=120)
    held = [part.heldout for part in parts]
    assert all(h is not None and h.num_labelled == len(h) for h in held)
    assert sum(len(h) for h in held if h is not None) == 24
    assert sum(part.train.num_labelled for part in parts) == 96
    trained = set(rows(np.concatenate([part.train.images for part in parts])))
    assert not trained & set(rows(np.concatenate([h.images for h in held if h is not None])))


def test_the_same_run_gives_the_same_hospital_and_only_what_names_data_matters() -> None:
    first = hospital_data(RunConfig(), 1)
    assert hospital_data(RunConfig(run_name="other", seed=5, num_rounds=3), 1) is first
    other = hospital_data(RunConfig(split_seed=1), 1)
    assert rows(other.train.images) != rows(first.train.images)


def test_one_hospital_is_labelled_and_nine_are_not() -> None:
    parts = hospitals(num_hospitals=10, num_labels=0, label_split="hospitals:1")
    first, *others = [(part.train.num_labelled, len(part.train)) for part in parts]
    assert first == (300 - len(parts[0].heldout or ()), first[0]) and set(others) == {(0, 300)}
    assert all(part.heldout is None for part in parts[1:])


@pytest.mark.parametrize("num_labels", [12, 120])
def test_the_servers_labelled_images_are_in_no_hospital(num_labels: int) -> None:
    run = RunConfig(num_labels=num_labels, label_split="server", partition="scanner")
    own, plain = dealt_to_server(run), load_dataset("phantom").train
    heldout = own.heldout.num_labelled if own.heldout else 0
    assert own.train.num_labelled == len(own.train) and len(own.train) + heldout == num_labels
    assert heldout == (24 if num_labels == 120 else 0)
    assert np.bincount(own.train.labels).tolist() == [len(own.train) // 2] * 2
    assert set(rows(own.train.images)) <= set(rows(plain.images))  # as they are: no hospital's scanner
    parts = hospitals(num_labels=num_labels, label_split="server")
    assert [part.train.num_labelled for part in parts] == [0, 0, 0] and not any(part.heldout for part in parts)
    everything = [own.train, *([own.heldout] if own.heldout else []), *(part.train for part in parts)]
    assert sorted(row for part in everything for row in rows(part.images)) == rows(plain.images)


def test_taking_every_image_out_of_the_hospitals_is_refused() -> None:
    with pytest.raises(DataError, match=r"takes all 3000 labelled images.*smaller num-labels"):
        hospitals(num_labels=0, label_split="server")


def test_gaps_are_for_classes() -> None:
    parts = hospitals(dataset="phantom:3-classes", partition="gaps:1")
    assert [set(part.hidden_labels) for part in parts] == [{0, 1}, {0, 2}, {1, 2}]
    assert [set(part.test.labels) for part in parts] == [{0, 1}, {0, 2}, {1, 2}]
    with pytest.raises(ConfigError, match="several findings"):
        hospitals(dataset="phantom:multi-label", partition="gaps:1")


def test_scanners_shift_the_images_and_nothing_else() -> None:
    plain, shifted = hospitals(), hospitals(partition="scanner")
    for a, b in zip(plain, shifted, strict=True):
        np.testing.assert_array_equal(a.train.labels, b.train.labels)
        np.testing.assert_array_equal(a.test.labels, b.test.labels)
        assert (a.train.images != b.train.images).mean() > 0.5
    means = [part.train.images.mean() for part in shifted]
    assert np.ptp(means) > 5


def test_by_source_deals_the_users_own_sources(write_arrays) -> None:
    path = write_arrays(train_source=np.arange(40) % 3)
    parts = hospitals(dataset=f"npz:{path}", image_size=12, partition="by-source", num_labels=0)
    assert [set(part.train.sources.tolist()) for part in parts if part.train.sources is not None] == [{0}, {1}, {2}]
    assert sum(len(part.test) for part in parts) == 10


def test_class_table_counts() -> None:
    data = hospital_data(RunConfig(num_labels=120), 0)
    assert class_table(data) == {
        "class_names": ["healthy", "lesion"],
        "labelled": [16, 16],
        "num_labelled": 32,
        "num_unlabelled": 960,
        "num_train": 992,
        "num_heldout": 8,
        "test": [110, 90],
        "num_test": 200,
    }


def test_bad_requests() -> None:
    with pytest.raises(ConfigError, match="num-labels is 3001"):
        hospitals(num_labels=3001)
    with pytest.raises(ConfigError, match="num-labels is 1"):
        hospitals(num_labels=1)
    with pytest.raises(DataError, match=r"hospital-601 .*without images of the test split"):
        hospital_data(RunConfig(num_hospitals=601), 0)
    with pytest.raises(DataError, match="by-source"):
        hospitals(partition="by-source")


def test_an_empty_validation_split_is_refused(write_arrays) -> None:
    with pytest.raises(DataError, match="no 'val' split"):
        hospitals(dataset=f"npz:{write_arrays()}", image_size=12, eval_split="val")


@pytest.mark.parametrize("num_labels", [0, 60])
def test_an_audit_holdout_is_a_stratified_share_that_nothing_else_holds(num_labels: int) -> None:
    plain, audited = hospitals(num_labels=num_labels), hospitals(num_labels=num_labels, audit_holdout=0.2)
    for before, part in zip(plain, audited, strict=True):
        assert part.nonmembers is not None and before.nonmembers is None
        everything = rows(before.train.images) + (rows(before.heldout.images) if before.heldout else [])
        parts = [p for p in (part.train, part.heldout, part.nonmembers) if p is not None]
        assert sorted(everything) == sorted(row for p in parts for row in rows(p.images))  # each image in one part
        assert len(part.nonmembers) == round(0.2 * len(everything))
        assert part.nonmembers.num_labelled == len(part.nonmembers)
        assert abs(part.nonmembers.labels.mean() - part.hidden_labels.mean()) < 0.01
        assert rows(part.test.images) == rows(before.test.images)
    assert num_labels == 0 or sum(p.train.num_labelled + len(p.heldout or []) for p in audited) == num_labels
    other = hospitals(num_labels=num_labels, audit_holdout=0.2, split_seed=1)[0].nonmembers
    assert other is not None and rows(other.images) != rows(audited[0].nonmembers.images)  # type: ignore[union-attr]


def test_a_holdout_for_the_audit_must_leave_enough_to_train_on() -> None:
    for share in (-0.1, 0.6, float("nan")):
        with pytest.raises(ConfigError, match="audit-holdout must be a share between"):
            parse_run_config({"audit-holdout": share})


def test_foreign_scanners_change_what_is_evaluated_and_nothing_else() -> None:
    plain, abroad = hospitals(partition="scanner"), hospitals(partition="scanner", eval_scanners=2)
    for before, part in zip(plain, abroad, strict=True):
        np.testing.assert_array_equal(part.train.images, before.train.images)
        np.testing.assert_array_equal(part.test.labels, np.tile(before.test.labels, 2))
        assert not set(rows(part.test.images)) & set(rows(before.test.images))
    for count in (-1, 17):
        with pytest.raises(ConfigError, match=rf"eval-scanners must be from 0.* to 16, not {count}"):
            parse_run_config({"eval-scanners": count})
    sites = {"dataset": "sites", "classes": "normal,ill", "num-labels": 0, "eval-scanners": 4}
    with pytest.raises(ConfigError, match="eval-scanners=4 makes no sense with dataset=sites"):
        parse_run_config(sites)
