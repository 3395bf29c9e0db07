"""What a run of `method: autoencoder` may ask for, and the weights of its loss. Checks alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from jointdiff.errors import ConfigError
from jointdiff.settings import AT_SERVER

if TYPE_CHECKING:
    from jointdiff.config import RunConfig, TrainingConfig

AUTOENCODER = "autoencoder"  # the method that trains the autoencoder of scans
# Keys that mean nothing where there is no head and no label is looked at, with what they may be.
_MEANINGLESS = {
    "weighting": ("images", "equal"), "head_weighting": ("",), "decoder_weighting": ("",), "personal": ("",),
    "share": ("all",),
}  # fmt: skip


def check_autoencoder(run: RunConfig) -> None:
    """Refuse keys that would change nothing.

    Raises:
        ConfigError: There is one; names it.
    """
    if run.method != AUTOENCODER:
        return
    if run.autoencoder:
        raise ConfigError(
            f"autoencoder={run.autoencoder} and method=autoencoder exclude each other: a run trains an autoencoder, or "
            "works on the latents of one that is frozen. Leave autoencoder out, or take another method."
        )
    for field, allowed in _MEANINGLESS.items():
        value, key = getattr(run, field), field.replace("_", "-")
        if value not in allowed:
            raise ConfigError(
                f"{key}={value} means nothing with method=autoencoder, which has no head and looks at no label: leave "
                f"{key} out."
            )
    if run.label_split == AT_SERVER:
        raise ConfigError(
            f"label-split={AT_SERVER} means nothing with method=autoencoder, which looks at no label: leave it out."
        )


def check_reconstruction(training: TrainingConfig) -> None:
    """Check the weights of the autoencoder's loss.

    Raises:
        ConfigError: One is below 0, or nothing draws the reconstruction to the image.
    """
    weights = (training.l1_weight, training.l2_weight, training.feature_weight, training.kl_weight)
    if not all(0 <= w < math.inf for w in weights) or not any(weights[:3]):
        raise ConfigError(
            "l1-weight, l2-weight, feature-weight and kl-weight must be at least 0, and one of the first three above "
            f"it, not {weights[0]:g}, {weights[1]:g}, {weights[2]:g} and {weights[3]:g}."
        )
