"""What becomes of pixels: depths, colours, sizes, aspects, and the DICOM rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from jointdiff.data.dicom import patient_digest, read_dicom
from jointdiff.data.fitting import fit, resize
from jointdiff.data.image_files import read_image
from jointdiff.data.scan_file import Unreadable, digest_of


def saved(path: Path, pixels: np.ndarray, mode: str | None = None) -> np.ndarray:
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)
    return read_image(path).pixels


def test_sixteen_bits_are_scaled_by_their_full_range(tmp_path: Path) -> None:
    values = np.array([[0, 257], [65535, 128 * 257]], np.uint16)
    for ending in ("png", "tif"):
        scan_pixels = saved(tmp_path / f"a.{ending}", values)
        np.testing.assert_allclose(scan_pixels[..., 0], [[0, 1], [255, 128]])
    dim = saved(tmp_path / "b.png", np.array([[0, 4095]], np.uint16))
    assert dim.max() == pytest.approx(4095 / 257), "the range of the single file plays no part"


def test_modes_of_pictures(tmp_path: Path) -> None:
    grey = np.array([[10, 200], [30, 40]], np.uint8)
    colour = np.stack([grey, grey // 2, grey // 4], axis=2)
    assert saved(tmp_path / "l.png", grey).tolist() == grey[..., None].tolist()
    assert saved(tmp_path / "rgb.png", colour).tolist() == colour.tolist()
    assert saved(tmp_path / "rgba.png", colour, "RGBA").tolist() == colour.tolist()
    assert saved(tmp_path / "p.png", colour, "P").shape == (2, 2, 3)
    assert saved(tmp_path / "la.png", grey, "LA").tolist() == grey[..., None].tolist()
    assert set(saved(tmp_path / "1.png", np.array([[0, 255]], np.uint8), "1").ravel().tolist()) == {0, 255}


def test_a_camera_s_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(tmp_path / "a.png", exif=exif)
    assert read_image(tmp_path / "a.png").pixels.shape == (3, 2, 1)


def test_shrinking_averages_over_areas_and_growing_keeps_the_range() -> None:
    fine = np.random.default_rng(0).integers(0, 256, (64, 64, 1)).astype(np.float32)
    small = resize(fine, 8, 8)
    np.testing.assert_allclose(small[..., 0], fine.reshape(8, 8, 8, 8).mean(axis=(1, 3)), atol=1e-3)
    grown = fit(np.array([[[10], [30]], [[30], [50]]], np.uint8), image_size=6, channels=1)
    assert grown.min() == 10 and grown.max() == 50 and grown.dtype == np.uint8


def test_a_scan_that_fits_is_not_touched() -> None:
    scan = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    for aspect in ("pad", "crop", "stretch"):
        np.testing.assert_array_equal(fit(scan, image_size=28, channels=3, aspect=aspect), scan)


def test_aspects_of_an_oblong_scan() -> None:
    scan = np.zeros((20, 40, 1), np.uint8)
    scan[:, :10], scan[:, 10:30], scan[:, 30:] = 60, 120, 240
    padded, cropped, stretched = (fit(scan, image_size=8, channels=1, aspect=a)[..., 0] for a in
                                  ("pad", "crop", "stretch"))  # fmt: skip
    assert padded[2:6].tolist() == [[60, 60, 120, 120, 120, 120, 240, 240]] * 4 and not padded[[0, 1, 6, 7]].any()
    assert (cropped == 120).all()
    assert stretched.tolist() == [[60, 60, 120, 120, 120, 120, 240, 240]] * 8
    assert fit(scan[:1], image_size=8, channels=1).shape == (8, 8, 1), "a scan one pixel high still has a row"


def test_colours_become_grey_by_their_luma_and_grey_becomes_colour() -> None:
    pure = np.eye(3, dtype=np.uint8)[None] * 255
    assert fit(pure, image_size=3, channels=1, aspect="stretch")[0, :, 0].tolist() == [76, 150, 29]
    assert fit(np.full((2, 2, 1), 7, np.uint8), image_size=2, channels=3).tolist() == [[[7, 7, 7]] * 2] * 2


def test_equal_pictures_have_equal_digests() -> None:
    a = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert digest_of(a) == digest_of(a[..., None]) == digest_of(np.asfortranarray(a))
    assert len({digest_of(x) for x in (a, a.T, a.astype(np.uint16), a + 1)}) == 4


# DICOM

STORED = np.array([[0, 100], [200, 1000]], np.uint16)


def dicom(path: Path, stored: np.ndarray = STORED, kind: str = "MONOCHROME2", bits: int = 12, **fields: Any) -> Path:
    scan = pydicom.Dataset()
    scan.file_meta = pydicom.dataset.FileMetaDataset()
    scan.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    scan.file_meta.MediaStorageSOPClassUID = scan.SOPClassUID = SecondaryCaptureImageStorage
    scan.file_meta.MediaStorageSOPInstanceUID = scan.SOPInstanceUID = generate_uid()
    scan.set_pixel_data(stored, kind, bits)
    for name, value in fields.items():
        setattr(scan, name, value)
    scan.save_as(path, enforce_file_format=True)
    return path


def shown(path: Path, window: Any = "auto") -> list[float]:
    return [round(v) for v in read_dicom(path, window).pixels.ravel().tolist()]


def test_auto_maps_the_file_s_own_range(tmp_path: Path) -> None:
    assert shown(dicom(tmp_path / "a")) == [0, 26, 51, 255]
    assert shown(dicom(tmp_path / "b", np.full((2, 2), 7, np.uint16))) == [0] * 4


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    assert shown(dicom(tmp_path / "a", kind="MONOCHROME1")) == [255, 230, 204, 0]


def test_padding_counts_in_no_range_and_is_black(tmp_path: Path) -> None:
    for kind, expected in (("MONOCHROME2", [0, 0, 255, 0]), ("MONOCHROME1", [0, 255, 0, 0])):
        path = dicom(tmp_path / kind, kind=kind, PixelPaddingValue=0, PixelPaddingRangeLimit=0)
        scan = pydicom.dcmread(path)
        scan.PixelData = np.array([[0, 100], [200, 0]], np.uint16).tobytes()
        scan.save_as(path)
        assert shown(path) == expected


def test_a_window_is_in_values_of_the_modality(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a", RescaleSlope=2, RescaleIntercept=-1000)  # -1000, -800, -600, 1000
    assert shown(path, (-799.5, 401)) == [0, 128, 255, 255]  # -1000 .. -600 by C.11.2.1.2
    assert shown(dicom(tmp_path / "b"), (-799.5, 401)) == [255] * 4


def test_the_window_of_the_header(tmp_path: Path) -> None:
    assert shown(dicom(tmp_path / "a", WindowCenter=100.5, WindowWidth=201), "header") == [0, 128, 255, 255]
    several = dicom(tmp_path / "b", WindowCenter=[100, 500], WindowWidth=[200, 1000], VOILUTFunction="LINEAR_EXACT")
    assert shown(several, "header") == [0, 128, 255, 255]
    soft = dicom(tmp_path / "c", WindowCenter=100, WindowWidth=200, VOILUTFunction="SIGMOID")
    assert shown(soft, "header") == [round(255 / (1 + np.exp(2))), 128, round(255 / (1 + np.exp(-2))), 255]


def test_signed_values(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a", np.array([[-100, 0], [50, 100]], np.int16), bits=16)
    assert shown(path) == [0, 128, 191, 255]


def test_colour_is_taken_as_it_is(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 200, (3, 3, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read_dicom(dicom(tmp_path / "a", colours, "RGB", 8)).pixels, colours)


def test_burned_in_text_is_noticed_and_patients_are_digests(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a", BurnedInAnnotation="YES", PatientID="MRN-0815")
    assert read_dicom(path).burned_in and not read_dicom(dicom(tmp_path / "b")).burned_in
    assert len(patient_digest(path)) == 64 and "0815" not in patient_digest(path)
    assert patient_digest(tmp_path / "b") == "" == patient_digest(tmp_path / "gone")


def test_what_is_read_parses_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header that is read holds the pixel's own fields alone."""
    path = dicom(tmp_path / "a", PatientName="Doe^Jane", PatientID="1", InstitutionName="St. Elsewhere")
    headers = []
    real = pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda *args, **keys: headers.append(real(*args, **keys)) or headers[-1])
    read_dicom(path)
    assert headers and "Elsewhere" not in str(headers) and "Doe" not in str(headers) and "Rows" in headers[0]


def test_reasons_name_no_file(tmp_path: Path) -> None:
    for read, path in ((read_image, tmp_path / "jane-doe.png"), (read_dicom, tmp_path / "jane-doe")):
        with pytest.raises(Unreadable, match="the file is missing") as caught:
            read(path)
        assert "jane" not in str(caught.value)
