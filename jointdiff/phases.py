"""The phases of a run, each with its own resolved configuration, derived from the whole one. Pure.

Server, hospitals and the run without a federation work through the phases one by one; within a phase nobody needs to
know that there is another, but for what `Config.phase` says.
"""

from __future__ import annotations

from dataclasses import replace

from jointdiff.config import Config
from jointdiff.phase_keys import PhaseConfig, autoencoder_run


def phases_of(config: Config) -> tuple[Config, ...]:
    """Return the configurations of a run's phases, in order; of a run of one phase itself.

    The second of two knows its autoencoder once `with_autoencoder` has said which it is.
    """
    if not config.run.latent or config.phase is not None:
        return (config,)
    assert config.autoencoder_training is not None, "a run of two phases is resolved with both trainings"
    phase = PhaseConfig(1, config.run.autoencoder_rounds, config.run.num_rounds)
    first = Config(
        run=autoencoder_run(config.run),
        model=replace(config.model, latent_channels=0, latent_size=0, autoencoder=""),
        training=config.autoencoder_training,
        autoencoder=config.autoencoder,
        phase=phase,
    )
    second = Config(run=config.run, model=config.model, training=config.training, phase=replace(phase, number=2))
    return first, second


def with_autoencoder(config: Config, fingerprint: str) -> Config:
    """Return the whole configuration of a run, its frozen autoencoder in it."""
    return replace(config, model=replace(config.model, autoencoder=fingerprint))
