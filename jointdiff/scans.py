"""New scans that a user brings: image files, DICOM files, folders of both, or an npz with an array `images`.

They are read and fitted by the same code as a site's own data: the same file gives the same pixels.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from jointdiff.config import ModelConfig
from jointdiff.data import dicom
from jointdiff.data.fitting import fit
from jointdiff.data.image_files import ENDINGS, read_image
from jointdiff.data.scan_file import Unreadable
from jointdiff.errors import DataError

_PREAMBLE = 128  # bytes before the letters that every DICOM file has (PS3.10)
_BITS = re.compile(r";(\d+)")  # in the raw mode of a file: bits that differ from those of the picture in memory


def is_dicom(path: Path) -> bool:
    """Tell whether a file says that it is DICOM."""
    try:
        with path.open("rb") as file:
            return file.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"
    except OSError:
        return False


def listed(paths: Sequence[str]) -> list[Path]:
    """Return the files that are named, and of folders their image and DICOM files, sorted by name.

    Raises:
        DataError: A folder holds none.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(each for each in path.iterdir() if each.suffix.lower() in ENDINGS or is_dicom(each))
            if not inside:
                raise DataError(f"{path} holds no image file ({', '.join(ENDINGS)}) and no DICOM file.")
            found += inside
        else:
            found.append(path)
    return found


def read_scans(
    paths: Sequence[str],
    model: ModelConfig,
    *,
    exact: bool = False,
    window: str | tuple[float, float] = "auto",
    aspect: str = "pad",
) -> tuple[list[str], np.ndarray]:
    """Return names and pixels of scans, read and fitted as a site's own data are (image_files, dicom, fitting).

    Args:
        paths: Image files, DICOM files, folders of both (sorted by name), or npz files with `images` [N,H,W] or
            [N,H,W,C] of uint8.
        model: Gives the size and the number of channels.
        exact: Nothing but DICOM is fitted: a scan of another size, depth or number of channels is an error, and so is
            any without contrast. For explanations: their pixels must be those of the scan.
        window: Of DICOM files, as `read_dicom` takes it.
        aspect: One of fitting.ASPECTS.

    Returns:
        Names (file name, or `<file>[i]` in an npz), and uint8 [N,H,W,C].

    Raises:
        DataError: Nothing there, not an image, or not uint8; with `exact` also a scan that does not fit as it is.
    """
    names: list[str] = []
    scans: list[np.ndarray] = []
    for path in listed(paths):
        if path.suffix == ".npz":
            arrays = _read_npz(path)
            own = [f"{path.name}[{i}]" for i in range(len(arrays))]
            if exact and len(arrays):
                channels = arrays.shape[3] if arrays.ndim == 4 else 1
                _check_form(f"`images` in {path.name}", arrays.shape[1:3], channels, model)
            pixels = list(arrays if arrays.ndim == 4 else arrays[..., None])
        else:
            own, pixels = [path.name], [_read_file(path, model, window, exact=exact)]
        fitted = [fit(each, image_size=model.image_size, channels=model.channels, aspect=aspect) for each in pixels]
        if exact:
            for name, scan in zip(own, pixels, strict=True):  # before black is padded on
                _check_contrast(name, scan)
        names += own
        scans += fitted
    if not scans:
        raise DataError("No scans were given: name image files, folders, or npz files with an array `images`.")
    return names, np.stack(scans)


def _read_file(path: Path, model: ModelConfig, window: str | tuple[float, float], *, exact: bool) -> np.ndarray:
    """Return the pixels of an image or DICOM file as they are, [H,W,1 or 3] in 0..255."""
    if not path.exists():
        raise DataError(f"There is no file {path}.")
    if is_dicom(path):
        dicom.check_installed()
        try:
            return dicom.read_dicom(path, window).pixels
        except Unreadable as failure:
            raise DataError(f"{path} cannot be read: {failure}.") from None
    try:
        if exact:
            with Image.open(path) as image:
                _check_exact(path.name, image, model)
        return read_image(path).pixels
    except (Unreadable, UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}): give PNG, JPEG, TIFF or BMP.") from None


def _check_exact(name: str, image: Image.Image, model: ModelConfig) -> None:
    bits = _bits(image)
    if bits != 8:
        raise DataError(
            f"{name} has {bits} bits per channel, but the model was trained on 8: convert it to 8 bits by the window "
            "that the training images were converted by."
        )
    if getattr(image, "n_frames", 1) > 1:
        raise DataError(f"{name} holds {getattr(image, 'n_frames', 1)} pictures: save the one to explain by itself.")
    if image.mode == "P":
        raise DataError(f"{name} has a palette in place of grey values or colours: save it as grey or RGB.")
    _check_form(name, (image.height, image.width), len(image.getbands()), model)


def _bits(image: Image.Image) -> int:
    """Return the bits per channel of the file; those of deep RGB files are cut to 8 when they are read."""
    if image.mode == "1":
        return 1
    if image.mode.startswith("I;16"):
        return 16
    if image.mode in ("I", "F"):
        return 32
    found = [_BITS.search(str(tile[3])) for tile in getattr(image, "tile", [])]
    return next((int(match[1]) for match in found if match and image.mode != "P"), 8)


def _check_form(name: str, size: tuple[int, ...], channels: int, model: ModelConfig) -> None:
    """Refuse a scan of another size or number of channels than the model sees."""
    wanted = (model.image_size, model.image_size)
    if size != wanted:
        raise DataError(
            f"{name} is {size[0]} x {size[1]} pixels (height x width), but the model sees {wanted[0]} x {wanted[1]}: "
            "resize it as the training images were resized."
        )
    if channels != model.channels:
        kinds = {1: "grey, 1 channel", 3: "RGB, 3 channels"}
        raise DataError(
            f"{name} has {channels} channel{'s' if channels > 1 else ''}, but the model sees {model.channels} "
            f"({kinds[model.channels]}): convert it as the training images were converted."
        )


def _check_contrast(name: str, pixels: np.ndarray) -> None:
    if (pixels == pixels[:1, :1]).all():
        raise DataError(f"{name} is constant: every pixel is {pixels[0, 0].squeeze()}, so it shows nothing to explain.")


def _read_npz(path: Path) -> np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise DataError(f"{path} is a single array (.npy). Save an npz: np.savez(path, images=...).")
        with loaded as file:
            if "images" not in file:
                raise DataError(f"{path} has no array `images`; it has: {', '.join(file.files)}.")
            images = file["images"]
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read as an npz file: {error}") from None
    fits = images.ndim in (3, 4) and (images.ndim == 3 or images.shape[3] in (1, 3)) and 0 not in images.shape[1:]
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        bad = int((~np.isfinite(images)).sum())
        raise DataError(
            f"`images` in {path} holds NaN or infinity in {bad} of {images.size} values: it must be uint8 without gaps."
        )
    if images.dtype != np.uint8 or not fits:
        raise DataError(
            f"`images` in {path} must be uint8 [N,H,W] or [N,H,W,1 or 3], not {images.dtype} {list(images.shape)}."
        )
    return images
