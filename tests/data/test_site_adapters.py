"""One battery over every way in which a site can keep its scans: the same phantoms come out of all of them."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from jointdiff.data import MULTI_LABEL, UNKNOWN, DatasetInfo, HospitalData, ImageSet, class_table
from jointdiff.data.phantom import draw_scans, phantom_info
from jointdiff.data.site_data import load_site, open_site
from jointdiff.data.site_source import SiteSource, read_source

NUM, NUM_UNLABELLED, NUM_TEST = 60, 12, 15
IDENTITY = [128, 256]  # the DICOM window that shows 0..255 as it is


@dataclass(frozen=True)
class Scans:
    """What every kind of data is written from; row i is file i."""

    info: DatasetInfo
    images: np.ndarray
    labels: np.ndarray  # UNKNOWN for some
    patients: Sequence[str] = ()
    splits: Sequence[str] = ()  # train | test

    def text(self, row: int) -> str:
        label = self.labels[row]
        if (label == UNKNOWN).any():
            return ""
        if self.info.task != MULTI_LABEL:
            return self.info.class_names[label]
        return ";".join(np.array(self.info.class_names)[label == 1]) or "none"


def scans_of(variant: str = "", **changes: Any) -> Scans:
    info = phantom_info(variant)
    drawn = draw_scans(info, NUM, np.random.default_rng(3))
    labels = drawn.labels.copy()
    labels[:NUM_UNLABELLED] = UNKNOWN
    return replace(Scans(info, drawn.images, labels), **changes)


def save_png(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(path)


def save_dicom(path: Path, image: np.ndarray, **fields: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scan = pydicom.Dataset()
    scan.file_meta = pydicom.dataset.FileMetaDataset()
    scan.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    scan.file_meta.MediaStorageSOPClassUID = scan.SOPClassUID = SecondaryCaptureImageStorage
    scan.file_meta.MediaStorageSOPInstanceUID = scan.SOPInstanceUID = generate_uid()
    scan.PatientName = "Doe^Jane"
    grey = image.shape[2] == 1
    scan.set_pixel_data(image[..., 0] if grey else image, "MONOCHROME2" if grey else "RGB", 8)
    for name, value in fields.items():
        setattr(scan, name, value)
    scan.save_as(path, enforce_file_format=True)


def write_folder(scans: Scans, root: Path, save: Callable[[Path, np.ndarray], None], ending: str) -> None:
    for row, image in enumerate(scans.images):
        part = Path(scans.splits[row]) if scans.splits else Path()
        patient = Path(scans.patients[row]) if scans.patients else Path()
        save(root / part / (scans.text(row) or "unlabelled") / patient / f"{row:03d}{ending}", image)


def write_table(
    scans: Scans, folder: Path, save: Callable[[Path, np.ndarray], None], ending: str, *, seed: int = 0
) -> Path:
    rows = []
    for row, image in enumerate(scans.images):
        save(folder / "bilder über alles" / f"{row:03d}{ending}", image)
        rows.append([f"{row:03d}{ending}", scans.text(row), *(p[row] for p in (scans.patients, scans.splits) if p)])
    random.Random(seed).shuffle(rows)
    heading = ["path", "label", *(["patient"] if scans.patients else []), *(["split"] if scans.splits else [])]
    with open(folder / "liste.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([heading, *rows])
    return folder / "liste.csv"


def as_folder(scans: Scans, home: Path) -> dict[str, Any]:
    write_folder(scans, home / "Röntgen bilder", save_png, ".png")
    return {"kind": "folder", "path": "Röntgen bilder", **({"patient": "folder"} if scans.patients else {})}


def as_table(scans: Scans, home: Path) -> dict[str, Any]:
    write_table(scans, home, save_png, ".png")
    return {"kind": "csv_table", "path": "liste.csv", "root": "bilder über alles"}


def as_npz(scans: Scans, home: Path) -> dict[str, Any]:
    split = np.array(scans.splits or ["train"] * NUM)
    arrays: dict[str, Any] = {"class_names": np.array(scans.info.class_names)}
    for part in sorted(set(split)):
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = scans.images[split == part], scans.labels[split == part]
        if scans.patients:
            number = np.unique(scans.patients, return_inverse=True)[1]
            arrays[f"{part}_patient"] = number[split == part]
    np.savez(home / "arrays.npz", **arrays)
    return {"kind": "npz", "path": "arrays.npz"}


def as_dicom_folder(scans: Scans, home: Path) -> dict[str, Any]:
    write_folder(scans, home / "dicom", save_dicom, ".dcm")
    patients = {"patient": "folder"} if scans.patients else {}
    return {"kind": "dicom", "path": "dicom", "window": IDENTITY, **patients}


def as_dicom_table(scans: Scans, home: Path) -> dict[str, Any]:
    write_table(scans, home, save_dicom, "")
    return {"kind": "dicom", "path": "liste.csv", "root": "bilder über alles", "window": IDENTITY}


WRITERS = {"folder": as_folder, "csv_table": as_table, "npz": as_npz, "dicom": as_dicom_folder,
           "dicom by table": as_dicom_table}  # fmt: skip
KINDS = pytest.mark.parametrize("kind", WRITERS)


def source_of(kind: str, scans: Scans, home: Path, **more: Any) -> SiteSource:
    home.mkdir(parents=True, exist_ok=True)
    return read_source(WRITERS[kind](scans, home) | more, f"'data' in {home}/site.yaml", home)


def load(kind: str, scans: Scans, home: Path, **keys: Any) -> HospitalData:
    return load_site(source_of(kind, scans, home), scans.info, cache=home / "cache", **keys)


def rows_of(images: ImageSet | None, scans: Scans) -> list[int]:
    """Return which scans these are, by their pixels."""
    numbers = {image.tobytes(): row for row, image in enumerate(scans.images)}
    return [] if images is None else [numbers[np.asarray(image).tobytes()] for image in images.images]


@KINDS
@pytest.mark.parametrize("variant", ["", "rgb"])
@pytest.mark.usefixtures("small_holdouts")
def test_every_kind_gives_the_same_images_and_labels(kind: str, variant: str, tmp_path: Path) -> None:
    scans = scans_of(variant)
    data = load(kind, scans, tmp_path)
    parts = {name: rows_of(getattr(data, name), scans) for name in ("train", "heldout", "test")}
    assert sorted(row for rows in parts.values() for row in rows) == list(range(NUM))
    for name, rows in parts.items():
        if rows:
            np.testing.assert_array_equal(getattr(data, name).labels, scans.labels[rows])
    known = scans.labels[scans.labels != UNKNOWN]
    tested = [round(0.2 * count) for count in np.bincount(known)]
    held = [round(0.2 * (count - some)) for count, some in zip(np.bincount(known), tested, strict=True)]
    assert np.bincount(data.test.labels).tolist() == tested
    assert data.heldout is not None and np.bincount(data.heldout.labels).tolist() == held
    assert (data.train.labels == UNKNOWN).sum() == NUM_UNLABELLED
    np.testing.assert_array_equal(data.hidden_labels, data.train.labels)
    assert data.info == replace(scans.info, real=True) and data.nonmembers is None and data.train.patients is None
    assert class_table(data)["num_train"] == len(parts["train"])


@KINDS
def test_a_given_test_part_is_kept(kind: str, tmp_path: Path) -> None:
    splits = ["test" if row >= NUM - NUM_TEST else "train" for row in range(NUM)]
    scans = scans_of(splits=splits)
    data = load(kind, scans, tmp_path)
    assert sorted(rows_of(data.test, scans)) == list(range(NUM - NUM_TEST, NUM))
    assert len(data.train) + len(data.heldout or []) == NUM - NUM_TEST


@KINDS
def test_no_patient_is_on_two_sides(kind: str, tmp_path: Path) -> None:
    scans = scans_of(patients=[f"Q{row // 2:03d}" for row in range(NUM)])
    data = load(kind, scans, tmp_path, audit_holdout=0.2)
    sides = {name: getattr(data, name) for name in ("train", "heldout", "nonmembers", "test")}
    whom = {name: {row // 2 for row in rows_of(images, scans)} for name, images in sides.items() if images is not None}
    assert whom.keys() >= {"train", "nonmembers", "test"}
    assert sum(map(len, whom.values())) == len(set().union(*whom.values()))
    numbers = data.train.patients
    assert numbers is not None and numbers.dtype == np.int64
    for one, same in zip(numbers, rows_of(data.train, scans), strict=True):
        assert [row // 2 for row, n in zip(rows_of(data.train, scans), numbers, strict=True) if n == one] == [
            same // 2
        ] * (numbers == one).sum()


@pytest.mark.parametrize("kind", ["csv_table", "npz", "dicom by table"])
def test_several_findings_per_scan(kind: str, tmp_path: Path) -> None:
    scans = scans_of("multi-label")
    data = load(kind, scans, tmp_path)
    for images in (data.train, data.test):
        np.testing.assert_array_equal(images.labels, scans.labels[rows_of(images, scans)])
    assert (data.train.labels == UNKNOWN).all(axis=1).sum() == NUM_UNLABELLED
    assert (data.test.labels == 0).all(axis=1).any(), "scans without a finding are tested on too"


@KINDS
def test_the_parts_come_from_the_files_and_from_no_order_or_place(kind: str, tmp_path: Path) -> None:
    scans = scans_of()
    first = load(kind, scans, tmp_path / "a")
    turned = scans_of()
    if "table" in kind:
        source = source_of(kind, turned, tmp_path / "b")
        save, ending = (save_dicom, "") if "dicom" in kind else (save_png, ".png")
        write_table(turned, tmp_path / "b", save, ending, seed=7)
        second = load_site(source, scans.info, cache=tmp_path / "b" / "cache")
    elif kind == "npz":
        order = np.random.default_rng(0).permutation(NUM)
        second = load(kind, replace(turned, images=scans.images[order], labels=scans.labels[order]), tmp_path / "b")
    else:
        second = load(kind, turned, tmp_path / "b")
    assert sorted(rows_of(first.test, scans)) == sorted(rows_of(second.test, scans))
    if kind == "npz":  # has no names: its images stay in the order of the arrays
        assert sorted(rows_of(first.train, scans)) == sorted(rows_of(second.train, scans))
    else:
        assert rows_of(first.train, scans) == rows_of(second.train, scans)


@KINDS
def test_what_is_held_back_for_the_audit_is_nowhere_else(kind: str, tmp_path: Path) -> None:
    scans = scans_of()
    data = load(kind, scans, tmp_path, audit_holdout=0.25)
    assert data.nonmembers is not None
    apart = rows_of(data.nonmembers, scans)
    assert abs(len(apart) - 0.25 * (NUM - len(data.test))) <= 2
    others = rows_of(data.train, scans) + rows_of(data.heldout, scans) + rows_of(data.test, scans)
    assert not set(apart) & set(others) and len(apart) + len(others) == NUM


@KINDS
def test_a_grey_set_can_serve_a_larger_rgb_model(kind: str, tmp_path: Path) -> None:
    scans = scans_of()
    wanted = replace(scans.info, channels=3, image_size=56)
    data = load_site(source_of(kind, scans, tmp_path), wanted, cache=tmp_path / "cache")
    assert data.test.images.shape[1:] == (56, 56, 3)
    assert (data.test.images == data.test.images[..., :1]).all() and data.test.images.std() > 20


@KINDS
def test_own_names_of_classes(kind: str, tmp_path: Path) -> None:
    scans = scans_of()
    swapped = replace(scans.info, class_names=("ill", "well"))
    source = source_of(kind, scans, tmp_path, classes={"ill": ["lesion", "Läsion"], "well": "healthy"})
    data = load_site(source, swapped, cache=tmp_path / "cache")
    np.testing.assert_array_equal(data.test.labels, 1 - scans.labels[rows_of(data.test, scans)])


@KINDS
def test_what_was_read_can_be_shown(kind: str, tmp_path: Path) -> None:
    scans = scans_of()
    site = open_site(source_of(kind, scans, tmp_path), scans.info, cache=tmp_path / "cache")
    shown = np.concatenate([images.images for _, images, _ in site.parts()])
    for row in (0, len(site.names) - 1):
        np.testing.assert_array_equal(site.read(row), shown[row])
    assert len(site.facts) == len(site.names) == NUM and (site.facts["height"] == 28).all()


def test_phantoms_keep_their_truth_and_are_known_as_phantoms(tmp_path: Path) -> None:
    values = {"kind": "phantom", "seed": 4, "num-images": 50, "test-fraction": 0.3}
    source = read_source(values, "'data'", tmp_path)
    data = load_site(source, replace(phantom_info(), real=True), cache=tmp_path / "cache")
    assert not data.info.real and data.train.masks is not None and data.train.twins is not None
    assert len(data.test) == round(0.3 * 22) + round(0.3 * 28)
    other = load_site(replace(source, seed=5), phantom_info(), cache=tmp_path / "cache")
    assert not np.array_equal(data.test.images, other.test.images)
    assert not (tmp_path / "cache").exists(), "phantoms are drawn again: nothing is stored"


def test_medmnist_by_its_own_adapter(tmp_path: Path) -> None:
    folder = Path(__file__).parents[3] / "shared" / "data"
    if not (folder / "pneumoniamnist.npz").is_file():
        pytest.skip("no real scans at hand")
    source = read_source({"kind": "medmnist", "name": "pneumoniamnist", "path": str(folder)}, "'data'", tmp_path)
    wanted = replace(phantom_info(), class_names=("normal", "pneumonia"))
    data = load_site(source, wanted, cache=tmp_path / "cache")
    assert len(data.test) == 624 and len(data.train) + len(data.heldout or []) == 4708 and data.info.real
