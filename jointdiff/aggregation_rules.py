"""Which rule averages which part of the network, and what excludes what. Pure.

The keys: `weighting` for the whole network; `head-weighting` and `decoder-weighting` for one part, '' = as `weighting`.
What a weight is made of, server/weighting.py says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jointdiff.errors import ConfigError, nearest

if TYPE_CHECKING:
    from jointdiff.config import Config, RunConfig

WEIGHTINGS = ("images", "labels", "equal", "confidence")
MEAN_STRATEGIES = ("fedavg", "fedprox", "fedadam", "fedyogi")
_OF_PARTS = ("head-weighting", "decoder-weighting")


def by_labels(run: RunConfig) -> str:
    """Return the first setting whose weights are made of the hospitals' numbers of labels, '' where there is none.

    >>> from jointdiff.config import RunConfig
    >>> by_labels(RunConfig()), by_labels(RunConfig(head_weighting="labels"))
    ('', 'head-weighting=labels')
    """
    asked = (f"{key}={value}" for key, value in _asked(run).items() if value in ("labels", "confidence"))
    return next(asked, "")


def check_run(run: RunConfig) -> None:
    """Check the keys against each other and against strategy and secure aggregation.

    Raises:
        ConfigError: A weighting is unknown, or cannot be had in such a run; says why.
    """
    for key, value in _asked(run).items():
        if value not in WEIGHTINGS:
            raise ConfigError(f"Unknown {key} '{value}': {nearest(value, WEIGHTINGS)}")
        if value == "confidence" and run.secure_aggregation:
            raise ConfigError(
                f"{key}=confidence and secure-aggregation=true exclude each other: in a secure sum every hospital's "
                "weight is agreed on before it trains, and its confidence is known only afterwards. Take images, "
                "labels or equal."
            )
    for key in _OF_PARTS:
        value = _asked(run).get(key, "")
        if value and run.strategy not in MEAN_STRATEGIES:
            raise ConfigError(
                f"{key}={value} and strategy={run.strategy} exclude each other: a robust rule takes all hospitals "
                f"alike, so no part has weights. Take {', '.join(MEAN_STRATEGIES)}, or leave {key} out."
            )
        if value and run.secure_aggregation:
            raise ConfigError(
                f"{key}={value} and secure-aggregation=true exclude each other: a secure sum adds whole models, each "
                f"weighted once before it is masked. Leave {key} out."
            )


def check_training(config: Config) -> None:
    """Check the keys against the training preset.

    Raises:
        ConfigError: A key would change nothing with it; says why.
    """
    run, training = config.run, config.training
    for key, value in _asked(run).items():
        if value == "confidence" and not training.pseudo_weight:
            raise ConfigError(
                f"{key}=confidence needs pseudo-labels, and method={run.method} makes none (pseudo-weight 0). Take "
                "images, labels or equal, or a preset with a pseudo-weight."
            )
    if run.head_weighting and training.head == "ridge":
        raise ConfigError(
            f"head-weighting={run.head_weighting} would change nothing: the preset's head (head: ridge) is solved anew "
            "for all hospitals after every round. Leave it out, or take a preset whose head learns on (head: "
            "ridge-start or gradient)."
        )


def _asked(run: RunConfig) -> dict[str, str]:
    """Return the weighting keys that are set, with their values."""
    of_parts = {"head-weighting": run.head_weighting, "decoder-weighting": run.decoder_weighting}
    return {"weighting": run.weighting} | {key: value for key, value in of_parts.items() if value}
