import pytest
import torch

from jointdiff.diffusion import PREDICTIONS, add_noise, min_snr_weight, target, to_eps, to_x0
from jointdiff.schedule import SCHEDULES


@pytest.fixture(params=sorted(SCHEDULES))
def alpha_bar(request):
    return SCHEDULES[request.param](1000)


def test_schedules_fall_from_clean_to_noise(alpha_bar):
    assert alpha_bar.shape == (1000,)
    assert bool((alpha_bar.diff() < 0).all())
    assert alpha_bar[0] > 0.999
    assert 0 <= alpha_bar[-1] < 1e-4


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_prediction_gives_back_image_and_noise(alpha_bar, prediction):
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 6, 3, 8, 8, generator=g).unbind(0)
    t = torch.tensor([0, 10, 200, 500, 700, 900])
    x_t = add_noise(x0, eps, t, alpha_bar)
    perfect = target(x0, eps, t, alpha_bar, prediction=prediction)
    torch.testing.assert_close(to_x0(perfect, x_t, t, alpha_bar, prediction=prediction), x0, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(to_eps(x0, x_t, t, alpha_bar), eps, atol=2e-3, rtol=1e-3)


def test_noised_images_keep_unit_variance(alpha_bar):
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 64, 1, 32, 32, generator=g).unbind(0)
    x_t = add_noise(x0, eps, torch.full((64,), 400), alpha_bar)
    assert x_t.var().item() == pytest.approx(1.0, abs=0.02)


def test_min_snr_weights_measure_the_same_error_of_x0_for_both_predictions(alpha_bar):
    """snr-capped weight * |x0 error|^2 must not depend on what the network predicts (Hang et al. 2023)."""
    t = torch.tensor([50, 300, 600])
    a = alpha_bar[t]
    per_eps = min_snr_weight(t, alpha_bar, gamma=5.0, prediction="eps") * (a / (1 - a))
    per_v = min_snr_weight(t, alpha_bar, gamma=5.0, prediction="v") * (1 / (1 - a))
    torch.testing.assert_close(per_eps, per_v, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(per_eps, (a / (1 - a)).clamp(max=5.0), rtol=1e-3, atol=1e-6)
    assert min_snr_weight(t, alpha_bar, gamma=0, prediction="v").tolist() == [1, 1, 1]
