"""The training keys of rates, views and the solved head: what they may be, and which of them go together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from jointdiff.errors import ConfigError

if TYPE_CHECKING:
    from jointdiff.config import TrainingConfig


def check_rates(training: TrainingConfig) -> None:
    """Check how fast training moves.

    Raises:
        ConfigError: A rate is not positive, or a factor that would change nothing.
    """
    for key, value in (("learning-rate", training.learning_rate), ("label-lr-scale", training.label_lr_scale)):
        if not 0 < value < math.inf:
            raise ConfigError(f"{key} must be above 0, not {value}.")
    if training.label_lr_scale != 1 and not 0 < training.warmup_fraction < 1:
        raise ConfigError(
            f"label-lr-scale={training.label_lr_scale} is for the rounds after a denoising warm-up: with "
            f"warmup-fraction {training.warmup_fraction} there is no such round, or no other. Set learning-rate "
            "instead."
        )


def check_views(training: TrainingConfig) -> None:
    """Check which views training takes, and what they are made from.

    Raises:
        ConfigError: A value is unknown.
    """
    for key, value, known in (
        ("labelled-view", training.labelled_view, ("strong", "weak")),
        ("latent-views", training.latent_views, ("scans", "latents")),
    ):
        if value not in known:
            raise ConfigError(f"{key} must be {known[0]} or {known[1]}, not {value!r}.")


def check_head(training: TrainingConfig) -> None:
    """Check the keys of the solved head.

    Raises:
        ConfigError: A value is out of range, or two exclude each other.
    """
    if training.head_self_training < 0 or not training.head_pseudo_ridge > 0:
        raise ConfigError(
            "head-self-training must be at least 0 and head-pseudo-ridge above 0, not "
            f"{training.head_self_training} and {training.head_pseudo_ridge}."
        )
    if not 0 <= training.head_labelled_share <= 1:
        raise ConfigError(f"head-labelled-share must be from 0 to 1, not {training.head_labelled_share}.")
    if training.head_self_training and training.head == "gradient":
        raise ConfigError("head-self-training needs a head that is solved: set head to ridge or ridge-start.")
    if training.head_calibration and training.head != "ridge-start":
        raise ConfigError(
            "head-calibration is for a head that is solved first and then learns on: set head to ridge-start, or "
            f"head-calibration to false, with head: {training.head} it would change nothing."
        )
