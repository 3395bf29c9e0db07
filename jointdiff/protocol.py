"""What server and site say to each other, as plain data: no Flower types, no tensors.

A message is one of these kinds. Beside the fields only model tensors and merged statistics travel. With
`secure-aggregation` TRAIN and HEAD come between SHARES and UNMASK, and their tensors are masked (secure_sum.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

AUTOENCODER = "autoencoder"  # latent runs: keep this frozen autoencoder; it comes once, before all else
DESCRIBE = "describe"  # who are you: class table, device
TRAIN = "train"  # local steps on the weights sent
HEAD = "head"  # statistics that solve the classifier head
EVALUATE = "evaluate"  # statistics of the predictions on the site's test images
EXPLAIN = "explain"  # make the site's gallery; grades alone come back
KEYS = "keys"  # secure sum, first: show public keys; counts of images and labels
SHARES = "shares"  # secure sum, second: deal sealed shares of the own secrets to the others
UNMASK = "unmask"  # secure sum, last: give shares that take the masks off the sum
LACKS_AUTOENCODER = "This site does not hold the autoencoder of the run"  # how a refusal begins
KINDS = (AUTOENCODER, DESCRIBE, TRAIN, HEAD, EVALUATE, EXPLAIN, KEYS, SHARES, UNMASK)


@dataclass(frozen=True)
class RoundInstructions:
    """What the server asks of one hospital."""

    kind: str  # one of KINDS
    run_name: str
    hospital: str  # name, e.g. "hospital-1"
    hospital_index: int  # 0-based
    round: int  # 1-based; 0 before the first
    config: Mapping[str, Any]  # jointdiff.config.Config.to_dict()
    site_folder: str  # absolute; simulation only ('' in deployment: the site's own home)
    code_version: str
    code_hash: str  # jointdiff.identity.code_hash()
    payload: Mapping[str, Any] = field(
        default_factory=dict
    )  # HEAD: of which images; AUTOENCODER: of what; secure sums: ...
    transfer: Mapping[str, Any] = field(default_factory=dict)  # codecs and what is left out (jointdiff/transfer.py)

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> RoundInstructions:
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))


def head_payload(*, pseudo: bool) -> dict[str, Any]:
    """Return what a HEAD question carries: whether the sums are over the images that the head sent is sure of."""
    return {"pseudo": pseudo}


# What a report that is not ok says beside its text: a word that a program can act on.
CODES = (
    "", "refused", "configuration", "data", "checkpoint", "run", "memory", "system", "internal", "instructions",
    "egress", "manifest",
)  # fmt: skip


@dataclass(frozen=True)
class RoundReport:
    """What one hospital answers, beside tensors."""

    hospital: str
    status: str = "ok"  # ok | refused | failed
    code: str = ""  # one of CODES; '' where all went well
    reason: str = ""  # safe text: no path, no file name, no data
    num_images: int = 0
    num_labels: int = 0
    duration_s: float = 0.0
    device: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)  # scalars by name
    table: Mapping[str, Any] = field(default_factory=dict)  # DESCRIBE: the class table
    withheld: list[str] = field(default_factory=list)  # what the site's min-cell-count holds back, by name
    payload: Mapping[str, Any] = field(default_factory=dict)  # KEYS, SHARES, UNMASK: keys and shares as base64

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> RoundReport:
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))
