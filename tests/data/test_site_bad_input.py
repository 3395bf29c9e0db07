"""Data that do not fit: one clear error each, which may not travel to the server where it quotes the site's words."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from client.safe_text import may_travel
from jointdiff.data import MULTI_LABEL, HospitalData, phantom
from jointdiff.data.scan_file import FilesError
from jointdiff.data.site_data import load_site
from jointdiff.data.site_source import read_source
from jointdiff.errors import ConfigError, DataError, JointDiffError

WANTED = replace(phantom.phantom_info(), image_size=8)
RNG = np.random.default_rng(0)


def picture(path: Path, size: tuple[int, int] = (10, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, size, dtype=np.uint8)).save(path)
    return path


def load(home: Path, wanted: Any = WANTED, **values: Any) -> HospitalData:
    return load_site(read_source(values, f"'data' in {home}/site.yaml", home), wanted, cache=home / "cache")


def refused(home: Path, message: str, wanted: Any = WANTED, **values: Any) -> JointDiffError:
    with pytest.raises((DataError, ConfigError), match=message) as caught:
        load(home, wanted, **values)
    assert not may_travel(str(caught.value)), caught.value
    return caught.value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A home with class folders of ten pictures each."""
    for name in WANTED.class_names:
        for number in range(10):
            picture(tmp_path / "data" / name / f"{name}{number}.png")
    return tmp_path


@pytest.fixture
def table(folder: Path) -> Callable[..., None]:
    """Writes liste.csv of these pictures; arguments replace rows by their number, or the heading, or the encoding."""

    def write(changes: dict[int, str] | None = None, heading: str = "path,label", encoding: str = "utf-8") -> None:
        width = heading.count(",") - 1
        names = [
            f"{name}/{name}{number}.png,{name}{',' * width}" for name in WANTED.class_names for number in range(10)
        ]
        lines = [heading, *names]
        for number, line in (changes or {}).items():
            lines[number - 1] = line
        (folder / "data" / "liste.csv").write_text("\n".join(lines) + "\n", encoding=encoding)

    return write


def refused_table(home: Path, message: str, wanted: Any = WANTED, **values: Any) -> JointDiffError:
    return refused(home, message, wanted, kind="csv_table", path="data/liste.csv", **values)


# Tables


def test_a_proper_table_is_read(folder: Path, table: Callable[..., None]) -> None:
    table({2: "healthy/healthy0.png,"})
    assert len(load(folder, kind="csv_table", path="data/liste.csv").train) == 16
    table(heading="path;label".replace(";", ","))
    text = (folder / "data" / "liste.csv").read_text()
    (folder / "data" / "liste.csv").write_text("\ufeff" + text.replace(",", ";"), encoding="utf-8")
    assert len(load(folder, kind="csv_table", path="data/liste.csv").train) == 16


TABLES: dict[str, tuple[dict[int, str], str, str]] = {
    "missing file": ({3: "healthy/gone.png,healthy"}, "path,label", "1 of 20 rows name a file that is not.*row 3"),
    "no path": ({3: ",healthy"}, "path,label", "not there, row 3"),
    "a folder": ({3: "healthy,healthy"}, "path,label", "not there, row 3"),
    "unknown label": (
        {3: "healthy/healthy1.png,helthy", 4: "healthy/healthy2.png,helthy"}, "path,label",
        "'helthy'.* did you mean 'healthy'.*Here: 'healthy', 'helthy', 'lesion'; in the federation: 'healthy',",
    ),
    "twice": ({3: "healthy/../healthy/healthy0.png,healthy"}, "path,label", "an earlier row names, row 3"),
    "no column": ({}, "path,labl", "no column 'label': did you mean 'labl'"),
    "two columns": ({}, "path,label,label", "'label' more than once"),
    "cells": ({3: "healthy/healthy1.png,healthy,x"}, "path,label", "row 3: 3 cells, but the heading has 2"),
    "unlabelled with a label": (
        {n: f"{k}/{k}{i}.png,{k},{'unlabelled' if n == 4 else 'train'}" for n, (k, i) in
         enumerate(((k, i) for k in WANTED.class_names for i in range(10)), 2)}, "path,label,split",
        "1 rows are 'unlabelled' and have a label, row 4",
    ),
    "test without a label": ({3: "healthy/healthy1.png,,test"}, "path,label,split", "test part have no label, row 3"),
    "unknown part": ({3: "healthy/healthy1.png,healthy,tset"}, "path,label,split", "unknown words .*'tset', row 3"),
    "some parts": ({3: "healthy/healthy1.png,healthy,test"}, "path,label,split", "says for 1 of 20 images"),
    "only a test part": (
        {n: f"{k}/{k}{i}.png,{k},test" for n, (k, i) in
         enumerate(((k, i) for k in WANTED.class_names for i in range(10)), 2)}, "path,label,split", "for training",
    ),
    "patient on both sides": (
        {n: f"{k}/{k}{i}.png,{k},p{i % 9},{'test' if i > 6 else 'train'}" for n, (k, i) in
         enumerate(((k, i) for k in WANTED.class_names for i in range(10)), 2)}, "path,label,patient,split",
        "1 patients have images both",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_tables_that_do_not_fit(folder: Path, table: Callable[..., None], case: str) -> None:
    changes, heading, message = TABLES[case]
    table(changes, heading)
    error = refused_table(folder, message)
    assert "healthy1.png" not in str(error) and "gone" not in str(error), "texts of errors name no file"
    if case == "missing file":
        assert isinstance(error, FilesError) and error.files == ("healthy/gone.png",)


def test_a_table_in_another_encoding(folder: Path, table: Callable[..., None]) -> None:
    table({1: "path,label,Größe", **{n: f"{k}/{k}{i}.png,{k},x" for n, (k, i) in enumerate(
        ((k, i) for k in WANTED.class_names for i in range(10)), 2)}}, encoding="cp1252")  # fmt: skip
    refused_table(folder, r"is not UTF-8 \(byte 14\): save it as 'CSV UTF-8'")


def test_empty_and_missing_tables(folder: Path) -> None:
    refused_table(folder, "does not exist: `path`")
    path = folder / "data" / "liste.csv"
    path.write_text("")
    refused_table(folder, "is empty")
    path.write_text("path,label\n")
    refused_table(folder, "a heading and no rows")
    path.write_text('path,label\n"a,b\n')
    refused_table(folder, "no proper CSV")
    refused(folder, "is no file", kind="csv_table", path="data")


def test_a_named_column_must_be_there(folder: Path, table: Callable[..., None]) -> None:
    table()
    refused_table(folder, "no column 'Fall'", columns={"patient": "Fall"})


def test_findings_and_none_at_once(folder: Path, table: Callable[..., None]) -> None:
    table({n: f"{k}/{k}{i}.png,lesion;none" for n, (k, i) in enumerate(
        ((k, i) for k in WANTED.class_names for i in range(10)), 2)})  # fmt: skip
    refused_table(folder, "both 'none' and a finding", replace(WANTED, task=MULTI_LABEL))


# Folders


def test_a_class_that_the_federation_does_not_know(folder: Path) -> None:
    picture(folder / "data" / "lesions" / "a.png")
    refused(folder, "'lesions'.*did you mean 'lesion'.*Here: 'healthy', 'lesion', 'lesions'; in the federation",
            kind="folder", path="data")  # fmt: skip
    load(folder, kind="folder", path="data", classes={"lesion": ["lesion", "lesions"]})
    data = load(folder, kind="folder", path="data", **{"leave-out": "lesions"})
    assert len(data.train) + len(data.test) == 20
    refused(folder, "'lesion', which means a class", kind="folder", path="data", **{"leave-out": ["lesion"]})


def test_findings_that_the_federation_does_not_ask_for(folder: Path, table: Callable[..., None]) -> None:
    wanted = replace(WANTED, task=MULTI_LABEL)
    table({2: "healthy/healthy0.png,hernia;lesion", 3: "healthy/healthy1.png,hernia", 4: "healthy/healthy2.png,none"})
    refused_table(folder, "'hernia'", wanted)
    data = load(folder, wanted, kind="csv_table", path="data/liste.csv", **{"leave-out": ["hernia"]})
    labels = np.concatenate([data.train.labels, data.test.labels])
    assert len(labels) == 20 and labels.sum(axis=0).tolist() == [7, 11] and (labels.sum(axis=1) == 0).sum() == 2


def test_classes_that_do_not_fit(folder: Path) -> None:
    refused(folder, "mentions 'lesoin', which is no class .*did you mean 'lesion'", kind="folder", path="data",
            classes={"lesoin": "x"})  # fmt: skip
    refused(folder, "leaves open what 'lesion' means", kind="folder", path="data", classes={"healthy": "lesion"})


def test_an_empty_class_is_no_error(folder: Path) -> None:
    shutil.rmtree(folder / "data" / "lesion")
    (folder / "data" / "lesion").mkdir()
    data = load(folder, kind="folder", path="data")
    assert set(data.train.labels) == {0} and set(data.test.labels) == {0}


def test_only_unlabelled_scans_are_no_error(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "unlabelled" / "a.png")
    data = load(tmp_path, kind="folder", path="data")
    assert len(data.train) == 1 and len(data.test) == 0 and data.train.num_labelled == 0


def test_folders_of_another_layout(tmp_path: Path) -> None:
    refused(tmp_path, "does not exist", kind="folder", path="dta")
    (tmp_path / "data").mkdir()
    refused(tmp_path, "but nothing", kind="folder", path="data")
    (tmp_path / "data" / "lesion").mkdir()
    (tmp_path / "data" / "lesion" / "a.dcm").write_bytes(b"x")
    refused(tmp_path, "1 files of other kinds.*take kind: dicom", kind="folder", path="data")
    picture(tmp_path / "data" / "loose.png")
    refused(tmp_path, "1 images outside of class folders", kind="folder", path="data")
    (tmp_path / "data" / "loose.png").unlink()
    picture(tmp_path / "data" / "test" / "lesion" / "a.png")
    refused(tmp_path, r"folders of parts \('test'\) beside others \('lesion'\)", kind="folder", path="data")
    shutil.rmtree(tmp_path / "data" / "lesion")
    refused(tmp_path, "no folder 'train'", kind="folder", path="data")
    picture(tmp_path / "data" / "train" / "lesion" / "b.png")
    picture(tmp_path / "data" / "val" / "lesion" / "c.png")
    assert len(load(tmp_path, kind="folder", path="data").train) == 1
    picture(tmp_path / "data" / "test" / "unlabelled" / "a.png")
    refused(tmp_path, "unlabelled images in its test part", kind="folder", path="data")


def test_findings_need_a_table(folder: Path) -> None:
    refused(folder, "folders give one class per scan", replace(WANTED, task=MULTI_LABEL), kind="folder", path="data")


def test_links_that_run_in_a_circle_end(folder: Path) -> None:
    (folder / "data" / "lesion" / "again").symlink_to(folder / "data" / "lesion", target_is_directory=True)
    assert len(load(folder, kind="folder", path="data").train) == 16


def test_dead_links_are_unreadable_images(folder: Path) -> None:
    (folder / "data" / "lesion" / "dead.png").symlink_to("nowhere.png")
    refused(folder, "1 of 21 images cannot be read. 1: the file is missing", kind="folder", path="data")


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder of its own, read as an account without rights."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody without rights")
    home = Path(tempfile.mkdtemp())
    os.chmod(home, 0o777)
    for number in range(10):
        picture(home / "data" / "lesion" / f"{number}.png")
        picture(home / "data" / "healthy" / f"{number}.png")
    yield home
    os.seteuid(0)
    shutil.rmtree(home)


@pytest.mark.parametrize("locked", ["data", "data/lesion"])
def test_a_folder_without_read_permission(nobody: Path, locked: str) -> None:
    os.chmod(nobody / locked, 0o700)
    os.seteuid(65534)
    error = refused(nobody, "no permission. Give it read access", kind="folder", path="data")
    assert str(error).startswith(str(nobody / locked))


def test_a_file_without_read_permission(nobody: Path) -> None:
    os.chmod(nobody / "data" / "lesion" / "3.png", 0o600)
    os.seteuid(65534)
    refused(nobody, "1 of 20 images cannot be read. 1: no permission to read the file", kind="folder", path="data")


# Images


def damage(folder: Path, num: int) -> None:
    for number in range(num):
        path = folder / "data" / "lesion" / f"lesion{number}.png"
        path.write_bytes(path.read_bytes()[:60])


def test_unreadable_images_are_counted_and_five_are_named(folder: Path) -> None:
    damage(folder, 7)
    (folder / "data" / "healthy" / "text.png").write_text("no picture")
    error = refused(folder, "8 of 20 images|8 of 21 images", kind="folder", path="data")
    assert isinstance(error, FilesError) and len(error.files) == 5
    assert "7: truncated or damaged; 1: not a PNG, JPEG, TIFF or BMP file" in str(error)
    assert "lesion0" not in str(error) and "skip-unreadable: true" in str(error)
    assert not list((folder / "cache").glob("scans-*")), "nothing is stored of a set that is refused"


def test_unreadable_images_can_be_left_out(folder: Path) -> None:
    damage(folder, 2)
    keys: dict[str, Any] = {"kind": "folder", "path": "data", "skip-unreadable": True}
    for _ in range(2):  # decoded, then from the cache
        data = load(folder, **keys)
        assert len(data.train) + len(data.test) == 18
    damage(folder, 10)
    for number in range(10):
        (folder / "data" / "healthy" / f"healthy{number}.png").write_text("x")
    refused(folder, "20 of 20 images cannot be read", **keys)


def test_pictures_without_a_stated_range(folder: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(folder / "data" / "lesion" / "f.tif")
    several = [Image.fromarray(np.full((4, 4), k, np.uint8)) for k in (1, 2)]
    several[0].save(folder / "data" / "lesion" / "g.tif", save_all=True, append_images=several[1:])
    refused(folder, "1: 32 bits or fractions.*1: several pictures|1: several pictures.*1: 32 bits", kind="folder",
            path="data")  # fmt: skip


# DICOM


def dicom(path: Path, *, pixels: bool = True, **fields: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    scan = pydicom.Dataset()
    scan.file_meta = pydicom.dataset.FileMetaDataset()
    scan.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    scan.file_meta.MediaStorageSOPClassUID = scan.SOPClassUID = SecondaryCaptureImageStorage
    scan.file_meta.MediaStorageSOPInstanceUID = scan.SOPInstanceUID = generate_uid()
    if pixels:
        scan.set_pixel_data(RNG.integers(0, 4096, (9, 9), dtype=np.uint16), "MONOCHROME2", 12)
    for name, value in fields.items():
        setattr(scan, name, value)
    scan.save_as(path, enforce_file_format=True)
    return path


def broken(path: Path) -> None:
    dicom(path)
    path.write_bytes(path.read_bytes()[:-40])


DICOMS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (broken, "truncated or damaged"),
    "no DICOM": (lambda path: path.write_bytes(b"x" * 500), "not a DICOM file"),
    "empty": (lambda path: path.write_bytes(b""), "not a DICOM file"),
    "no pixels": (lambda path: dicom(path, pixels=False), "no pixel data"),
    "frames": (lambda path: dicom(path, NumberOfFrames=2), "several frames in one file: export the one"),
    "palette": (lambda path: dicom(path, PhotometricInterpretation="PALETTE COLOR"), "a palette"),
    "compressed": (
        lambda path: compressed(dicom(path)), "compressed in a way that needs another package|truncated or damaged",
    ),
}  # fmt: skip


def compressed(path: Path) -> None:
    """Say that the pixels are JPEG 2000, which they are not."""
    scan = pydicom.dcmread(path)
    scan.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
    scan.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + bytes(40)])
    scan["PixelData"].is_undefined_length = True
    scan.save_as(path)


@pytest.mark.parametrize("case", DICOMS)
def test_dicom_files_that_cannot_be_shown(tmp_path: Path, case: str) -> None:
    for number in range(5):
        for name in WANTED.class_names:
            dicom(tmp_path / "data" / name / f"{number}.dcm")
    write, reason = DICOMS[case]
    write(tmp_path / "data" / "lesion" / "bad.dcm")
    refused(tmp_path, f"1 of 11 images cannot be read. 1: ({reason})", kind="dicom", path="data")


def test_a_window_must_be_in_the_header_if_it_is_asked_for(tmp_path: Path) -> None:
    for name in WANTED.class_names:
        dicom(tmp_path / "data" / name / "1", WindowCenter=40, WindowWidth=80)
    assert len(load(tmp_path, kind="dicom", path="data", window="header").train)
    dicom(tmp_path / "data" / "lesion" / "2")
    refused(tmp_path, "no window in the header: take `window: auto`", kind="dicom", path="data", window="header")


# Arrays


def test_arrays_of_another_task_or_without_names(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (20, 9, 9), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=np.arange(20) % 2)
    refused(tmp_path, "classes that the federation does not know: '0', '1'", kind="npz", path="a.npz")
    assert len(load(tmp_path, kind="npz", path="a.npz", classes={"healthy": 0, "lesion": 1}).test) == 4
    refused(tmp_path, "is a multi-class set", replace(WANTED, task=MULTI_LABEL), kind="npz", path="a.npz")
    refused(tmp_path, "does not exist", kind="npz", path="b.npz")
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=np.arange(20) % 2, test_images=images,
             test_labels=np.arange(20) % 2, train_patient=np.arange(20))  # fmt: skip
    refused(tmp_path, "give both or none", kind="npz", path="a.npz")


def test_an_unknown_medmnist_set_and_another_variant_of_phantoms(tmp_path: Path) -> None:
    refused(tmp_path, "did you mean 'pneumoniamnist'", kind="medmnist", name="pneumonia-mnist")
    refused(tmp_path, "'cavity'|'nodule'", kind="phantom", variant="3-classes")
