"""The settings of a federation: how images and labels are dealt to its hospitals, and who trains in a round.

A setting is written NAME or NAME:VALUE, such as dirichlet:0.5, and is read and checked here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jointdiff.aggregation_rules import has_own_head
from jointdiff.errors import ConfigError, nearest

if TYPE_CHECKING:
    from jointdiff.config import RunConfig

_ALPHA, _COUNT = "a positive number", "a whole number of at least 1"
PARTITIONS: Mapping[str, str] = {
    "iid": "", "dirichlet": _ALPHA, "quantity": _ALPHA, "gaps": _COUNT, "scanner": "", "by-source": ""
}  # fmt: skip
LABEL_SPLITS: Mapping[str, str] = {"even": "", "dirichlet": _ALPHA, "hospitals": _COUNT, "server": ""}
_EXAMPLES = {"dirichlet": "ALPHA", "quantity": "ALPHA", "gaps": "N", "hospitals": "K", _ALPHA: "0.5", _COUNT: "1"}
AT_SERVER = "server"  # the label split with which no hospital has a label


@dataclass(frozen=True)
class Setting:
    """What was written."""

    name: str
    value: float = 0.0  # 0 where the name takes none

    @property
    def count(self) -> int:
        """The value of a setting that counts something."""
        return int(self.value)


def partition_of(text: str) -> Setting:
    """Read the run-config key `partition`.

    Raises:
        ConfigError: There is no such partition, or its value is missing or wrong.

    >>> partition_of("dirichlet:0.5")
    Setting(name='dirichlet', value=0.5)
    """
    return _read("partition", text, PARTITIONS)


def label_split_of(text: str) -> Setting:
    """Read the run-config key `label-split`.

    Raises:
        ConfigError: There is no such split, or its value is missing or wrong.

    >>> label_split_of("hospitals:1").count
    1
    """
    return _read("label-split", text, LABEL_SPLITS)


def _read(key: str, text: str, known: Mapping[str, str]) -> Setting:
    name, colon, value = text.partition(":")
    if name not in known:
        raise ConfigError(f"Unknown {key} '{name}': {nearest(name, known)}")
    kind = known[name]
    if not kind:
        if colon:
            raise ConfigError(f"{key} '{name}' takes no value, but got {text!r}.")
        return Setting(name)
    try:
        number = float(value) if kind == _ALPHA else int(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:  # false for what is no number too
        raise ConfigError(f"{key} '{name}:{_EXAMPLES[name]}' needs {kind}, not {value!r}: try {name}:{_EXAMPLES[kind]}")
    return Setting(name, number)


def num_asked(num_hospitals: int, participation: float) -> int:
    """Return how many hospitals train in a round: a share of all, rounded, at least one.

    >>> [num_asked(10, share) for share in (1.0, 0.5, 0.25, 0.01)]
    [10, 5, 2, 1]
    """
    return max(1, round(participation * num_hospitals))


def check_settings(run: RunConfig) -> None:
    """Check the keys about who has which images and labels, and who trains, as far as that can be without data.

    Raises:
        ConfigError: A value is wrong, or two of them exclude each other.
    """
    partition_of(run.partition)
    _check_labels(run)
    _check_participation(run)


def _check_labels(run: RunConfig) -> None:
    split = label_split_of(run.label_split)
    _check_server(run)
    if run.over_sites and split.name not in ("even", AT_SERVER):
        raise ConfigError(
            f"label-split={run.label_split} makes no sense with dataset=sites: every hospital brings its own data and "
            "labels. Set label-split=even, or server where the server has labelled images of its own."
        )
    if split.name == "hospitals" and split.count > run.num_hospitals:
        raise ConfigError(
            f"label-split={run.label_split} gives labels to more hospitals than there are (num-hospitals "
            f"{run.num_hospitals}): take hospitals:{run.num_hospitals} or fewer."
        )
    if split.name == "dirichlet" and not run.num_labels:
        raise ConfigError(
            f"label-split={run.label_split} says how few labels are shared out, but num-labels=0 keeps all of them: "
            "set num-labels, or take label-split=even."
        )


def _check_server(run: RunConfig) -> None:
    """Check the keys about the server's own labelled images."""
    at_server = run.label_split == AT_SERVER
    if run.server_steps < -1:
        raise ConfigError(f"server-steps must be at least 0, or -1 for as many as local-steps, not {run.server_steps}.")
    if run.server_steps >= 0 and not at_server:
        raise ConfigError(
            f"server-steps={run.server_steps} is for label-split=server alone: else the server has no images. Leave it "
            "out."
        )
    if run.server_data and not (at_server and run.over_sites):
        raise ConfigError(
            f"server-data={run.server_data!r} is for label-split=server with dataset=sites alone: in a simulation the "
            "server's images are taken out of the hospitals. Leave it out."
        )
    if not at_server:
        return
    if run.over_sites and not run.server_data:
        raise ConfigError(
            "label-split=server with dataset=sites needs server-data=PATH: a .npz of the server's own labelled images "
            "(train_images, train_labels)."
        )
    if run.target_epsilon or run.noise_multiplier:
        raise ConfigError(
            "label-split=server and differential privacy exclude each other: the server would learn from its own "
            "images without noise, and no ledger would speak of them. Leave target-epsilon and noise-multiplier out."
        )
    if run.over_sites:  # hospitals may have labels too
        return
    for key in ("weighting", "head_weighting", "decoder_weighting"):
        if getattr(run, key) == "labels":
            raise ConfigError(
                f"label-split=server and {key.replace('_', '-')}=labels exclude each other: no hospital has a label. "
                "Take images or equal."
            )
    if has_own_head(run):
        raise ConfigError(
            "label-split=server and personal=head exclude each other: no hospital has labels for a head of its own. "
            "Leave personal out."
        )


def _check_participation(run: RunConfig) -> None:
    if not 0 < run.participation <= 1:
        raise ConfigError(
            f"participation must be a share of the hospitals above 0 and at most 1, not {run.participation}."
        )
    if run.participation == 1:
        return
    if run.secure_aggregation:
        raise ConfigError(
            f"participation={run.participation} and secure-aggregation=true exclude each other: who is in a secure sum "
            "is agreed among all hospitals, and the sum of a few hides each of them less. Set participation=1.0."
        )
    if run.share != "all":
        raise ConfigError(
            f"participation={run.participation} and share={run.share} exclude each other: a hospital that sits a round "
            "out would lack the part that does not travel. Take share=all."
        )
    if run.min_hospitals > run.num_asked:
        raise ConfigError(
            f"min-hospitals is {run.min_hospitals}, but participation={run.participation} asks {run.num_asked} of "
            f"{run.num_hospitals} hospitals to train: no round could ever have so many good replies."
        )
