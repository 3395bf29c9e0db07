"""One file to pass on: a run's checkpoint that carries its model card, without the folders of this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jointdiff import checkpoint
from jointdiff.config import Config, trains_autoencoder
from jointdiff.errors import RunError
from jointdiff.latents import FrozenAutoencoder
from jointdiff.storage import write_atomic
from jointdiff.views.model_card import model_card
from jointdiff.views.model_card_data import data_name
from jointdiff.views.run_data import load_run

KINDS = ("best", "last")


def export(run_folder: Path, kind: str, output: Path, card: Path | None = None) -> Path:
    """Write the checkpoint to `output`, with the card under the key `model_card` of its header; return `output`.

    An autoencoder is written frozen, with its scale and fingerprint, as `FrozenAutoencoder` reads it.

    Args:
        kind: best | last.
        card: Where the card goes as a Markdown file of its own too; None = nowhere.

    Raises:
        CheckpointError: The run has no such checkpoint, or it is damaged.
        RunError: The folder holds no run.
    """
    source = run_folder / "checkpoints" / f"{kind}.safetensors"
    if trains_autoencoder(checkpoint.load(source).config):
        if card is not None:
            raise RunError("An autoencoder decides nothing, so there is no model card of it: leave --card out.")
        return FrozenAutoencoder.load(source).save(output)
    # Weights before events: a run that goes on has told of every round that it has saved.
    loaded = checkpoint.load(source)
    config = without_folders(loaded.config)
    text = model_card(load_run(run_folder), replace(loaded, config=config), kind)
    checkpoint.export(source, output, config, model_card=text)
    if card is not None:
        write_atomic(card, text)
    return output


def without_folders(config: Config) -> Config:
    """Return a configuration that names no folder of the machine it ran on; files keep their own name alone."""
    run = replace(
        config.run,
        dataset=data_name(config.run.dataset),
        data_root="",
        home="",
        sites_home="",
        model=_file_name(config.run.model),
        preset=_file_name(config.run.preset),
        initial_weights=_file_name(config.run.initial_weights),
        server_data=_file_name(config.run.server_data),
        autoencoder=_file_name(config.run.autoencoder),
        autoencoder_model=_file_name(config.run.autoencoder_model),
        autoencoder_preset=_file_name(config.run.autoencoder_preset),
    )
    encoder = config.autoencoder
    return replace(
        config,
        run=run,
        model=replace(config.model, name=_file_name(config.model.name)),
        autoencoder=encoder and replace(encoder, name=_file_name(encoder.name)),
    )


def _file_name(name: str) -> str:
    return Path(name).name
