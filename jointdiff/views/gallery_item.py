"""What a gallery is made of: an explained decision with its pictures, and what stays of it without them.

Shapes: H x W pixels, C channels (1 or 3), K classes or findings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from jointdiff.grading import CHANGE_THRESHOLD
from jointdiff.storage import plain
from jointdiff.trust import EditFacts, Trust, grade_of
from jointdiff.views.format import is_number

Task = Literal["multi-class", "multi-label"]
KINDS = ("scan", "counterfactual", "difference")  # the pictures of an item
DECODED = "decoded"  # one more, of a latent run: what the autoencoder makes of the scan, which is what was edited
_LOOK = "1"  # another number where pictures of the same item come to look different


@dataclass(frozen=True)
class GalleryItem:
    """One explained decision."""

    scan: np.ndarray  # uint8 [H,W,C]
    counterfactual: np.ndarray  # uint8 [H,W,C]
    probs_before: np.ndarray  # [K]
    probs_after: np.ndarray  # [K]
    label: int | None  # the true class where it is known
    target: int  # class that the edit aims at; multi-label: finding whose answer it turns over
    found: bool  # the model's decision became the target
    score: float  # grade of the edit, higher is better; orders best and worst
    name: str | None = None  # shown and kept if given: of a patient or a file only where the site's policy allows it
    identity: bool | None = None  # its own scan is the nearest of all originals; None = not known
    survives: bool | None = None  # the new decision holds on slightly different views; None = not known
    key: str | None = None  # of what was explained, by which model and how: Resume gives the item back by it
    decoded: np.ndarray | None = None  # uint8 [H,W,C], of a latent run: the edit is compared with it, not with the scan

    @property
    def original(self) -> np.ndarray:
        """What the edit is compared with."""
        return self.scan if self.decoded is None else self.decoded


@dataclass(frozen=True)
class Record:
    """What a page tells of an item beside its pictures. It is small: a gallery holds the records of all its items."""

    index: int  # position in the gallery; names the pictures
    label: int | None
    target: int
    found: bool
    score: float
    probs_before: tuple[float, ...]
    probs_after: tuple[float, ...]
    decided: tuple[int, ...]  # class of the scan as it is; multi-label: all findings
    error: bool | None  # the decision differs from the label; None = no label
    gain: float  # rise of the wanted answer's probability
    changed_share: float  # of pixels, changed by more than grading.CHANGE_THRESHOLD
    trust: Trust  # of the edit by itself; its page may lower it
    name: str | None
    height: int  # of the scan, in pixels
    width: int
    fingerprint: str  # of the pictures
    key: str | None  # of GalleryItem, as a digest: it may hold a file's name
    decoded: bool = False  # whether the decoded scan is shown beside the scan

    @property
    def kinds(self) -> tuple[str, ...]:
        """The pictures that there are."""
        return (*KINDS, DECODED) if self.decoded else KINDS

    def picture(self, kind: str) -> str:
        """Return the file name of one of `kinds`."""
        return f"{self.index:04d}-{kind}.png"

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        fields: dict[str, Any] = plain(asdict(self))
        return fields

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> Record:
        """Read a record that was kept.

        Raises:
            KeyError, TypeError, ValueError: It is damaged, or of another version.
        """
        arrays = {name: tuple(fields[name]) for name in ("probs_before", "probs_after", "decided")}
        numbers = {name: float("nan") if fields[name] is None else float(fields[name]) for name in _NUMBERS}
        return Record(**{**fields, **arrays, **numbers, "trust": Trust(**fields["trust"])})

    def public(self, page: Trust) -> dict[str, Any]:
        """Return the entry of metrics.json."""
        trust = self.trust.within(page)
        entry: dict[str, Any] = {
            "index": self.index, "label": self.label, "target": self.target, "found": self.found, "score": self.score,
            "probs_before": self.probs_before, "probs_after": self.probs_after,
            **{kind: self.picture(kind) for kind in self.kinds},
            "decided": self.decided, "error": self.error, "confidence_gain": self.gain,
            "changed_share": self.changed_share, "trust": {"level": trust.level, "reason": trust.reason},
        }  # fmt: skip
        return entry | ({} if self.name is None else {"name": self.name})


_NUMBERS = ("score", "gain", "changed_share")


def record_of(item: GalleryItem, index: int, task: Task) -> Record:
    """Return what stays of an item.

    Args:
        index: Its position.

    Raises:
        ValueError: Pictures, probabilities, target or label do not fit each other.
    """
    _check(item, index)
    before, after = np.asarray(item.probs_before, np.float64), np.asarray(item.probs_after, np.float64)
    wanted_before, wanted_after = before[item.target], after[item.target]
    if task == "multi-label":
        decided = np.flatnonzero(before > 0.5)
        if before[item.target] > 0.5:  # the edit takes the finding away
            wanted_before, wanted_after = 1 - wanted_before, 1 - wanted_after
        reached = wanted_after > 0.5 or (before[item.target] > 0.5 and wanted_after == 0.5)
    else:
        decided = np.array([before.argmax()])
        reached = after.argmax() == item.target
    known = item.label is not None and item.label >= 0
    difference = np.abs(item.counterfactual.astype(np.int64) - item.original).max(axis=2)
    changed_share = float((difference > CHANGE_THRESHOLD * 255).mean())
    facts = EditFacts(
        found=bool(item.found and reached), target_prob=float(wanted_after), changed_share=changed_share,
        identity=item.identity, survives=item.survives,
    )  # fmt: skip
    return Record(
        index=index, label=item.label if known else None, target=int(item.target), found=bool(item.found),
        score=float(item.score) if is_number(float(item.score)) else float("nan"),
        probs_before=_rounded(before), probs_after=_rounded(after), decided=tuple(int(k) for k in decided),
        error=bool(decided[0] != item.label) if known and task == "multi-class" else None,
        gain=float(wanted_after - wanted_before), changed_share=changed_share, trust=grade_of(facts),
        name=item.name, height=item.scan.shape[0], width=item.scan.shape[1], fingerprint=_fingerprint(item),
        key=None if item.key is None else digest(item.key), decoded=item.decoded is not None,
    )  # fmt: skip


def digest(key: str) -> str:
    """Return a key in a form that tells nothing of what it holds to whoever reads it."""
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()[:32]


def _rounded(probs: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(p), 6) for p in probs)


def _fingerprint(item: GalleryItem) -> str:
    found = hashlib.sha256(_LOOK.encode())
    for image in (item.scan, item.counterfactual, *(() if item.decoded is None else (item.decoded,))):
        found.update(repr(image.shape).encode())
        found.update(np.ascontiguousarray(image).tobytes())
    return found.hexdigest()[:32]


def _check(item: GalleryItem, index: int) -> None:
    shapes = [list(image.shape) for image in (item.scan, item.counterfactual)]
    kinds = [image.dtype for image in (item.scan, item.counterfactual)]
    if item.decoded is not None and (item.decoded.shape, item.decoded.dtype) != (item.scan.shape, np.dtype(np.uint8)):
        raise ValueError(
            f"The decoded scan of item {index} must be uint8 of the scan's shape, not {item.decoded.dtype} "
            f"{list(item.decoded.shape)}."
        )
    if shapes[0] != shapes[1] or len(shapes[0]) != 3 or kinds != [np.uint8, np.uint8]:
        raise ValueError(
            f"Scan and counterfactual of item {index} must both be uint8 [H,W,C] of one shape, not {kinds[0]} "
            f"{shapes[0]} and {kinds[1]} {shapes[1]}: hand over the edit as it is shown."
        )
    before, after = np.shape(item.probs_before), np.shape(item.probs_after)
    if before != after or len(before) != 1 or not before[0]:
        raise ValueError(f"Probabilities of item {index} must both be [K], not {list(before)} and {list(after)}.")
    if not (np.isfinite(item.probs_before).all() and np.isfinite(item.probs_after).all()):
        raise ValueError(f"Probabilities of item {index} are not finite: the model gave no decision to explain.")
    if not 0 <= item.target < before[0] or (item.label is not None and item.label >= before[0]):
        raise ValueError(f"Target {item.target} and label {item.label} of item {index} must lie in 0..{before[0] - 1}.")
