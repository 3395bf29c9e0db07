"""Images on a site's disk that nobody can read without the site's key: AES-256-GCM, batch by batch.

A file is a line of JSON (format, name, shape, the key's check value, a checksum of all these) and then batches of
images, each a fresh nonce of 12 bytes and the sealed bytes. The heading and the number of the batch are authenticated
with every batch, so that nothing can be cut off, swapped, or taken from another file unseen. What is written is sealed
at every moment, temporary files included.

The check value says of which key a file is and nothing of the key (HMAC-SHA256 under the key of a fixed text). So
another key is told apart from damage: a heading whose own checksum is right, and whose check value is of another key.

The key is a file of 64 hexadecimal digits that its owner alone can read. On the disk that it protects it protects
little: it belongs on another, such as one that is mounted when the site's processes start.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from jointdiff import storage
from jointdiff.errors import ConfigError

FORMAT = "sealed-2"
KEY_BYTES = 32
_NONCE_BYTES = 12
_TAG_BYTES = 16
_BATCH_SIZE = 64  # images sealed together
_LONGEST_HEADING = 4096  # bytes
_CHECKED_TEXT = b"jointdiff: which key sealed this"


def load_key(path: Path, *, make: bool = True) -> bytes:
    """Read the key.

    Args:
        make: Whether one is made where there is no file. Its folder must be there: no disk, no key.

    Raises:
        ConfigError: It cannot be read or made, is no key, or others can read it.
    """
    try:
        if make and not path.exists():
            _make_key(path)
        mode, content = stat.S_IMODE(path.stat().st_mode), path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"The key of the latents {path} (encryption-key in site.yaml) can neither be read nor made: "
            f"{error.strerror or error}. Mount its disk, give permission there, or name another file."
        ) from None
    if mode & 0o077:
        raise ConfigError(f"The key of the latents {path} can be read by others (mode {mode:04o}): chmod 600 '{path}'")
    try:
        key = bytes.fromhex(content.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(
            f"{path} is no key of latents ({2 * KEY_BYTES} hexadecimal digits): name the right file as encryption-key "
            "in site.yaml, or one that is not there yet: it is made."
        )
    return key


def _make_key(path: Path) -> None:
    """Write a new key, whole or not at all; if another process was faster, its key stays."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(handle, "w") as file:
            file.write(f"{os.urandom(KEY_BYTES).hex()}\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        os.unlink(name)


def write(path: Path, name: str, images: Iterable[np.ndarray], shape: tuple[int, ...], key: bytes) -> None:
    """Seal images into a file, in one step.

    Args:
        name: What they are; whoever reads them must say the same.
        images: uint8, each of shape[1:], shape[0] of them.

    Raises:
        OSError: The disk is full, or the like. What was there stays.
    """
    cipher, heading = AESGCM(key), _heading(name, shape, key)
    with storage.atomic_path(path, private=True) as temporary, temporary.open("wb") as file:
        file.write(heading)
        batch: list[bytes] = []
        number = 0
        for count, image in enumerate(images, start=1):
            batch.append(np.ascontiguousarray(image, dtype=np.uint8).tobytes())
            if len(batch) == _BATCH_SIZE or count == shape[0]:
                nonce = os.urandom(_NONCE_BYTES)
                file.write(nonce + cipher.encrypt(nonce, b"".join(batch), _about(heading, number)))
                batch, number = [], number + 1


def read(path: Path, name: str, shape: tuple[int, ...], key: bytes) -> np.ndarray | None:
    """Open what `write` sealed, into memory: uint8 of this shape.

    Returns:
        None where the file is missing, truncated, changed, of another version, name or shape, or sealed by another key.
    """
    try:
        content = memoryview(path.read_bytes())
    except OSError:
        return None
    heading = _heading(name, shape, key)
    if bytes(content[: len(heading)]) != heading:
        return None
    cipher, found = AESGCM(key), np.empty(shape, np.uint8)
    flat, place = found.reshape(shape[0], -1), len(heading)
    for number, start in enumerate(range(0, shape[0], _BATCH_SIZE)):
        rows = flat[start : start + _BATCH_SIZE]
        end = place + _NONCE_BYTES + rows.size + _TAG_BYTES
        nonce, sealed = content[place : place + _NONCE_BYTES], content[place + _NONCE_BYTES : end]
        try:
            rows.reshape(-1)[:] = np.frombuffer(cipher.decrypt(nonce, sealed, _about(heading, number)), np.uint8)
        except (InvalidTag, ValueError):
            return None
        place = end
    return found if place == len(content) else None


def is_of_another_key(path: Path, key: bytes) -> bool:
    """Tell whether a file was sealed with another key than this.

    Returns:
        False also where that cannot be told: it is missing, its heading is damaged, or it is of another version.
    """
    try:
        with path.open("rb") as file:
            told = json.loads(file.readline(_LONGEST_HEADING))
        whole = told.pop("checksum") == _checksum(told) and told["format"] == FORMAT
        return whole and not hmac.compare_digest(str(told["key-check"]), _key_check(key))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def _heading(name: str, shape: tuple[int, ...], key: bytes) -> bytes:
    told = {"format": FORMAT, "name": name, "shape": list(shape), "key-check": _key_check(key)}
    return json.dumps({**told, "checksum": _checksum(told)}).encode() + b"\n"


def _key_check(key: bytes) -> str:
    return hmac.new(key, _CHECKED_TEXT, hashlib.sha256).hexdigest()


def _checksum(told: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _about(heading: bytes, number: int) -> bytes:
    return heading + number.to_bytes(8, "big")
