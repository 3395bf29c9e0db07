"""Read DICOM files: pixel data and what is needed to show it. No other field of a header is parsed or kept.

Stored values become values of the modality (rescale slope and intercept, or its table). A window maps them to 0..255 as
PS3.3 C.11.2.1.2 says; `auto` maps the file's own range. MONOCHROME1 is inverted. Padding counts in no range and is
black. Colour is taken as it is. Files of several frames are refused: which frame is meant is not ours to choose.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from jointdiff.data.scan_file import Scan, Unreadable, scan_of
from jointdiff.errors import DataError

# Files that lie about in folders of scans and hold none. Scans themselves often have no ending, or part of a UID.
OTHER_ENDINGS = frozenset({
    ".txt", ".csv", ".tsv", ".json", ".xml", ".pdf", ".md", ".html", ".log", ".ini", ".db", ".xls", ".xlsx", ".zip",
})  # fmt: skip
_TAGS = [
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction",
    "BurnedInAnnotation", "PixelData", "FloatPixelData", "DoubleFloatPixelData",
]  # fmt: skip


def is_candidate(path: Path) -> bool:
    """Tell whether a file in a folder of DICOM files should be one."""
    return path.name.upper() != "DICOMDIR" and path.suffix.lower() not in OTHER_ENDINGS


def check_installed() -> None:
    """Raise a DataError where pydicom is missing."""
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise DataError("kind dicom needs the package pydicom: pip install 'jointdiff[dicom]'.") from None


def read_dicom(path: Path, window: str | tuple[float, float] = "auto") -> Scan:
    """Read one DICOM file.

    Args:
        window: `auto`, `header`, or (centre, width) in values of the modality.

    Raises:
        Unreadable: With the reason.
    """
    header = _header(path, _TAGS)
    if not any(name in header for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise Unreadable("no pixel data")
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise Unreadable("several frames in one file: export the one that is meant")
    kind = str(header.get("PhotometricInterpretation", ""))
    if kind == "PALETTE COLOR":
        raise Unreadable("a palette in place of grey values or colours")
    stored = _pixels(header)
    burned_in = str(header.get("BurnedInAnnotation", "")).upper() == "YES"
    if stored.ndim == 3:
        bits = int(header.get("BitsStored", 8))
        shown = stored if stored.dtype == np.uint8 else _scaled(stored, 0, 2**bits - 1)
        return scan_of(stored, shown, burned_in=burned_in)
    outside = _outside(stored, header)
    shown = _windowed(stored, header, window, outside)
    shown = 255 - shown if kind == "MONOCHROME1" else shown
    return scan_of(stored, np.where(outside, np.float32(0), shown), burned_in=burned_in)


def patient_digest(path: Path) -> str:
    """Return a digest of the PatientID in a file's header; '' where there is none or the file cannot be read."""
    try:
        text = str(_header(path, ["PatientID"], pixels=False).get("PatientID") or "").strip()
    except Unreadable:
        return ""
    return hashlib.sha256(text.encode()).hexdigest() if text else ""


def _header(path: Path, tags: list[str], *, pixels: bool = True) -> Any:
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote values
            return pydicom.dcmread(path, specific_tags=tags, stop_before_pixels=not pixels)
    except PermissionError:
        raise Unreadable("no permission to read the file") from None
    except FileNotFoundError:
        raise Unreadable("the file is missing") from None
    except InvalidDicomError:
        raise Unreadable("not a DICOM file") from None
    except Exception:  # a damaged header can fail anywhere in pydicom
        raise Unreadable("truncated or damaged") from None


def _pixels(header: Any) -> np.ndarray:
    from pydicom.pixels.utils import pixel_array

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = pixel_array(header)  # YBR becomes RGB here
    except Exception as error:  # pydicom raises what its decoders raise
        if "missing dependencies" in str(error) or "plugin" in str(error):
            raise Unreadable("compressed in a way that needs another package (pylibjpeg, python-gdcm)") from None
        raise Unreadable("truncated or damaged") from None
    if stored.ndim not in (2, 3) or (stored.ndim == 3 and stored.shape[2] != 3) or not stored.size:
        raise Unreadable("neither a grey nor a colour picture")
    return stored


def _windowed(stored: np.ndarray, header: Any, window: str | tuple[float, float], outside: np.ndarray) -> np.ndarray:
    """Return float32 [H, W] in 0..255."""
    from pydicom.pixels.processing import apply_modality_lut

    try:
        values = np.asarray(apply_modality_lut(stored, header), dtype=np.float64)
    except Exception:
        raise Unreadable("damaged rescale values") from None
    if not np.isfinite(values).all():
        raise Unreadable("NaN or infinity among the values")
    if window == "auto":
        inside = values[~outside] if not outside.all() else values
        return _scaled(values, inside.min(), inside.max())
    function = "LINEAR"
    if window == "header":
        centre, width, function = _window_of(header)
    else:
        centre, width = window[0], window[1]  # type: ignore[assignment]
    if function == "SIGMOID":
        return np.asarray(255 / (1 + np.exp(-4 * (values - centre) / width)), dtype=np.float32)
    if function == "LINEAR_EXACT":
        return _scaled(values, centre - width / 2, centre + width / 2)
    return _scaled(values, centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)


def _window_of(header: Any) -> tuple[float, float, str]:
    found = []
    for name in ("WindowCenter", "WindowWidth"):
        value = header.get(name)
        first = value[0] if hasattr(value, "__getitem__") and not isinstance(value, str) and len(value) else value
        try:
            found.append(float(first))
        except (TypeError, ValueError):
            raise Unreadable("no window in the header: take `window: auto` or [centre, width]") from None
    function = str(header.get("VOILUTFunction") or "LINEAR").upper()
    if found[1] < 1 or (function == "LINEAR" and found[1] <= 1):
        raise Unreadable("a window without width in the header")
    return found[0], found[1], function


def _outside(stored: np.ndarray, header: Any) -> np.ndarray:
    """Return which pixels lie outside of the picture by the header, bool [H, W]."""
    value, limit = header.get("PixelPaddingValue"), header.get("PixelPaddingRangeLimit")
    if value is None:
        return np.zeros(stored.shape, dtype=bool)
    low, high = sorted((int(value), int(value if limit is None else limit)))
    return (stored >= low) & (stored <= high)


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map low..high to 0..255, what lies outside to the ends; a constant picture becomes black."""
    span = float(high) - float(low)
    if span <= 0:
        return np.zeros(values.shape, dtype=np.float32)
    return (np.clip((values.astype(np.float64) - low) / span, 0, 1) * 255).astype(np.float32)
