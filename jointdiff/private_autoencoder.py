"""One hospital's share of one round of `method: autoencoder` under differential privacy.

A record is one image, and its loss one number: the gradient of the whole of it is clipped once. The draws come from the
operating system, and nothing that is computed from the records leaves but the noised weights.
"""

from __future__ import annotations

from functools import partial

import torch

from jointdiff.augment import mirrored
from jointdiff.autoencoder import Autoencoder
from jointdiff.autoencoder_training import draw_eps, reconstruction_terms
from jointdiff.config import Config, TrainingConfig
from jointdiff.data.hospital import HospitalData
from jointdiff.device_memory import Halving, split
from jointdiff.model import to_network
from jointdiff.optimizer_state import load_moments
from jointdiff.privacy import PoissonBatches, PrivateSteps
from jointdiff.private_training import PrivacyPlan, Randomness, take_private_steps
from jointdiff.training import State


def train_private_autoencoder_round(
    model: Autoencoder,
    data: HospitalData,
    config: Config,
    plan: PrivacyPlan,
    *,
    round_number: int,
    device: torch.device,
    state: State | None,
    randomness: Randomness | None = None,
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Train in place for `plan.steps` steps; arguments and result as `train_private_round`."""
    training = config.training
    randomness = randomness or Randomness.from_system(device)
    images = torch.as_tensor(data.train.images, device=device)
    batches = PoissonBatches(len(images), plan.sample_rate, randomness.batches, patients=data.train.patients)
    model.train()
    learned = list(model.parameters())
    optimizer = torch.optim.AdamW(learned, lr=1.0, betas=(0.9, 0.99), weight_decay=training.weight_decay)
    load_moments(optimizer, state, learned)
    halving = Halving(device, f"physical-batch {training.physical_batch}")

    def add(steps: PrivateSteps, index: torch.Tensor) -> None:
        x = mirrored(to_network(images[index], device), randomness.views)
        eps = draw_eps(model, x, randomness.views)
        halving.run(partial(_add, steps, model, x, eps, training), undo=steps.forget)

    return take_private_steps(
        model, optimizer, batches, add, training, plan, round_number=round_number, noise=randomness.noise,
        device=device,
    )  # fmt: skip


def _add(
    steps: PrivateSteps, model: Autoencoder, x: torch.Tensor, eps: torch.Tensor, training: TrainingConfig, parts: int
) -> None:
    """Add the clipped gradients of some records, in so many passes; none has no record."""
    for at in split(len(x), min(parts, len(x))):
        steps.add(reconstruction_terms(model, x[at], training, eps[at])["loss"])
