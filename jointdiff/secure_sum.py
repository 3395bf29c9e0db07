"""Secure aggregation: the server learns the sum of the hospitals' tensors, and no hospital's own. Pure.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, the protocol against
an honest but curious server. With whole numbers modulo 2^32 or 2^64 (fixed_point.py) hospital u sends

    y_u = x_u + PRG(b_u) + sum_{v > u} PRG(s_uv) - sum_{v < u} PRG(s_uv)

where s_uv is agreed between u and v (X25519, HKDF) and b_u is u's own random seed. In the sum the s_uv cancel. Both b_u
and the private key behind the s_uv are dealt to all hospitals in shares, t of which give the secret back (Shamir): for
a hospital that answered the others reveal b_u, for one that dropped out its key, never both. PRG is AES-256 in counter
mode; shares travel through the server under AES-GCM.

What holds. A server that follows the protocol sees uniformly random numbers and the sum, even together with fewer than
t hospitals, which can subtract their own part from it. t is more than half of the run's hospitals, so a server that
tells different hospitals different lists of survivors cannot get t shares of both secrets of one hospital either,
unless hospitals help it. What all hospitals were told before masking (keys, participants, weights) goes into the masks:
where it differed between them, they do not cancel and there is no sum.

What does not hold. Nobody certifies the public keys: a server that lies from the start can play all other hospitals
towards one of them and learn its update. It may name itself weights, or choose who takes part. A hospital that sends a
wrong but finite update within the range is not noticed. Counts of images and labels, training losses and test
statistics travel in the clear, and a sum over few hospitals says something about each of them: with two each would know
the other's update.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

Tensors = dict[str, np.ndarray]
SECRET_BYTES = 32  # private keys, public keys, seeds, and shares of a secret
_NONCE_BYTES = 12  # of AES-GCM
_BLOCK = 16  # bytes that Shamir's scheme shares at a time


def counted(weighting: str, *, num_images: int, num_labels: int) -> int:
    """Return what a hospital's weight is made of: its images, its labels, or 1."""
    return {"images": num_images, "labels": num_labels, "equal": 1}[weighting]


def relative_weight(count: int, largest: int) -> float:
    """Return a hospital's weight in the sum, 0 to 1: its count over the largest one. Where all are 0 everybody has 1.

    Raises:
        ValueError: The count is above what is called the largest.
    """
    if count > largest:
        raise ValueError(f"the largest hospital is said to count {largest}, but this one counts {count}")
    return count / largest if largest else 1.0


@dataclass(frozen=True)
class PublicKeys:
    """What one hospital shows of itself in one session, 32 bytes each."""

    sealing: bytes  # others seal shares for it with this key
    masking: bytes  # others agree on masks with it by this key

    def to_json(self) -> list[str]:
        """Return both as text."""
        return [to_text(self.sealing), to_text(self.masking)]

    @classmethod
    def from_json(cls, value: object) -> PublicKeys:
        """Read what `to_json` wrote.

        Raises:
            ValueError: Not two keys, or twice the same.
        """
        if not isinstance(value, list) or len(value) != 2 or value[0] == value[1]:
            raise ValueError("a hospital's public keys must be two different ones")
        return cls(*(to_bytes(text) for text in value))


@dataclass(frozen=True)
class Session:
    """What all parties to one sum were told before shares were dealt. A repeated round is a new session."""

    nonce: str  # drawn by the server
    kind: str  # what is summed: protocol.TRAIN | protocol.HEAD
    threshold: int  # t
    roster: Mapping[str, PublicKeys]  # who has shown keys, by name

    def check(self, minimum: int) -> None:
        """Check that the roster is one.

        Raises:
            ValueError: Fewer than `minimum` hospitals, or two with one key.
        """
        if len(self.roster) < max(minimum, self.threshold):
            raise ValueError(f"{len(self.roster)} hospitals take part; it must be {max(minimum, self.threshold)}")
        keys = {key for member in self.roster.values() for key in (member.sealing, member.masking)}
        if len(keys) != 2 * len(self.roster):
            raise ValueError("two hospitals show the same public key")

    def position(self, name: str) -> int:
        """Return a hospital's number, from 1, in the order of the names."""
        return sorted(self.roster).index(name) + 1

    def digest(self) -> bytes:
        """Return a hash over all of it, 32 bytes."""
        members = {name: member.to_json() for name, member in self.roster.items()}
        return _hash([self.nonce, self.kind, self.threshold, members])

    def mask_info(self, participants: Sequence[str], largest: int) -> bytes:
        """Return what the masks are bound to: the session, who has dealt shares, and the unit of the weights."""
        return _hash([self.digest().hex(), sorted(participants), largest])

    def seal_info(self, sender: str, receiver: str) -> bytes:
        """Return what sealed shares are bound to: the session, and between whom."""
        return _hash([self.digest().hex(), sender, receiver])


def new_secret() -> bytes:
    """Return 32 bytes of the operating system's randomness: a private key or a seed."""
    return os.urandom(SECRET_BYTES)


def public_key(private: bytes) -> bytes:
    """Return the X25519 public key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes, info: bytes) -> bytes:
    """Return the 32-byte key that two parties share; both get the same from their own private key.

    Args:
        info: What the key is for; another text gives an unrelated key.

    Raises:
        ValueError: The public key is none.
    """
    shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    return HKDF(algorithm=SHA256(), length=SECRET_BYTES, salt=None, info=info).derive(shared)


def seal(key: bytes, text: bytes, info: bytes) -> bytes:
    """Return `text` under AES-256-GCM, with its nonce before it; `info` is authenticated and does not travel."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, text, info)


def unseal(key: bytes, sealed: bytes, info: bytes) -> bytes:
    """Return what `seal` sealed.

    Raises:
        ValueError: It was changed, or sealed for somebody else or another session.
    """
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], info)
    except (InvalidTag, ValueError):
        raise ValueError("sealed shares cannot be opened: they are damaged, or meant for somebody else") from None


def split(secret: bytes, needed: int, count: int) -> list[bytes]:
    """Return `count` shares of a 32-byte secret, `needed` of which give it back and fewer say nothing.

    Shamir, "How to share a secret", 1979, over GF(2^128), half by half. Share i, from 0, belongs to position i + 1.
    """
    halves = [Shamir.split(needed, count, secret[start : start + _BLOCK], ssss=False) for start in (0, _BLOCK)]
    return [bytes(first) + bytes(second) for (_, first), (_, second) in zip(*halves, strict=True)]


def combine(shares: Mapping[int, bytes], needed: int) -> bytes:
    """Return the secret behind shares by position; the first `needed` are used.

    Raises:
        ValueError: There are fewer.
    """
    if len(shares) < needed:
        raise ValueError(f"{len(shares)} shares of a secret are left; {needed} are needed")
    chosen = sorted(shares.items())[:needed]
    return b"".join(
        bytes(Shamir.combine([(at, share[start : start + _BLOCK]) for at, share in chosen], ssss=False))
        for start in (0, _BLOCK)
    )


def mask(
    encoded: Mapping[str, np.ndarray],
    session: Session,
    *,
    name: str,
    participants: Sequence[str],
    largest: int,
    seed: bytes,
    private_key: bytes,
) -> Tensors:
    """Return one hospital's tensors with its masks on: what may leave.

    Args:
        encoded: From `FixedPoint.encode`.
        name: Of this hospital.
        participants: All that have dealt shares, this one too.
        largest: The count that has weight 1.
        seed: Of the hospital's own mask.
        private_key: Of its masking key.
    """
    info = session.mask_info(participants, largest)
    added, subtracted = [seed], list[bytes]()
    for other in participants:
        if other != name:
            key = agree(private_key, session.roster[other].masking, info)
            (added if name < other else subtracted).append(key)
    return _shifted(encoded, added, subtracted)


def unmask(
    total: Mapping[str, np.ndarray],
    session: Session,
    *,
    participants: Sequence[str],
    largest: int,
    seeds: Mapping[str, bytes],
    keys: Mapping[str, bytes],
) -> Tensors:
    """Return the sum of the survivors' encoded tensors without masks.

    Args:
        total: The sum of what the survivors sent, modulo 2^bits.
        participants: All that have dealt shares.
        largest: As for `mask`.
        seeds: Every survivor's.
        keys: The private masking keys of the others.

    Raises:
        ValueError: Somebody's secret is missing, or a key is not that of the hospital.
    """
    if seeds.keys() | keys.keys() != set(participants) or seeds.keys() & keys.keys():
        raise ValueError("each participant must be either a survivor or dropped out")
    info = session.mask_info(participants, largest)
    added, subtracted = list[bytes](), list(seeds.values())
    for dropped, private in keys.items():
        if public_key(private) != session.roster[dropped].masking:
            raise ValueError(f"the shares of {dropped}'s key do not give its key")
        for survivor in seeds:
            key = agree(private, session.roster[survivor].masking, info)
            (subtracted if survivor < dropped else added).append(key)
    return _shifted(total, added, subtracted)


def _shifted(tensors: Mapping[str, np.ndarray], added: Sequence[bytes], subtracted: Sequence[bytes]) -> Tensors:
    """Add and subtract keystreams modulo 2^bits; the tensors take their turns in the order of their names."""
    shifted = {name: np.array(tensors[name]) for name in sorted(tensors)}  # copies
    signed = [(key, np.add) for key in added] + [(key, np.subtract) for key in subtracted]
    for key, operation in signed:
        stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()  # a key serves one session: no nonce
        for array in shifted.values():
            zeros = bytes(math.prod(array.shape) * array.itemsize)
            noise = np.frombuffer(stream.update(zeros), array.dtype.newbyteorder("<")).reshape(array.shape)
            operation(array, noise, out=array)  # whole numbers of numpy arrays wrap at 2^bits
    return shifted


def to_text(secret: bytes) -> str:
    """Return bytes as base64."""
    return base64.b64encode(secret).decode("ascii")


def to_bytes(text: object, length: int = SECRET_BYTES) -> bytes:
    """Read base64 strictly.

    Args:
        length: Of the bytes; 0 = any.

    Raises:
        ValueError: Not base64, or of another length.
    """
    try:
        value = base64.b64decode(str(text), validate=True)
    except binascii.Error:
        raise ValueError("a key or share is not base64") from None
    if length and len(value) != length:
        raise ValueError(f"a key or share has {len(value)} bytes, not {length}")
    return value


def _hash(value: object) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
