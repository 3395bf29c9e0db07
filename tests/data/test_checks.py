"""What the checks notice about a site's data, each on data that have it and on data that do not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from jointdiff.data import checks
from jointdiff.data.checks import ERROR, NOTE, SEVERITIES, WARNING, class_rows, findings
from jointdiff.data.phantom import draw_scans, phantom_info
from jointdiff.data.site_data import LoadedSite, open_site
from jointdiff.data.site_source import read_source

WANTED = replace(phantom_info(), image_size=16)
NUM = 40


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Forty pictures in two class folders of train/ and test/: nothing is wrong with them."""
    drawn = draw_scans(WANTED, NUM, np.random.default_rng(0))
    for row, image in enumerate(drawn.images):
        folder = tmp_path / "data" / ("test" if row >= 30 else "train") / WANTED.class_names[drawn.labels[row]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder / f"{row}.png")
    return tmp_path


def opened(home: Path, wanted: Any = WANTED, **values: Any) -> LoadedSite:
    source = read_source({"kind": "folder", "path": "data"} | values, "'data'", home)
    return open_site(source, wanted, cache=home / "cache")


def told(site: LoadedSite, severity: str, text: str, *, show_names: bool = False) -> str:
    """Return the one finding that says a text, which must be of a severity."""
    found = [f for f in findings(site, show_names=show_names) if text in f.text]
    assert len(found) == 1 and found[0].severity == severity, (text, list(map(str, findings(site))))
    return str(found[0])


def one(home: Path, part: str, name: str) -> Path:
    return sorted((home / "data" / part / name).iterdir())[0]


def test_proper_data_give_notes_alone(home: Path) -> None:
    found = findings(opened(home))
    assert {finding.severity for finding in found} == {NOTE}
    assert any("Values in the files reach from 0 to" in finding.text for finding in found)


def test_class_table(home: Path) -> None:
    (home / "data" / "train" / "unlabelled").mkdir()
    shutil.move(one(home, "train", "lesion"), home / "data" / "train" / "unlabelled" / "x.png")
    site = opened(home)
    head, rows = class_rows(site)
    assert head[:2] == ["class", "training"] and head[-1] == "test"
    assert [row[0] for row in rows] == ["healthy", "lesion", "without a label", "images"]
    assert sum(rows[-1][1:]) == NUM and rows[2][1:] == [1, *[0] * (len(head) - 2)]  # type: ignore[arg-type]
    assert rows[0][-1] + rows[1][-1] == rows[-1][-1] == 10  # type: ignore[operator]


def test_an_empty_class_and_classes_without_a_test(home: Path) -> None:
    shutil.rmtree(home / "data" / "test" / "lesion")
    told(opened(home), WARNING, "No test image of 'lesion'")
    shutil.rmtree(home / "data" / "train" / "lesion")
    told(opened(home), WARNING, "No image of 'lesion' here")


def test_no_label_at_all(home: Path) -> None:
    shutil.rmtree(home / "data" / "test")
    (home / "data" / "train" / "lesion").rename(home / "data" / "train" / "unlabelled")
    shutil.rmtree(home / "data" / "train" / "healthy")
    site = opened(home)
    told(site, WARNING, "No training image has a label")
    told(site, WARNING, "no labelled image to test on")


@pytest.mark.usefixtures("small_holdouts")
def test_few_labels_hold_none_out(home: Path) -> None:
    assert not any("none is held out" in finding.text for finding in findings(opened(home)))
    for path in sorted((home / "data" / "train" / "lesion").iterdir())[5:]:
        path.unlink()
    told(opened(home), NOTE, "A fifth of the labels is fewer than 2 of some class: none is held out")


def test_copies_within_a_part_and_their_names(home: Path) -> None:
    path = one(home, "train", "healthy")
    shutil.copy(path, path.with_name("copy.png"))
    site = opened(home)
    text = told(site, WARNING, "1 of 41 images are exact copies")
    assert "copy.png" not in text
    assert "copy.png" in told(site, WARNING, "1 of 41 images are exact copies", show_names=True)


def test_a_copy_that_is_stored_in_another_format(home: Path) -> None:
    path = one(home, "train", "healthy")
    Image.open(path).save(path.with_name("copy.bmp"))
    told(opened(home), WARNING, "1 of 41 images are exact copies")


def test_copies_with_different_labels(home: Path) -> None:
    shutil.copy(one(home, "train", "healthy"), home / "data" / "train" / "lesion" / "copy.png")
    told(opened(home), ERROR, "1 pictures carry different labels")


def test_copies_on_both_sides(home: Path) -> None:
    shutil.copy(one(home, "train", "healthy"), home / "data" / "test" / "healthy" / "copy.png")
    for path in sorted((home / "data" / "train" / "lesion").iterdir())[5:]:
        path.unlink()  # so that there is a note before it
    site = opened(home)
    told(site, ERROR, "part and the test part")
    assert findings(site)[0].severity == ERROR, "the worst comes first"


def test_a_patient_on_both_sides(home: Path) -> None:
    """The loader refuses such data; the check looks at what is there, however it came about."""
    site = opened(home)
    data = site.data
    train = replace(data.train, patients=np.arange(len(data.train)))
    test = replace(data.test, patients=np.arange(len(data.test)) + len(data.train) - 2)
    told(replace(site, data=replace(data, train=train, test=test), knows_patients=True), ERROR,
         "2 patients have images both in the training part and the test part")  # fmt: skip
    apart = replace(data.test, patients=np.arange(len(data.test)) + 1000)
    clean = replace(site, data=replace(data, train=train, test=apart), knows_patients=True)
    assert not any("patient" in finding.text for finding in findings(clean))


def test_constant_tiny_and_oblong_images(home: Path) -> None:
    folder = home / "data" / "train" / "healthy"
    Image.fromarray(np.full((16, 16), 90, np.uint8)).save(folder / "flat.png")
    Image.fromarray(np.arange(42, dtype=np.uint8).reshape(6, 7)).save(folder / "small.png")
    site = opened(home)
    assert "flat.png" in told(site, WARNING, "1 images are constant", show_names=True)
    told(site, WARNING, "1 images are tiny: the smallest has 6 pixels on its short side, the model sees 16")
    told(site, NOTE, "2 sizes, from 6 to 16 pixels in height and 7 to 16 in width")
    told(site, NOTE, "1 images are not square and are padded with black")
    told(opened(home, aspect="stretch"), NOTE, "are squeezed into the square")


def test_dark_images(home: Path) -> None:
    for path in (home / "data").rglob("*.png"):
        pixels = np.asarray(Image.open(path)).astype(np.uint16) * 16  # 12 bits in files of 16
        Image.fromarray(pixels).save(path)
    told(opened(home), WARNING, "100% of the images never get brighter than a quarter")


def test_unreadable_and_unused_files(home: Path) -> None:
    one(home, "train", "healthy").write_bytes(b"x")
    (home / "data" / "train" / "healthy" / "notes.txt").write_text("x")
    (home / "data" / "val" / "lesion").mkdir(parents=True)
    shutil.copy(one(home, "train", "lesion"), home / "data" / "val" / "lesion" / "v.png")
    site = opened(home, **{"skip-unreadable": True})
    text = told(site, WARNING, "1 images cannot be read and are left out: 1: not a PNG", show_names=True)
    assert ".png" in text and ".png" not in told(site, WARNING, "1 images cannot be read")
    told(site, NOTE, "1 files are not used: other files than images")
    told(site, NOTE, "1 files are not used: of a validation part")


def test_images_that_a_tested_patient_leaves_over(home: Path) -> None:
    for path in list((home / "data" / "train").rglob("*.png")) + list((home / "data" / "test").rglob("*.png")):
        label, number = path.parent.name, int(path.stem)
        for kind in (label, "unlabelled"):
            folder = home / "flat" / kind / f"patient {number}"
            folder.mkdir(parents=True)
            Image.fromarray(np.asarray(Image.open(path)) // (2 if kind == "unlabelled" else 1)).save(folder / "1.png")
    site = opened(home, path="flat", patient="folder")
    num_apart = len(site.data.test) + len(site.data.heldout or [])
    told(site, NOTE, f"{num_apart} files are not used: of a patient who is tested on or held out")
    assert not any("Patients are not known" in finding.text for finding in findings(site))


def test_burned_in_text(tmp_path: Path) -> None:
    drawn = draw_scans(WANTED, 12, np.random.default_rng(0))
    for row, image in enumerate(drawn.images):
        folder = tmp_path / "data" / WANTED.class_names[drawn.labels[row]]
        folder.mkdir(parents=True, exist_ok=True)
        scan = pydicom.Dataset()
        scan.file_meta = pydicom.dataset.FileMetaDataset()
        scan.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        scan.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
        scan.SOPInstanceUID = pydicom.uid.generate_uid()
        scan.PatientID = f"patient {row // 2}"
        scan.BurnedInAnnotation = "YES" if row == 3 else "NO"
        scan.set_pixel_data(image[..., 0], "MONOCHROME2", 8)
        scan.save_as(folder / f"1.2.840.{row}", enforce_file_format=True)
    site = opened(tmp_path, kind="dicom", patient="header")
    told(site, WARNING, "1 DICOM files say that text is drawn into the picture")
    assert site.knows_patients and site.data.train.patients is not None
    assert len(np.unique(site.facts["patient"])) == 6
    stored = next((tmp_path / "cache").glob("scans-*")).read_bytes()
    assert b"patient 1" not in stored and b"1.2.840" not in stored, "the cache holds no identity and no name of a file"


def test_large_sets_are_looked_at_in_part(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "MAX_LOOKED_AT", 5)
    assert len(checks._brightest(opened(home))) < 10


def test_a_finding_is_one_line(home: Path) -> None:
    for finding in findings(opened(home)):
        assert "\n" not in str(finding) and str(finding).startswith(finding.severity + ": ")
        assert finding.severity in SEVERITIES
