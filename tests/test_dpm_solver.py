"""DPM-Solver++ against data whose denoiser and whose ODE are solved in closed form: x_0 ~ N(mean, spread^2)."""

import itertools

import pytest
import torch

from jointdiff.config import ModelConfig
from jointdiff.diffusion import to_eps, to_x0
from jointdiff.dpm_solver import half_log_snr, log_snr_timesteps, sample_dpm_solver
from jointdiff.model import JointModel
from jointdiff.sampling import denoiser, guide_input, sample_ddim, spaced_timesteps
from jointdiff.schedule import SCHEDULES, cosine_alpha_bar, linear_alpha_bar

MEAN, SPREAD = 0.3, 0.4


def best_denoiser(alpha_bar):
    def denoise(x, t):
        a = alpha_bar[t].view(-1, 1, 1, 1)
        return MEAN + a.sqrt() * SPREAD**2 / (a * SPREAD**2 + 1 - a) * (x - a.sqrt() * MEAN)

    return denoise


def exact(x, alpha_bar, start, end=0):
    """The flow keeps z = (x_t - sqrt(a) mean) / sqrt(a spread^2 + 1 - a); the denoiser ends it at timestep `end`."""
    a, b = alpha_bar[start], alpha_bar[end]
    z = (x - a.sqrt() * MEAN) / (a * SPREAD**2 + 1 - a).sqrt()
    there = b.sqrt() * MEAN + (b * SPREAD**2 + 1 - b).sqrt() * z
    return best_denoiser(alpha_bar)(there, torch.full((len(x),), end))


def noise(n=16, seed=0):
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def error(sampler, steps, alpha_bar):
    found = sampler(best_denoiser(alpha_bar), noise(), steps, alpha_bar)
    return float((found - exact(noise(), alpha_bar, steps[0], steps[-1])).abs().mean())


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_the_error_falls_with_the_square_of_the_number_of_steps_and_ddims_does_not(schedule):
    """On a schedule so fine that timesteps fall where they are wanted, down to where two of them are a step apart."""
    alpha_bar = SCHEDULES[schedule](20_000).double()
    lambdas = half_log_snr(alpha_bar)
    errors, ddim = {}, {}
    for n in (33, 65, 129):
        steps = [int((lambdas - wanted).abs().argmin()) for wanted in torch.linspace(-5, 3, n)]
        errors[n], ddim[n] = (error(sampler, steps, alpha_bar) for sampler in (sample_dpm_solver, sample_ddim))
    for few, many in ((33, 65), (65, 129)):
        assert 3.2 < errors[few] / errors[many] < 5, "second order: a quarter for twice the steps"
        assert 1.6 < ddim[few] / ddim[many] < 2.4, "DDIM is of first order"
    assert all(errors[n] < 0.1 * ddim[n] for n in errors), errors


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_on_the_schedules_that_we_train_with_it_is_closer_than_ddim(schedule):
    alpha_bar = SCHEDULES[schedule](1000).double()
    for num_steps in (8, 15, 20):
        steps = log_snr_timesteps(num_steps, alpha_bar)
        ddim = min(error(sample_ddim, walked, alpha_bar) for walked in (steps, spaced_timesteps(num_steps, steps[0])))
        assert error(sample_dpm_solver, steps, alpha_bar) < 0.3 * ddim, "at as many evaluations, however DDIM walks"


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_a_network_that_predicts_the_noise_and_one_that_predicts_v_give_the_same_images(schedule):
    alpha_bar = SCHEDULES[schedule](1000).double()
    best = best_denoiser(alpha_bar)

    def eps_net(x, t):
        return to_eps(best(x, t), x, t, alpha_bar)

    def v_net(x, t):
        a = alpha_bar[t].view(-1, 1, 1, 1)
        return a.sqrt() * eps_net(x, t) - (1 - a).sqrt() * best(x, t)

    steps = log_snr_timesteps(12, alpha_bar)
    from_eps, from_v = (
        sample_dpm_solver(
            lambda x, t, net=net, kind=kind: to_x0(net(x, t), x, t, alpha_bar, prediction=kind),
            noise(),
            steps,
            alpha_bar,
        )
        for net, kind in ((eps_net, "eps"), (v_net, "v"))
    )
    torch.testing.assert_close(from_eps, from_v, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(from_v, sample_dpm_solver(best, noise(), steps, alpha_bar), rtol=1e-6, atol=1e-6)


def test_without_its_memory_it_is_ddim():
    """Two timesteps leave no step with a history: the first order is DDIM's, in other symbols."""
    alpha_bar = cosine_alpha_bar(1000).double()
    for steps in ([700, 0], [990, 400], [300]):
        a, b = (s(best_denoiser(alpha_bar), noise(), steps, alpha_bar) for s in (sample_dpm_solver, sample_ddim))
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("num_steps", [1, 2, 5, 20, 50])
def test_timesteps_fall_evenly_in_the_log_snr(schedule, num_steps):
    alpha_bar = SCHEDULES[schedule](1000)
    steps = log_snr_timesteps(num_steps, alpha_bar)
    assert 1 <= len(steps) <= num_steps and all(a > b for a, b in itertools.pairwise(steps))
    if num_steps == 1:
        return
    assert steps[-1] == 0
    lambdas = half_log_snr(alpha_bar)
    assert lambdas[steps[0]] == pytest.approx(max(float(lambdas[-1]), -5.1), abs=0.1)
    gaps = lambdas[steps].diff()
    coarse = gaps[: len(gaps) // 2]  # near timestep 0 two neighbours are farther apart than a step
    torch.testing.assert_close(coarse, coarse.mean().expand_as(coarse), rtol=0.35, atol=0.02)


def test_the_same_noise_gives_the_same_image_and_guidance_moves_it():
    torch.manual_seed(0)
    model = JointModel(ModelConfig(width=8, multipliers=(1, 2), attention_levels=(), image_size=8))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.05)
    alpha_bar = linear_alpha_bar(1000)
    plain = denoiser(model.eval().requires_grad_(False), alpha_bar, prediction="v")
    guided = guide_input(plain, lambda x: x.sum(dim=(1, 2, 3)), alpha_bar, scale=0.02)
    x, steps = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)), log_snr_timesteps(6, alpha_bar)
    first, second = (sample_dpm_solver(plain, x, steps, alpha_bar) for _ in range(2))
    assert torch.equal(first, second) and first.dtype == torch.float32
    assert float((sample_dpm_solver(guided, x, steps, alpha_bar) - first).mean()) > 0.005
    assert torch.equal(
        sample_dpm_solver(guide_input(plain, lambda x: x.sum(), alpha_bar, scale=0.0), x, steps, alpha_bar), first
    )


def test_the_callback_sees_every_step():
    alpha_bar, seen = cosine_alpha_bar(1000).double(), []
    steps = spaced_timesteps(7, 999)
    sample_dpm_solver(best_denoiser(alpha_bar), noise(2), steps, alpha_bar, callback=lambda i, x: seen.append(i))
    assert seen == list(range(7))
