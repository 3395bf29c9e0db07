"""Read PNG, JPEG, TIFF and BMP files: 8 or 16 bits, grey, RGB or a palette.

16 bits are scaled by their full range (65535 is white), never by what the single file holds: the brightness of two
scans stays comparable. Transparency is dropped. The orientation that a camera notes is applied; nothing else of a
header is looked at.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jointdiff.data.scan_file import Scan, Unreadable, scan_of

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_GREY, _COLOUR = ("1", "L", "LA", "La"), ("RGB", "RGBA", "RGBX", "RGBa", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV")


def read_image(path: Path) -> Scan:
    """Read one image file.

    Raises:
        Unreadable: With the reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # mammograms are that large
            with Image.open(path) as image:
                if getattr(image, "n_frames", 1) > 1:
                    raise Unreadable("several pictures in one file")
                return _scan(ImageOps.exif_transpose(image))
    except PermissionError:
        raise Unreadable("no permission to read the file") from None
    except FileNotFoundError:
        raise Unreadable("the file is missing") from None
    except UnidentifiedImageError:
        raise Unreadable("not a PNG, JPEG, TIFF or BMP file") from None
    except Image.DecompressionBombError:
        raise Unreadable("too many pixels") from None
    except (OSError, SyntaxError, ValueError, EOFError):  # what Pillow raises on damage
        raise Unreadable("truncated or damaged") from None


def _scan(image: Image.Image) -> Scan:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        stored = np.asarray(image).astype(np.uint16)
        return scan_of(stored, stored.astype(np.float32) / 257)
    if image.mode in _GREY:
        return scan_of(np.asarray(image.convert("L")))
    if image.mode in _COLOUR:
        return scan_of(np.asarray(image.convert("RGB")))
    raise Unreadable("32 bits or fractions per pixel, whose range nothing states: save 8 or 16 bits")
