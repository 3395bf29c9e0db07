"""Samplers against data whose best denoiser is known in closed form: x_0 ~ N(mean, spread^2)."""

import pytest
import torch

from jointdiff.config import ModelConfig
from jointdiff.model import JointModel, pool
from jointdiff.sampling import (
    denoiser,
    guide_input,
    guided_representations,
    invert_ddim,
    sample_ddim,
    sample_ddpm,
    spaced_timesteps,
)
from jointdiff.schedule import cosine_alpha_bar

MEAN, SPREAD = 0.3, 0.13
ALPHA_BAR = cosine_alpha_bar(1000)


def best_denoiser(x, t):
    a = ALPHA_BAR[t].view(-1, 1, 1, 1)
    gain = a.sqrt() * SPREAD**2 / (a * SPREAD**2 + 1 - a)
    return MEAN + gain * (x - a.sqrt() * MEAN)


def noise(n=64, seed=0):
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_have_the_mean_and_spread_of_the_data(eta):
    def sample(num_steps):
        g, steps = torch.Generator().manual_seed(1), spaced_timesteps(num_steps, 999)
        return sample_ddim(best_denoiser, noise(), steps, ALPHA_BAR, eta=eta, generator=g)

    x = sample(1000)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.005)
    assert x.std().item() == pytest.approx(SPREAD, rel=0.02)
    assert sample(20).std() < 0.9 * SPREAD, "few steps narrow the spread: the price of speed"


def test_ddim_is_deterministic_and_ddpm_is_not():
    steps = spaced_timesteps(10, 999)
    assert torch.equal(*(sample_ddim(best_denoiser, noise(), steps, ALPHA_BAR) for _ in range(2)))
    a, b = (
        sample_ddpm(best_denoiser, noise(), steps, ALPHA_BAR, generator=torch.Generator().manual_seed(s))
        for s in (0, 1)
    )
    assert not torch.equal(a, b)
    with pytest.raises(ValueError, match="generator"):
        sample_ddim(best_denoiser, noise(), steps, ALPHA_BAR, eta=1.0)


def test_inversion_and_sampling_lead_back_to_the_image():
    x0 = MEAN + SPREAD * noise(seed=3)
    steps = spaced_timesteps(100, 300)
    back = sample_ddim(best_denoiser, invert_ddim(best_denoiser, x0, steps, ALPHA_BAR), steps, ALPHA_BAR)
    assert (back - x0).abs().mean() < 0.02


def test_the_callback_sees_every_step():
    seen = []
    sample_ddim(best_denoiser, noise(2), spaced_timesteps(7, 999), ALPHA_BAR, callback=lambda i, x: seen.append(i))
    assert seen == list(range(7))


def test_input_guidance_shifts_the_samples_towards_what_is_wanted():
    steps = spaced_timesteps(50, 999)
    plain = sample_ddim(best_denoiser, noise(), steps, ALPHA_BAR)

    def shift(scale, sign=1):
        guided = guide_input(best_denoiser, lambda x: sign * x.sum(dim=(1, 2, 3)), ALPHA_BAR, scale=scale)
        return sample_ddim(guided, noise(), steps, ALPHA_BAR) - plain

    # Data, denoiser and objective are linear, so every pixel moves by the same, in proportion to the scale.
    assert shift(0.04).min() > 0.01
    torch.testing.assert_close(shift(0.04), 2 * shift(0.02), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(shift(0.04, sign=-1), -shift(0.04), rtol=1e-3, atol=1e-5)
    assert not shift(0.0).any()


def small_model():
    torch.manual_seed(0)
    model = JointModel(ModelConfig(width=8, multipliers=(1, 2), attention_levels=(), image_size=8))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return model.eval()


@pytest.mark.parametrize("wanted", [0, 1])
def test_a_step_on_the_representations_raises_the_targets_probability(wanted):
    """The sign: the maps that are decoded must be more of the wanted class than those that were encoded."""
    model, x, t = small_model(), noise(16), torch.full((16,), 400)
    moved = []
    decode = model.unet.decode
    model.unet.decode = lambda maps, emb: moved.append(maps) or decode(maps, emb)

    def log_prob(logits):
        return logits.log_softmax(dim=1)[:, wanted]

    guided_representations(model, ALPHA_BAR, log_prob, scale=0.02, prediction="v")(x, t)
    before = log_prob(model.head(pool(model.maps(x, t))))
    after = log_prob(model.head(pool(moved[0])))
    assert bool((after > before).all())


def test_no_guidance_on_the_representations_is_plain_denoising():
    model, x, t = small_model(), noise(4), torch.full((4,), 400)
    guided = guided_representations(model, ALPHA_BAR, lambda z: z[:, 0], scale=0.0, prediction="v")
    torch.testing.assert_close(guided(x, t), denoiser(model, ALPHA_BAR, prediction="v")(x, t))
