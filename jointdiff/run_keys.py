"""Run-config keys: what each may be, and which of them go together, as far as that can be told without data."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from jointdiff import aggregation_rules, settings
from jointdiff.autoencoder_keys import AUTOENCODER, check_autoencoder
from jointdiff.errors import ConfigError, nearest
from jointdiff.exchange_keys import check_exchange
from jointdiff.phase_keys import check_latent
from jointdiff.site_run_keys import check_sites

if TYPE_CHECKING:
    from jointdiff.config import RunConfig

METHODS = ("joint", "two-stage", "fixmatch", "supervised")  # that classify
STRATEGIES = ("fedavg", "fedprox", "fedadam", "fedyogi", "trimmed-mean", "median", "krum", "multi-krum")
ROBUST_STRATEGIES = ("trimmed-mean", "median", "krum", "multi-krum")
EVAL_SPLITS = ("test", "val")
MAX_EVAL_SCANNERS = 16
SPEEDS = ("auto", "plain", "compiled")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


def check_run(run: RunConfig) -> None:
    """Check every key that can be checked without data.

    Raises:
        ConfigError: A value is out of range, or does not go with another key; says what to do.
    """
    for key, low in (
        ("num_hospitals", 1),
        ("num_rounds", 1),
        ("local_steps", 1),
        ("batch_size", 2),
        ("image_size", 8),
        ("num_labels", 0),
        ("seed", 0),
        ("split_seed", 0),
        ("explain", 0),
        ("num_faulty", 0),
        ("min_hospitals", 0),
        ("round_timeout_s", 1),
        ("round_retries", 0),
    ):
        if getattr(run, key) < low:
            name = key.replace("_", "-")
            raise ConfigError(f"{name} must be at least {low}, not {getattr(run, key)}.")
    _one_of("method", run.method, (*METHODS, AUTOENCODER))
    check_autoencoder(run)
    check_latent(run)
    _one_of("strategy", run.strategy, STRATEGIES)
    settings.check_settings(run)
    aggregation_rules.check_run(run)
    if run.min_hospitals > run.num_hospitals:
        raise ConfigError(
            f"min-hospitals is {run.min_hospitals}, but num-hospitals {run.num_hospitals}: no round could ever have so "
            "many good replies."
        )
    needed = 2 * run.num_faulty + (3 if "krum" in run.strategy else 1)
    if run.is_robust and run.num_asked < needed:
        raise ConfigError(
            f"strategy={run.strategy} with num-faulty={run.num_faulty} needs num-hospitals of at least {needed}, not "
            f"{run.num_asked}: with fewer, the wrong ones can win. Those count that train in a round (participation)."
        )
    check_sites(run)
    check_exchange(run)
    if not run.proximal_mu >= 0 or not run.server_learning_rate > 0:
        raise ConfigError(
            f"proximal-mu must be at least 0 and server-learning-rate above 0, not {run.proximal_mu} and "
            f"{run.server_learning_rate}."
        )
    if not (0 <= run.target_epsilon < math.inf and 0 <= run.noise_multiplier < math.inf and 0 < run.delta < 1):
        raise ConfigError(
            "target-epsilon and noise-multiplier must be at least 0 and delta between 0 and 1, not "
            f"{run.target_epsilon}, {run.noise_multiplier} and {run.delta}."
        )
    if run.target_epsilon and run.noise_multiplier:
        raise ConfigError(
            f"target-epsilon={run.target_epsilon} and noise-multiplier={run.noise_multiplier} are two ways to say one "
            "thing: give one of them."
        )
    _one_of("eval-split", run.eval_split, EVAL_SPLITS)
    if not 0 <= run.eval_scanners <= MAX_EVAL_SCANNERS:
        raise ConfigError(
            f"eval-scanners must be from 0 (the images as they are) to {MAX_EVAL_SCANNERS}, not {run.eval_scanners}: "
            "every evaluation image is shown by each of them."
        )
    _one_of("speed", run.speed, SPEEDS)
    if not 0 <= run.audit_holdout <= 0.5:
        raise ConfigError(
            f"audit-holdout must be a share between 0 and 0.5, not {run.audit_holdout}: nothing trains on it."
        )
    if run.run_name and not _NAME.fullmatch(run.run_name):
        raise ConfigError(
            f"run-name {run.run_name!r} must be 1 to 80 letters, digits, '.', '_' or '-', and begin with a letter "
            "or digit."
        )
    if run.device not in ("auto", "cpu", "cuda") and not re.fullmatch(r"cuda:\d+", run.device):
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, not {run.device!r}.")


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"Unknown {key} '{value}': {nearest(value, known)}")
