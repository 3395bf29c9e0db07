"""A run on latents: which autoencoder, both parts in one file, another one refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from jointdiff import checkpoint, latent_run
from jointdiff.cli import main
from jointdiff.config import RunConfig, preset_of, resolve
from jointdiff.data import hospital_data
from jointdiff.errors import CheckpointError, ConfigError
from jointdiff.evaluation import predict
from jointdiff.latents import FrozenAutoencoder
from jointdiff.preparation import prepare
from jointdiff.spaces import Latents
from jointdiff.standalone import train_alone
from jointdiff.trained import open_trained
from server.export import export

FACTS = {"channels": 1, "num_outputs": 2, "task": "multi-class"}


def test_the_network_is_built_for_the_latents_and_the_images_stay_what_they_are(tiny_run, tiny_autoencoder):
    model = resolve(tiny_run(autoencoder=tiny_autoencoder()), **FACTS).model
    assert (model.channels, model.image_size, model.input_channels, model.input_size) == (1, 16, 4, 8)
    assert model.latent and model.autoencoder == FrozenAutoencoder.load(tiny_autoencoder()).fingerprint
    assert resolve(tiny_run(autoencoder=tiny_autoencoder(), model="auto"), **FACTS).model.name == "unet-28"
    pixels = resolve(tiny_run(), **FACTS).model
    assert (pixels.latent, pixels.input_channels, pixels.input_size) == (False, 1, 16)


@pytest.mark.parametrize(("changes", "said"), [({"size": 8}, "set image-size=8"), ({"channels": 3}, "3 channel")])
def test_an_autoencoder_of_other_images_is_refused_before_there_is_a_folder(
    tiny_run, tiny_autoencoder, tmp_path, changes, said
):
    with pytest.raises(ConfigError, match=said):
        prepare(tiny_run(autoencoder=tiny_autoencoder(**changes)))
    with pytest.raises(CheckpointError, match=r"no autoencoder at .* leave autoencoder empty"):
        prepare(tiny_run(autoencoder=str(tmp_path / "nowhere.safetensors")))
    assert not (tmp_path / "home" / "runs" / "tiny").exists()


def test_a_run_keeps_a_copy_and_refuses_another_in_its_place(tiny_run, tiny_autoencoder):
    config, _, folder = prepare(tiny_run(autoencoder=tiny_autoencoder()))
    opened = latent_run.open_in(folder, config.model)
    assert opened.fingerprint == config.model.autoencoder
    FrozenAutoencoder.load(tiny_autoencoder(1)).save(folder / latent_run.FILE)
    with pytest.raises(CheckpointError, match="Use the autoencoder that the model was trained with"):
        latent_run.open_in(folder, config.model)


def test_an_autoencoder_survives_being_taken_apart_and_another_does_not(tiny_run, tiny_autoencoder):
    model = resolve(tiny_run(autoencoder=tiny_autoencoder()), **FACTS).model
    frozen = FrozenAutoencoder.load(tiny_autoencoder())
    tensors, keys = latent_run.to_tensors(frozen)
    images = hospital_data(tiny_run(), 0).train.images
    again = latent_run.from_tensors(tensors, keys, model)
    assert torch.equal(again.to_latents(images), frozen.to_latents(images))
    other, _ = latent_run.to_tensors(FrozenAutoencoder.load(tiny_autoencoder(1)))
    with pytest.raises(CheckpointError, match="what one of them encodes means nothing to the other"):
        latent_run.from_tensors(other, keys, model)
    for damaged in ({**keys, "widths": [16]}, {"nothing": 1}, {**keys, "image-size": "sixteen"}):
        with pytest.raises(CheckpointError, match="cannot be read"):
            latent_run.from_tensors(tensors, damaged, model)


@pytest.fixture
def trained(tiny_run, tiny_autoencoder):
    run = tiny_run(autoencoder=tiny_autoencoder(), num_hospitals=1, run_name="alone")
    return train_alone(run) / "checkpoints" / "best.safetensors"


def test_one_file_holds_both_parts_and_is_the_whole_model(trained, tiny_run, tiny_autoencoder, tmp_path, capsys):
    opened = open_trained(trained, device="cpu")
    assert isinstance(opened.space, Latents)
    images = hospital_data(tiny_run(), 0).test.images
    codes = Latents(FrozenAutoencoder.load(tiny_autoencoder())).inputs(images)
    expected = predict(opened.model, codes, device=opened.device)
    np.testing.assert_array_equal(opened.predict(images), expected)

    exported = export(trained.parent.parent, "best", tmp_path / "passed-on.safetensors")
    assert checkpoint.load(exported).config.run.autoencoder == "autoencoder-0-16-1.safetensors"  # no folder of here
    np.testing.assert_array_equal(open_trained(exported, device="cpu").predict(images), expected)

    assert main(["evaluate", str(exported), "--device", "cpu", f"dataset={tiny_run().dataset}"]) == 0
    assert "num_images           18" in capsys.readouterr().out
    assert main(["sample", str(exported), "--per-class", "1", "-o", str(tmp_path / "s.png"), "--device", "cpu"]) == 0
    assert main(["evaluate", str(exported), f"autoencoder={tiny_autoencoder(1)}"]) != 0
    assert "the checkpoint carries the one that it was trained with" in capsys.readouterr().err


def test_a_checkpoint_without_its_autoencoder_or_of_another_one_is_refused(
    trained, tiny_run, tiny_autoencoder, tmp_path
):
    loaded = checkpoint.load(trained)
    cut = checkpoint.save(tmp_path / "cut.safetensors", loaded.state, loaded.config, round_number=1)
    with pytest.raises(CheckpointError, match="it was cut apart"):
        open_trained(cut, device="cpu")
    part = checkpoint.Part(*latent_run.to_tensors(FrozenAutoencoder.load(tiny_autoencoder(1))))
    mixed = checkpoint.save(
        tmp_path / "mixed.safetensors", loaded.state, loaded.config, round_number=1, autoencoder=part
    )
    with pytest.raises(CheckpointError, match="Use the autoencoder that the model was trained with"):
        open_trained(mixed, device="cpu")


@pytest.mark.parametrize(("own", "said"), [(1, "sees latents of the autoencoder"), (None, "sees pixels")])
def test_a_run_starts_from_no_weights_that_learned_other_latents(trained, tiny_run, tiny_autoencoder, own, said):
    changes = {} if own is None else {"autoencoder": tiny_autoencoder(own)}
    with pytest.raises(CheckpointError, match=said):
        prepare(tiny_run(initial_weights=str(trained), run_name="next", **changes))
    prepare(tiny_run(initial_weights=str(trained), run_name="same", autoencoder=tiny_autoencoder(0)))


def test_a_checkpoint_on_pixels_says_nothing_of_latents(tiny_run):
    folder = train_alone(dataclasses.replace(tiny_run(), num_hospitals=1, run_name="pixels"))
    metadata, tensors = checkpoint.read(folder / "checkpoints" / "best.safetensors")
    assert "autoencoder" not in metadata and not any(name.startswith("autoencoder") for name in tensors)
    assert not (folder / latent_run.FILE).exists()


@pytest.mark.parametrize(
    ("changes", "preset"),
    [
        ({}, "joint"),
        ({"method": "two-stage"}, "two-stage"),
        ({"target_epsilon": 8.0}, "joint-private"),
        ({"noise_multiplier": 1.0, "method": "supervised"}, "supervised"),
        ({"latent": True}, "joint-latent"),
        ({"autoencoder": "a.safetensors"}, "joint-latent"),
        ({"latent": True, "target_epsilon": 8.0}, "joint-private"),
        ({"latent": True, "method": "two-stage"}, "two-stage"),
        ({"latent": True, "preset": "joint"}, "joint"),
    ],
)
def test_a_method_has_presets_of_its_own_for_private_runs_and_for_latents(changes, preset):
    assert preset_of(RunConfig(**changes)) == preset
