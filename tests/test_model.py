import pytest
import torch
from torch import nn

from jointdiff.config import ModelConfig, from_mapping
from jointdiff.errors import ConfigError
from jointdiff.model import JointModel, pool, to_network, to_uint8
from jointdiff.presets import preset_names, read_preset

TINY = ModelConfig(width=8, multipliers=(1, 2), attention_levels=(1,), image_size=28)


def tiny(**changes):
    torch.manual_seed(0)
    return JointModel(ModelConfig(**{**TINY.__dict__, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"channels": 3, "num_outputs": 4},
        {"patch_size": 2},
        {"multipliers": (1, 2, 2), "num_blocks": 2, "image_size": 20},
    ],
)
def test_both_tasks_have_the_right_shapes(changes):
    model = tiny(**changes)
    c = model.config
    x = torch.randn(3, c.channels, c.image_size, c.image_size)
    assert model.denoise(x, torch.tensor([0, 5, 999])).shape == x.shape
    features = model.features(x)
    assert features.shape == (3, len(model.head.mean))
    assert features.shape[1] == 2 * sum(m.shape[1] for m in model.maps(x))
    assert model.classify(x).shape == (3, c.num_outputs)


@pytest.mark.parametrize("name", preset_names("model"))
def test_every_preset_builds_and_runs_at_its_size(name):
    size = int(name.split("-")[-1])
    config = from_mapping(ModelConfig, {**read_preset("model", name), "image-size": size}, name)
    model = JointModel(config).eval()
    with torch.inference_mode():
        x = torch.randn(1, 1, size, size)
        assert model.denoise(x, torch.tensor([3])).shape == x.shape


def test_no_layer_keeps_batch_statistics():
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in tiny().modules())


def test_decoding_leaves_the_encoder_maps_as_they_are():
    model = tiny()
    x, emb = torch.randn(2, 1, 28, 28), model.unet.embed(torch.tensor([1, 2]))
    maps = model.unet.encode(x, emb)
    before = [m.clone() for m in maps]
    first = model.unet.decode(maps, emb)
    assert len(maps) == len(before)
    assert all(torch.equal(a, b) for a, b in zip(maps, before, strict=True))
    assert torch.equal(first, model.unet.decode(maps, emb))


def test_classification_trains_encoder_and_middle_but_never_the_decoder():
    model = tiny()
    nn.init.normal_(model.head.linear.weight)
    model.classify(torch.randn(2, 1, 28, 28)).sum().backward()
    with_gradient = {name.split(".")[1] for name, p in model.unet.named_parameters(prefix="unet") if p.grad is not None}
    assert {"conv_in", "down", "middle1"} <= with_gradient
    assert not {"up", "conv_out"} & with_gradient


def test_pooling_is_mean_and_standard_deviation_per_map():
    m = torch.randn(2, 3, 5, 5)
    pooled = pool([m])
    torch.testing.assert_close(pooled[:, :3], m.mean(dim=(2, 3)))
    torch.testing.assert_close(pooled[:, 3:], m.std(dim=(2, 3), unbiased=False), atol=1e-5, rtol=1e-4)


def test_pixels_survive_the_way_to_the_network_and_back():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).numpy()
    x = to_network(pixels)
    assert x.min() == -1 and x.max() == 1
    assert (to_uint8(x) == pixels).all()


def test_an_image_size_that_does_not_fit_is_named():
    with pytest.raises(ConfigError, match="image-size 27 is no multiple of the model's patch-size 2"):
        tiny(image_size=27, patch_size=2)
