"""The benchmarks run, in their smallest form, and what they print adds up. No clock is asserted."""

import json

import numpy as np
import pytest
import torch

from jointdiff import checkpoint
from jointdiff.config import Config, ModelConfig, RunConfig, TrainingConfig
from jointdiff.data import hospital_data
from jointdiff.fidelity import FeatureNet, kid
from jointdiff.model import JointModel
from jointdiff.showcase import guided_samples
from jointdiff.trained import open_trained
from tests.benchmarks import (
    hospitals_growth,
    latent_speed,
    measures,
    preset_cost,
    round_share,
    sample_quality,
    step_attempts,
    training_step,
)
from tests.test_profile import one_round

SMALL = ModelConfig(width=8, multipliers=(1, 2), attention_levels=(1,), patch_size=2)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    config = Config(RunConfig(device="cpu"), SMALL, TrainingConfig())
    torch.manual_seed(0)
    model = JointModel(config.model)
    torch.nn.init.normal_(model.unet.conv_out.weight, std=0.05)
    return checkpoint.save(
        tmp_path_factory.mktemp("model") / "last.safetensors", model.state_dict(), config, round_number=1
    )


def test_sample_quality_measures_each_sampler_against_the_real_images(trained, capsys):
    opened = open_trained(trained, device="cpu")
    rows = list(sample_quality.measure(opened, num_samples=12, steps=[3], reference_steps=4))
    assert [(r["sampler"], r["evaluations"]) for r in rows] == [
        ("real images", 0), ("ddpm", 4), ("ddim", 3), ("dpm-solver", 3),
    ]  # fmt: skip
    real, reference, *few = rows
    assert abs(real["kid"]) < 4 * real["error"] < reference["kid"], "real images are nearer to real ones than nonsense"
    assert reference["difference"] == 0 and all(row["error"] > 0 for row in rows)
    assert few[0]["kid"] != few[1]["kid"]
    # the number is KID of these very samples, as anybody would compute it
    images = np.concatenate([hospital_data(opened.config.run, k).train.images for k in range(3)])
    chosen, net = np.random.default_rng(0).permutation(len(images))[:12], FeatureNet(1)
    samples = guided_samples(
        opened.model, opened.config, np.arange(12) % 2, device=CPU, generator=torch.Generator().manual_seed(0),
        num_steps=3, scale=0.0, sampler="dpm-solver",
    )  # fmt: skip
    assert few[1]["kid"] == pytest.approx(kid(net.features(samples), net.features(images[chosen])).value)
    sample_quality.main([str(trained), "--samples", "4", "--steps", "2", "--reference-steps", "2", "--device", "cpu"])
    assert capsys.readouterr().out.count("\n| d") == 3


def test_a_measurement_that_was_stopped_goes_on_where_it_was(trained, tmp_path):
    """Stopped within a row and between rows: the rows are those of one that was never stopped."""
    opened, keys = open_trained(trained, device="cpu"), {"num_samples": 10, "steps": [2], "reference_steps": 3}

    def rows(file, sampled=10**9):
        """Measure, and stop after so many batches."""
        kept, found, draw = sample_quality.Kept(file, {"seed": 0}), [], sample_quality.guided_samples
        left = [sampled]

        def counted(*args, **kwargs):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return draw(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sample_quality, "guided_samples", counted)
            for row in sample_quality.measure(opened, **keys, batch_size=4, kept=kept):
                kept.add(row)
                found.append({name: value for name, value in row.items() if name != "s_per_image"})
        return found, sampled - left[0]

    whole, num_batches = rows(tmp_path / "whole.jsonl")
    assert num_batches == 9
    done = 0
    for stop in (2, 3):  # within the reference, within DDIM
        with pytest.raises(KeyboardInterrupt):
            rows(tmp_path / "stopped.jsonl", stop)
        done += stop
    assert rows(tmp_path / "stopped.jsonl") == (whole, num_batches - done)
    assert rows(tmp_path / "stopped.jsonl") == (whole, 0)
    with pytest.raises(SystemExit, match="other settings"):
        sample_quality.Kept(tmp_path / "stopped.jsonl", {"seed": 1})


def test_samplers_have_names_and_a_wrong_one_is_refused(trained):
    opened = open_trained(trained, device="cpu")

    def draw(sampler, seed=0):
        return guided_samples(
            opened.model, opened.config, np.zeros(2, np.int64), device=CPU, num_steps=3,
            generator=torch.Generator().manual_seed(seed), sampler=sampler,
        )  # fmt: skip

    assert np.array_equal(draw("dpm-solver"), draw("dpm-solver")) and not np.array_equal(
        draw("dpm-solver"), draw("ddim")
    )
    with pytest.raises(ValueError, match="no sampler 'dpm'"):
        draw("dpm")


def test_a_training_step_is_taken_apart_into_parts_that_fit_into_it():
    config = training_step.configuration(SMALL, 28, 4)
    found = training_step.our_steps(config, CPU, 2)
    assert len(found.steps) == 2 and {"network", "data", "augmentation", "optimiser"} == found.parts.keys()
    assert all(seconds > 0 for seconds in found.parts.values()) and sum(found.parts.values()) <= sum(found.steps)
    assert 0 < found.other_share < 1
    seconds = training_step.compare(SMALL, CPU, batch_size=2, repeats=1, steps=1)
    assert len(seconds) == 4 and all(len(own) == 1 and own[0] > 0 for own in seconds.values())


def test_the_hospitals_of_a_growing_federation_are_measured(capsys, tmp_path):
    found = hospitals_growth.one_case(3, num_rounds=1, local_steps=1, clock="cpu", small=True)
    assert len(found["rounds"]) == 1 and 0 < found["other"] < 1 and found["memory"] > 0
    assert 0 < found["rounds"][0] < 60
    json.dumps(found)


def test_the_share_of_a_run_is_printed(capsys, tmp_path):
    lines = [json.dumps({"schema_version": 1, **event}) for event in one_round(load=2.0, train=3.5, save=0.5)]
    (tmp_path / "events.jsonl").write_text("\n".join(lines))
    round_share.main([str(tmp_path)])
    text = capsys.readouterr().out
    assert "1 rounds, 20 s. No hospital at work: 50.0%" in text and "a says: load 2.0 s, train 3.5 s" in text
    assert "| hospitals train | 7.0 | 35.0% | 7.00 (7.00 to 7.00) |" in text
    (tmp_path / "events.jsonl").write_text("")
    with pytest.raises(SystemExit, match="nothing to profile"):
        round_share.main([str(tmp_path)])


def test_latents_and_pixels_of_one_size_do_the_same_work():
    both = latent_speed.contenders(16, 4, CPU)
    shapes = {name: (own.model.config.input_channels, own.model.config.input_size) for name, own in both.items()}
    assert shapes == {"pixels": (1, 16), "latents": (4, 4)} and both["latents"].config.model.image_size == 16
    found = latent_speed.measure(16, batch_size=4, count=1, repeats=1, device=CPU, clock="wall")
    assert found.keys() == {*latent_speed.UNITS, "encoding"} and found["encoding"].keys() == {"latents"}
    assert all(own.keys() == {"pixels", "latents"} for unit, own in found.items() if unit != "encoding")
    assert all(len(values) == 1 for own in found.values() for values in own.values())


def test_every_attempt_makes_a_step(capsys):
    step_attempts.main(["--width", "8", "--batch-size", "1", "--repeats", "1", "--device", "cpu", "--only",
                        "shared", "one encode, channels last", "shared, bf16"])  # fmt: skip
    assert capsys.readouterr().out.count("\n| ") == 4


def test_a_machine_is_described_in_one_line():
    assert "\n" not in measures.machine() and torch.__version__ in measures.machine()
    assert measures.memory("VmRSS") <= measures.memory("VmHWM")


def test_what_a_step_costs_in_each_phase(capsys):
    for phase in ("autoencoder", "latents"):
        found = preset_cost.measure(phase, 64, 2, 1, CPU, "cpu")
        assert len(found["seconds"]) == 3 and found["memory"] > 0
    preset_cost.main(["--sizes", "64", "--phases", "autoencoder", "--batch-size", "2", "--steps", "1"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("| 64 | autoencoder |")
