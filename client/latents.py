"""A site's part in a latent run: it keeps the frozen autoencoder that came, and the latents of its own scans.

Latents are computed once and lie on the site's own disk, under a key of the autoencoder's fingerprint and all scans:
of other scans or of another autoencoder they are other files, and what is truncated or of another version is made
anew. What was sealed with another key than the site's is not damaged: it stays, and the site is told. They never leave:
a latent is its scan, for whoever holds the autoencoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client import sealed
from jointdiff import latent_run
from jointdiff.config import Config, TrainingConfig
from jointdiff.data import HospitalData, ImageSet, streaming
from jointdiff.errors import CheckpointError, ConfigError, DataError, RefusedError
from jointdiff.protocol import LACKS_AUTOENCODER, RoundInstructions
from jointdiff.spaces import CODE_RANGE, PIXELS, Latents, Space, views_from_scans

FORMAT = "latents-1"
CACHE = "latent-cache"  # in the site's folder; it may be deleted at any time
_PARTS = ("train", "heldout", "test", "nonmembers")
_BATCH_SIZE = 64
_NO_FACTS = (0, 0, 0, 0, 0, 0.0, 0.0, False, b"")  # the cache knows rows of facts on scans; latents have none


def keep(ask: RoundInstructions, config: Config, tensors: Mapping[str, np.ndarray], site_folder: Path) -> None:
    """Put the autoencoder that the server sent into the site's folder.

    Raises:
        RefusedError: It is none, or not the one that the run's configuration names.
    """
    if not config.model.latent:
        raise RefusedError("The server sends an autoencoder, and this run works on pixels.")
    keys = ask.payload.get("autoencoder")
    try:
        frozen = latent_run.from_tensors(
            {name: torch.tensor(array) for name, array in tensors.items()},
            keys if isinstance(keys, Mapping) else {},
            config.model,
        )
    except CheckpointError as error:
        raise RefusedError(f"The autoencoder that the server sent is not used. {error}") from None
    folder = _folder(config, site_folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    frozen.save(folder / latent_run.FILE)


def space_of(config: Config, site_folder: Path, device: torch.device) -> Space:
    """Return where the run's network works.

    Raises:
        RefusedError: The site does not hold the autoencoder, or what it holds is damaged.
    """
    if not config.model.latent:
        return PIXELS
    try:
        return latent_run.space_in(_folder(config, site_folder), config, device)
    except CheckpointError:
        raise RefusedError(f"{LACKS_AUTOENCODER}. It takes part again when the server sends it.") from None


def seen(
    data: HospitalData,
    space: Space,
    site_folder: Path,
    *,
    training: TrainingConfig | None = None,
    on_disk: bool = True,
    key_file: str = "",
) -> HospitalData:
    """Return what the network sees of this site's scans: themselves, or their latents, computed once.

    Args:
        training: Says what views are made from; None = no network is trained on them.
        on_disk: False keeps latents in the memory of this process alone: the next process computes them again.
        key_file: Of the key that they are sealed with on the disk; '' leaves them as they are.

    Raises:
        ConfigError: As `site_key`.
        DataError: The cache cannot be written.
    """
    if not isinstance(space, Latents):
        return data
    parts = _parts(data)
    arrays = [images.images for images in parts.values()]
    key = _key(space.autoencoder.fingerprint, arrays)
    shape = space.autoencoder.latent_shape
    make = _Maker(space, arrays)
    if on_disk and key_file:
        codes = _sealed(site_folder / CACHE, key, (sum(map(len, arrays)), shape[1], shape[2], shape[0]), make, key_file)
    elif on_disk:
        folder, form = site_folder / CACHE, (shape[1], shape[2], shape[0])
        found = streaming.find(folder, key, form) or streaming.store(
            folder, key, form, sum(map(len, arrays)), make.rows, dict
        )
        codes = found.images
    else:
        codes = _in_memory(key, make)
    cuts = np.cumsum([0, *map(len, arrays)])
    changed: dict[str, Any] = {
        name: _coded(images, codes[cuts[i] : cuts[i + 1]]) for i, (name, images) in enumerate(parts.items())
    }
    return replace(data, view_source=views_from_scans(data.train.images, space, training), **changed)


def _sealed(folder: Path, name: str, shape: tuple[int, ...], make: _Maker, key_file: str) -> np.ndarray:
    """Return latents that lie sealed in a folder, made where they are not there; what lies there unsealed goes."""
    key = site_key(folder, key_file)
    for unsealed in [*folder.glob("scans-*.cache"), *folder.glob(".scans-*.tmp")]:
        unsealed.unlink(missing_ok=True)  # of a time without a key
    path = folder / f"latents-{name[:32]}.sealed"
    found = sealed.read(path, name, shape, key)
    if found is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        sealed.write(path, name, (code for code, _ in make.rows()), shape, key)
        files = sorted(sealed_in(folder), key=lambda each: each.stat().st_mtime_ns, reverse=True)
        for old in files[streaming.KEPT :]:
            old.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder} cannot hold the latents: {error.strerror or error}. Make space or give permission there; the "
            "folder can be deleted at any time, it is made anew."
        ) from None
    found = sealed.read(path, name, shape, key)
    if found is None:
        raise DataError(f"{folder} loses what is written to it: use a folder on a local disk.")
    return found


def num_scans(data: HospitalData) -> int:
    """Return of how many scans a site has latents."""
    return sum(map(len, _parts(data).values()))


def sealed_in(folder: Path) -> list[Path]:
    """Return the files of sealed latents in a folder."""
    return list(folder.glob("latents-*.sealed"))


def site_key(folder: Path, key_file: str, *, make: bool = True) -> bytes:
    """Return the site's key, if it is that of all that lies sealed in a folder. Nothing in the folder is changed.

    Args:
        make: Whether a key is made where there is no file and nothing is sealed yet.

    Raises:
        ConfigError: The key is missing or no good, or another than the one of what lies there.
    """
    path, lying = Path(key_file), sealed_in(folder)
    if lying and not path.exists():
        raise ConfigError(
            f"The key of the latents {path} (encryption-key in site.yaml) is not there, and latents lie sealed in "
            f"{folder}. Mount the key's disk, or name the right file. If the key is lost, delete {folder}: the latents "
            "are made anew from the scans."
        )
    key = sealed.load_key(path, make=make)
    if any(sealed.is_of_another_key(each, key) for each in lying):
        raise ConfigError(
            f"The key of the latents {path} (encryption-key in site.yaml) is not the one that the latents in {folder} "
            f"were sealed with. Mount or name the right key. If that is lost, or was changed on purpose, delete "
            f"{folder}: the latents are made anew from the scans, under this key. Until then nothing there is changed."
        )
    return key


class _Maker:
    """Computes latents; equal to every other, so that a cache of calls looks at the key beside it alone."""

    def __init__(self, space: Space, arrays: list[np.ndarray]) -> None:
        self._space, self._arrays = space, arrays

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Maker)

    def __hash__(self) -> int:
        return 0

    def rows(self) -> Iterator[tuple[np.ndarray, tuple[Any, ...]]]:
        """Give one latent after the other, as the cache takes them."""
        for images in self._arrays:
            for start in range(0, len(images), _BATCH_SIZE):
                for code in self._space.inputs(images[start : start + _BATCH_SIZE]):
                    yield code, _NO_FACTS

    def all(self) -> np.ndarray:
        """Return all latents."""
        return np.concatenate([self._space.inputs(images) for images in self._arrays])


@lru_cache(maxsize=4)
def _in_memory(_key: str, make: _Maker) -> np.ndarray:
    return make.all()


def _parts(data: HospitalData) -> dict[str, ImageSet]:
    return {name: images for name in _PARTS if (images := getattr(data, name)) is not None}


def _coded(images: ImageSet, codes: np.ndarray) -> ImageSet:
    return replace(images, images=codes, masks=None, twins=None)


def _key(fingerprint: str, arrays: list[np.ndarray]) -> str:
    """Return the SHA-256 of all that decides the latents."""
    digest = hashlib.sha256(f"{FORMAT} {fingerprint} {CODE_RANGE}".encode())
    for images in arrays:
        digest.update(f"/{images.shape}/".encode())
        for start in range(0, len(images), _BATCH_SIZE):  # mapped scans may be more than the memory holds
            digest.update(np.ascontiguousarray(images[start : start + _BATCH_SIZE]).tobytes())
    return digest.hexdigest()


def _folder(config: Config, site_folder: Path) -> Path:
    return site_folder / "autoencoders" / config.model.autoencoder[:32]
