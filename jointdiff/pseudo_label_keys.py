"""The training keys of pseudo-labels: what they may be, and which of them go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jointdiff.errors import ConfigError, nearest

if TYPE_CHECKING:
    from jointdiff.config import TrainingConfig

POLICIES = ("fixed", "freematch", "flexmatch", "softmatch", "mixture")
TEACHERS = ("local", "global", "local-ema", "agreement")
ALIGNMENTS = ("none", "uniform", "estimated")


def check_pseudo_labels(training: TrainingConfig, task: str) -> None:
    """Check the keys of pseudo-labels: each by itself, then together.

    Args:
        task: multi-class | multi-label.

    Raises:
        ConfigError: A value is unknown or out of range, or two of them exclude each other; says what to take instead.
    """
    for key, value, known in (
        ("pseudo-policy", training.pseudo_policy, POLICIES),
        ("teacher", training.teacher, TEACHERS),
        ("alignment", training.alignment, ALIGNMENTS),
    ):
        if value not in known:
            raise ConfigError(f"Unknown {key} '{value}': {nearest(value, known)}")
    for key, share in (
        ("threshold", training.threshold),
        ("pseudo-start-fraction", training.pseudo_start_fraction),
        ("pseudo-ramp-fraction", training.pseudo_ramp_fraction),
    ):
        if not 0 <= share <= 1:
            raise ConfigError(f"{key} must be a share between 0 and 1, not {share}.")
    if not 0 <= training.teacher_ema_decay < 1:
        raise ConfigError(
            f"teacher-ema-decay must be at least 0 and below 1, not {training.teacher_ema_decay}: 0 is the local model "
            "itself, and 1 would never learn."
        )
    if training.pseudo_policy == "mixture" and training.teacher != "global":
        raise ConfigError(
            f"pseudo-policy=mixture and teacher={training.teacher} exclude each other: the mixture is fitted once a "
            "round, to what the weights sent say of all of a site's images. Take teacher=global, or another policy "
            "with alignment=estimated."
        )
    if training.pseudo_policy == "mixture" and training.alignment != "none":
        raise ConfigError(
            f"pseudo-policy=mixture and alignment={training.alignment} exclude each other: the mixture estimates how "
            "common the classes are by itself. Take alignment=none."
        )
    if training.alignment == "uniform" and task == "multi-label":
        raise ConfigError(
            "alignment=uniform would take every label of a multi-label task for present in half of the images. Take "
            "alignment=estimated or none."
        )
