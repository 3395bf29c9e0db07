"""Run-config keys that say what travels between hospitals and server, and in which form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jointdiff import codecs, sharing
from jointdiff.errors import ConfigError
from jointdiff.quorum import MIN_HOSPITALS, threshold

if TYPE_CHECKING:
    from jointdiff.config import RunConfig


def check_exchange(run: RunConfig) -> None:
    """Check the codecs of both ways, which tensors travel, and what a secure sum excludes.

    Raises:
        ConfigError: Says which key, and what to do.
    """
    readers: dict[str, Any] = {"upload": codecs.parse, "download": codecs.parse, "share": sharing.period}
    for key, read in readers.items():
        try:
            read(getattr(run, key))
        except ValueError as error:
            raise ConfigError(f"{key}={getattr(run, key)!r} cannot be: {error}.") from None
    if codecs.parse(run.download).name == "top-k":
        raise ConfigError(
            f"download={run.download} cannot be: what goes down are the weights, no change of them, and most weights "
            "would be 0. Take fp32, bf16 or int8."
        )
    if run.secure_aggregation:
        _check_secure_aggregation(run)


def _check_secure_aggregation(run: RunConfig) -> None:
    if run.upload != codecs.PLAIN:
        raise ConfigError(
            f"upload={run.upload} and secure-aggregation=true exclude each other: a secure sum adds masked fixed-point "
            "numbers of one step, and values that each hospital scales or chooses for itself have no common sum. Take "
            "upload=fp32; download may be encoded."
        )
    if run.share != "all":
        raise ConfigError(
            f"share={run.share} and secure-aggregation=true exclude each other: a secure sum masks the whole model, in "
            "every round. Take share=all."
        )
    if run.is_robust:
        raise ConfigError(
            f"strategy={run.strategy} and secure-aggregation=true exclude each other: a robust rule must see every "
            "hospital's update, and a secure sum shows none. Take fedavg, fedprox, fedadam or fedyogi, or leave "
            "secure-aggregation out."
        )
    if run.num_hospitals < MIN_HOSPITALS:
        raise ConfigError(
            f"secure-aggregation=true needs num-hospitals of at least {MIN_HOSPITALS}, not {run.num_hospitals}: of "
            "two, each knows the other's update from the sum and its own."
        )
    if 0 < run.min_hospitals < threshold(run.num_hospitals):
        raise ConfigError(
            f"min-hospitals={run.min_hospitals} with secure-aggregation=true must be 0 or at least "
            f"{threshold(run.num_hospitals)} of {run.num_hospitals}: fewer cannot take the masks off a sum."
        )
