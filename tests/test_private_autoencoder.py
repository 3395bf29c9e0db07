"""Private steps on the autoencoder: its per-record gradients are those of one record at a time, clipped and summed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jointdiff.autoencoder import Autoencoder
from jointdiff.autoencoder_config import AutoencoderConfig
from jointdiff.autoencoder_training import draw_eps, reconstruction_terms
from jointdiff.config import TrainingConfig
from jointdiff.data.phantom import draw_scans, phantom_info
from jointdiff.model import to_network
from jointdiff.privacy import PrivateSteps

TINY = AutoencoderConfig(name="tiny", image_size=16, widths=(8, 16))


def network() -> Autoencoder:
    torch.manual_seed(0)
    model = Autoencoder(TINY)
    for parameter in model.parameters():  # second convolutions start at zero: nothing would reach the first ones
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def losses(model: Autoencoder, x: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    training = TrainingConfig(feature_weight=0.1, kl_weight=0.1)
    return reconstruction_terms(model, x, training, draw_eps(model, x, generator))["loss"]


@pytest.mark.parametrize("clip", [1e9, 0.05])
def test_a_step_without_noise_is_that_of_one_record_at_a_time(clip: float) -> None:
    x = to_network(draw_scans(phantom_info(image_size=16), 3, np.random.default_rng(0)).images)
    slow, wanted = network(), []
    every = losses(slow, x)
    for loss in every:  # the noise of the latents is drawn once for all: the records stay those of the fast path
        grads = torch.autograd.grad(loss, list(slow.parameters()), retain_graph=True)
        norm = torch.sqrt(sum(g.square().sum() for g in grads))
        wanted.append([g * min(1.0, clip / float(norm)) for g in grads])
    totals = [sum(each) / 3 for each in zip(*wanted, strict=True)]

    fast = network().train()
    before = [p.detach().clone() for p in fast.parameters()]
    optimizer = torch.optim.SGD(fast.parameters(), lr=1.0)
    with PrivateSteps(
        fast, optimizer, noise_multiplier=0.0, max_grad_norm=clip, expected_batch=3.0, generator=torch.Generator()
    ) as steps:
        steps.add(losses(fast, x))
        steps.finish()
    for (name, after), start, grad in zip(fast.named_parameters(), before, totals, strict=True):
        assert torch.allclose(start - after, grad, rtol=1e-3, atol=1e-4 * float(grad.abs().max()) + 1e-7), name
