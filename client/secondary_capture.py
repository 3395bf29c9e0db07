"""An explanation as a DICOM object that a site's archive can show: Secondary Capture, standard PS3.3 A.8.1.

The picture is drawn for people: the scan as the model saw it, the edit, and what changed, with captions. It is marked
as derived, synthetic and not for diagnosis, in the picture and in its attributes. It has identifiers of its own.
Patient and study are those of the scan where the site's policy shows names, and nobody's else.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jointdiff import storage
from jointdiff.errors import DataError
from jointdiff.views.images import difference_map, enlarge, grid

WARNING = "Synthetic edit by a research model. Not for diagnosis."
_CAPTIONS = ("scan, as the model saw it", "edit", "change: green brighter, purple darker")
_SIDE = 384  # pixels at least, of each of the three pictures
_STRIP = 28  # pixels of a line of text
_GAP = 8
# Copied from the scan where names may be shown: who it is of, and which study it belongs to (PS3.3 C.7.1.1, C.7.2.1).
_IDENTITY = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate",
    "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_TYPE_2 = tuple(name for name in _IDENTITY if name not in ("IssuerOfPatientID", "StudyInstanceUID"))


@dataclass(frozen=True)
class Capture:
    """One explanation."""

    before: np.ndarray  # uint8 [H,W,C]: what the edit is compared with
    after: np.ndarray  # uint8 [H,W,C]
    sentence: str  # what came of it
    source: Path | None = None  # the DICOM file of the scan


def picture(capture: Capture) -> np.ndarray:
    """Draw scan, edit and difference side by side under captions: uint8 [rows, columns, 3]."""
    from PIL import Image, ImageDraw, ImageFont

    factor = max(1, -(-_SIDE // capture.before.shape[0]))
    panels = [np.broadcast_to(p, (*p.shape[:2], 3)) for p in (capture.before, capture.after)]
    panels.append(difference_map(capture.before, capture.after))
    sheet = grid([enlarge(panel, factor) for panel in panels], columns=3, gap=_GAP, background=0)
    canvas = Image.new("RGB", (sheet.shape[1], sheet.shape[0] + 2 * _STRIP))
    canvas.paste(Image.fromarray(sheet), (0, _STRIP))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=_STRIP * 0.6)
    for column, caption in enumerate(_CAPTIONS):
        pen.text((column * (sheet.shape[1] + _GAP) // 3 + 4, 4), caption, fill="white", font=font)
    pen.text((4, _STRIP + sheet.shape[0] + 4), WARNING, fill="yellow", font=font)
    return np.asarray(canvas)


def write(path: Path, capture: Capture, *, number: int, series: str, show_names: bool) -> Path:
    """Write one explanation.

    Args:
        number: Of the object in its series, from 1.
        series: UID that all of one call share.
        show_names: The site's policy (`explanations: show-names`).

    Raises:
        DataError: pydicom is missing, or the scan's own header cannot be read.
        OSError: The disk is full, or the like.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    made: Any = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid(prefix=None)
    made.SpecificCharacterSet = "ISO_IR 192"
    header = None if capture.source is None else _header(capture.source)
    for name in _TYPE_2:
        setattr(made, name, "")
    made.StudyInstanceUID = generate_uid(prefix=None)
    if show_names and header is not None:
        for name in _IDENTITY:
            if header.get(name):
                setattr(made, name, header.get(name))
    made.Modality, made.SeriesInstanceUID, made.SeriesNumber = "OT", series, None
    made.SeriesDescription = "JointDiff counterfactual, not for diagnosis"
    made.ConversionType = "SYN"
    made.Manufacturer = "JointDiff"
    made.InstanceNumber, made.PatientOrientation = number, ""
    made.ImageType = ["DERIVED", "SECONDARY"]
    made.DerivationDescription = WARNING
    made.ImageComments = f"{capture.sentence} {WARNING}"[:10240]
    if header is not None and header.get("BurnedInAnnotation"):  # what is drawn here names nobody; the scan might
        made.BurnedInAnnotation = str(header.get("BurnedInAnnotation"))
    made.LossyImageCompression = "00"
    made.set_pixel_data(picture(capture), "RGB", 8)
    with storage.atomic_path(path, private=True) as temporary:
        made.save_as(temporary, enforce_file_format=True, overwrite=True)
    return path


def new_series() -> str:
    """Return the UID of a new series; nothing of machine or time is in it."""
    from pydicom.uid import generate_uid

    return str(generate_uid(prefix=None))


def _header(path: Path) -> Any:
    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote values
            return pydicom.dcmread(path, specific_tags=[*_IDENTITY, "BurnedInAnnotation"], stop_before_pixels=True)
    except Exception:  # a damaged header can fail anywhere in pydicom
        raise DataError("The header of a DICOM file that was just read cannot be read again.") from None
