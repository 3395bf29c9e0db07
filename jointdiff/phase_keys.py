"""What a run of two phases is asked for by: its keys, and which rounds belong to which phase. Checks alone.

With `latent: true` a run first trains the autoencoder of its scans and then the joint model on its latents. Rounds are
counted through both phases: what is trained for A and then for B rounds has the rounds 1 to A + B.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jointdiff.autoencoder_keys import AUTOENCODER
from jointdiff.errors import ConfigError

if TYPE_CHECKING:
    from jointdiff.config import RunConfig

LATENTS = "latents"  # name of the second phase; the first is called as its method
_OF_PIXELS = ("images", "equal")  # weightings that count no label
_FOR_LATENT = ("autoencoder_rounds", "autoencoder_model", "autoencoder_preset", "autoencoder_budget")


@dataclass(frozen=True)
class PhaseConfig:
    """Which part of a run of two phases a configuration is of."""

    number: int = 1  # 1 trains the autoencoder, 2 the joint model on its latents
    autoencoder_rounds: int = 1
    joint_rounds: int = 1

    @property
    def name(self) -> str:
        """What the phase is called in events."""
        return AUTOENCODER if self.number == 1 else LATENTS

    @property
    def rounds_before(self) -> int:
        """Rounds of the run that lie before this phase."""
        return 0 if self.number == 1 else self.autoencoder_rounds

    @property
    def all_rounds(self) -> int:
        """Rounds of both phases together."""
        return self.autoencoder_rounds + self.joint_rounds


def check_latent(run: RunConfig) -> None:
    """Check the keys of a run of two phases, and refuse them where there is one phase.

    Raises:
        ConfigError: They contradict others, are out of range, or would change nothing.
    """
    if not run.latent:
        default = type(run)()
        for field in _FOR_LATENT:
            if getattr(run, field) != getattr(default, field):
                key = field.replace("_", "-")
                raise ConfigError(f"{key}={getattr(run, field)} is for latent=true alone: leave it out, or set latent.")
        return
    if run.autoencoder:
        raise ConfigError(
            f"latent=true and autoencoder={run.autoencoder} contradict each other: a run trains its own autoencoder "
            "first, or works on the latents of one that is there. Leave one of them out."
        )
    if run.method == AUTOENCODER:
        raise ConfigError(
            "latent=true and method=autoencoder contradict each other: with latent=true the autoencoder is the first "
            "phase, and method is what is trained on its latents. Take joint, or leave latent out."
        )
    if run.initial_weights:
        raise ConfigError(
            f"latent=true and initial-weights={run.initial_weights} exclude each other: those weights know the latents "
            "of another autoencoder than the one that this run is going to train. Leave initial-weights out."
        )
    if run.autoencoder_rounds < 1:
        raise ConfigError(f"autoencoder-rounds must be at least 1, not {run.autoencoder_rounds}.")
    if not 0 < run.autoencoder_budget < 1:
        raise ConfigError(
            f"autoencoder-budget must be a share of target-epsilon above 0 and below 1, not {run.autoencoder_budget}: "
            "either phase needs some."
        )


def autoencoder_run(run: RunConfig) -> RunConfig:
    """Return what the first phase of a run is asked for: a run of method autoencoder, on the same images.

    What means nothing where there is no head and no label is looked at is left out.
    """
    return replace(
        run,
        latent=False,
        method=AUTOENCODER,
        num_rounds=run.autoencoder_rounds,
        model=run.autoencoder_model,
        preset=run.autoencoder_preset,
        weighting=run.weighting if run.weighting in _OF_PIXELS else "images",
        head_weighting="",
        decoder_weighting="",
        personal="",
        share="all",
        explain=0,
    )
