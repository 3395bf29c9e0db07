"""One hospital's scans written as a hospital keeps them: folders of PNG, a table of 16-bit PNG, DICOM files."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from jointdiff.data import load_dataset

CLASSES = ("healthy", "lesion")


def phantoms(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 [N, H, W] and labels [N], others for each `first`."""
    train = load_dataset("phantom").train
    rows = slice(first, first + count)
    return train.images[rows, :, :, 0], train.labels[rows]


def write_folder(root: Path, first: int, count: int, num_unlabelled: int) -> None:
    images, labels = phantoms(first, count)
    for k, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / ("unlabelled" if k < num_unlabelled else ("Gesund", "Läsion")[label])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"Müller Erika {k:04d}.png")


def write_table(root: Path, first: int, count: int, num_unlabelled: int) -> Path:
    images, labels = phantoms(first, count)
    root.mkdir(parents=True)
    with open(root / "scans.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "patient"])
        for k, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = f"patient-{k // 2:04d}-{k % 2}.png"
            Image.fromarray(image.astype(np.uint16) * 257).save(root / name)
            table.writerow([name, "" if k < num_unlabelled else CLASSES[label], f"P{k // 2}"])
    return root / "scans.csv"


def write_dicom(root: Path, first: int, count: int, num_unlabelled: int) -> None:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    images, labels = phantoms(first, count)
    for k, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / ("unlabelled" if k < num_unlabelled else CLASSES[label])
        folder.mkdir(parents=True, exist_ok=True)
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        scan = FileDataset(str(folder / f"{k}.dcm"), {}, file_meta=meta, preamble=b"\0" * 128)
        scan.SOPClassUID, scan.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        scan.PatientName, scan.PatientID, scan.Modality = "Doe^Jane", f"ID-{k}", "OT"
        scan.Rows, scan.Columns = image.shape
        scan.SamplesPerPixel, scan.PhotometricInterpretation = 1, "MONOCHROME1" if k % 2 else "MONOCHROME2"
        scan.BitsAllocated, scan.BitsStored, scan.HighBit, scan.PixelRepresentation = 16, 12, 11, 0
        stored = image.astype(np.uint16) * 16
        scan.PixelData = (4095 - stored if k % 2 else stored).astype("<u2").tobytes()
        scan.save_as(folder / f"{k}.dcm", enforce_file_format=True)
