from __future__ import annotations

import numpy as np
import pytest
import torch

from client import kept_features
from jointdiff import evaluation, identity, protocol
from jointdiff.config import Config
from jointdiff.head import num_self_training
from jointdiff.model import JointModel
from jointdiff.preparation import prepare
from jointdiff.protocol import RoundInstructions

CPU = torch.device("cpu")


@pytest.fixture
def config(tiny_run) -> Config:
    return prepare(tiny_run(method="two-stage"))[0]


@pytest.fixture
def model(config) -> JointModel:
    torch.manual_seed(0)
    return JointModel(config.model)


@pytest.fixture
def images(config) -> np.ndarray:
    size = config.model.image_size
    return np.random.default_rng(0).integers(0, 256, (9, size, size, 1), dtype=np.uint8)


@pytest.fixture
def features(config, tmp_path, monkeypatch):
    """Ask for features, and count the passes over the images that it takes."""
    passes = []

    def extracted(*args, **kwargs):
        passes.append(1)
        return evaluation.extract_features(*args, **kwargs)

    monkeypatch.setattr(kept_features, "extract_features", extracted)

    def ask(model, images, *, number=2, on_disk=True):
        instructions = RoundInstructions(
            kind=protocol.HEAD,
            run_name="tiny",
            hospital="hospital-1",
            hospital_index=0,
            round=number,
            config=config.to_dict(),
            site_folder=str(tmp_path),
            code_version=identity.code_version(),
            code_hash=identity.code_hash(),
        )
        found = kept_features.of(instructions, config, model, images, CPU, site_folder=tmp_path, on_disk=on_disk)
        return found, len(passes)

    return ask


def test_one_pass_serves_every_question_about_the_same_network(features, model, images):
    first, _ = features(model, images)
    with torch.no_grad():
        model.head.linear.weight.add_(1)  # the head that was solved in between
    again, passes = features(model, images)
    assert passes == 1 and torch.equal(first, again)
    assert torch.equal(first, evaluation.extract_features(model, images, device=CPU))


def test_another_network_other_images_and_a_damaged_file_take_another_pass(features, model, images, tmp_path):
    features(model, images)
    changed = images.copy()
    changed[3, 2, 1] ^= 1
    found, passes = features(model, changed)
    assert passes == 2 and torch.equal(found, evaluation.extract_features(model, changed, device=CPU))
    with torch.no_grad():
        next(model.unet.parameters()).add_(0.1)
    found, passes = features(model, changed)
    assert passes == 3 and torch.equal(found, evaluation.extract_features(model, changed, device=CPU))
    (kept,) = tmp_path.rglob("features/round-0002.safetensors")
    kept.write_bytes(kept.read_bytes()[:100])
    found, passes = features(model, changed)
    assert passes == 4 and torch.equal(found, evaluation.extract_features(model, changed, device=CPU))
    assert features(model, changed)[1] == 4


def test_nothing_is_written_where_the_site_keeps_no_latents(features, model, images, tmp_path):
    features(model, images)
    (kept,) = tmp_path.rglob("features/*.safetensors")
    assert kept.stat().st_mode & 0o077 == 0
    assert features(model, images, on_disk=False)[1] == 2 and not kept.exists()


def test_a_disk_that_takes_no_file_costs_a_pass_and_no_round(features, model, images, tmp_path, caplog):
    (tmp_path / "state" / "tiny").mkdir(parents=True)
    (tmp_path / "state" / "tiny" / "features").write_text("a file where the folder should be")
    found, _ = features(model, images)
    assert torch.equal(found, evaluation.extract_features(model, images, device=CPU))
    assert features(model, images)[1] == 2 and "not kept" in caplog.text


def test_nothing_is_kept_where_nobody_asks_twice(features, config, model, images, tmp_path):
    assert num_self_training(2, config) > 0 == num_self_training(0, config)
    assert features(model, images, number=0) == (None, 0) and not list((tmp_path / "state").rglob("*"))
