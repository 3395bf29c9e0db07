"""Which rule averages which part of the network, and what excludes what. Pure.

The keys: `weighting` for the whole network; `head-weighting` and `decoder-weighting` for one part, '' = as `weighting`;
`personal=head`: the head is not averaged at all, hospitals with labels keep one each. What a weight is made of,
server/weighting.py says; what becomes of a hospital's own head, client/personal_head.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jointdiff.errors import ConfigError, nearest

if TYPE_CHECKING:
    from jointdiff.config import Config, RunConfig

WEIGHTINGS = ("images", "labels", "equal", "confidence")
MEAN_STRATEGIES = ("fedavg", "fedprox", "fedadam", "fedyogi")
PERSONAL = ("", "head")
_OF_PARTS = ("head-weighting", "decoder-weighting")


def has_own_head(run: RunConfig) -> bool:
    """Tell whether hospitals keep classifier heads of their own."""
    return run.personal == "head"


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
        ConfigError: A value is unknown, or cannot be had in such a run; says why.
    """
    _check_personal(run)
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


def _check_personal(run: RunConfig) -> None:
    if run.personal not in PERSONAL:
        raise ConfigError(f"Unknown personal '{run.personal}': known are head, and '' for none.")
    if not has_own_head(run):
        return
    if run.head_weighting:
        raise ConfigError(
            f"head-weighting={run.head_weighting} and personal=head exclude each other: heads that stay at the "
            "hospitals are not averaged. Leave one of the two out."
        )
    if run.target_epsilon or run.noise_multiplier:
        raise ConfigError(
            "personal=head is not there for private runs: hospitals without labels, and the model that is exported, "
            "need a head that is solved from sums, and in a private run no sums leave. Leave personal out."
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
    if has_own_head(run) and training.head == "gradient":
        raise ConfigError(
            "personal=head needs a head that is solved for all hospitals: those without labels decide by it, the "
            "exported model carries it, and the hospitals' own heads begin as it; the preset has head: gradient. Take "
            "a preset with head: ridge or ridge-start."
        )
    if has_own_head(run) and not (training.class_weight and training.warmup_fraction < 1):
        raise ConfigError(
            f"personal=head would change nothing: with method={run.method} no round trains a head (class-weight "
            f"{training.class_weight:g}, warmup-fraction {training.warmup_fraction:g}). Leave it out."
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
