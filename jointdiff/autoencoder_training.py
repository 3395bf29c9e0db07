"""One hospital's share of one round of `method: autoencoder`: draw images, give them back, step.

All images count alike, with a label or without: no label is looked at. They are mirrored at random and nothing more,
since a view that was rotated or shifted is resampled, and the decoder would learn that blur.
"""

from __future__ import annotations

import time
from functools import lru_cache, partial

import torch

from jointdiff.augment import mirrored
from jointdiff.autoencoder import Autoencoder, autoencoder_loss, sampled
from jointdiff.config import Config, TrainingConfig
from jointdiff.data.hospital import HospitalData
from jointdiff.device_memory import Halving, split
from jointdiff.fidelity import FeatureNet
from jointdiff.model import to_network
from jointdiff.optimizer_state import load_moments, save_moments
from jointdiff.reproducibility import generator_for
from jointdiff.speed import autocast_for
from jointdiff.training import State, add_proximal_gradient, learning_rate_at

feature_net = lru_cache(maxsize=2)(FeatureNet)  # its filters are drawn once


def draw_eps(model: Autoencoder, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw the noise of the latents of images [N,C,H,W]: standard normal [N,4,h,w], on the generator's device."""
    return torch.randn((len(x), *model.config.latent_shape), generator=generator, device=x.device)


def reconstruction_terms(
    model: Autoencoder, x: torch.Tensor, training: TrainingConfig, eps: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the loss of each image and its parts, as `autoencoder_loss`: [N] each.

    Args:
        x: [N,C,H,W] in [-1,1].
        eps: From `draw_eps`.
    """
    mean, logvar = model.encode(x)
    return autoencoder_loss(
        x,
        model.decode(sampled(mean, logvar, eps)),
        mean,
        logvar,
        l1_weight=training.l1_weight,
        l2_weight=training.l2_weight,
        feature_weight=training.feature_weight,
        kl_weight=training.kl_weight,
        features=feature_net(model.config.channels).maps if training.feature_weight else None,
    )


def train_autoencoder_round(
    model: Autoencoder,
    data: HospitalData,
    config: Config,
    *,
    round_number: int,
    hospital_index: int,
    device: torch.device,
    state: State | None,
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Train in place for `local-steps` steps.

    Args:
        model: Holds the weights the server sent.
        data: The hospital's images; only those of training are looked at.
        round_number: 1-based.
        hospital_index: 0-based; with the seed and the round it fixes every draw.
        state: What this function returned in the round before (optimiser moments), or None.

    Returns:
        Means over the steps (loss, loss_l1, loss_l2, loss_feature, loss_kl, images_per_s), learning_rate of the last,
        batch_parts where the device's memory was too small for a whole batch, and the state for the next round.
    """
    run, training = config.run, config.training
    began = time.perf_counter()
    generator = generator_for(run.seed, hospital_index, round_number, "training", device)
    batches = generator_for(run.seed, hospital_index, round_number, "batches")
    images = torch.as_tensor(data.train.images, device=device)
    learned = list(model.parameters())
    optimizer = torch.optim.AdamW(learned, lr=1.0, betas=(0.9, 0.99), weight_decay=training.weight_decay, fused=True)
    load_moments(optimizer, state, learned)
    model.train()
    anchor = [p.detach().clone() for p in learned] if run.strategy == "fedprox" else []
    halving = Halving(device, f"batch-size {run.batch_size}")
    sums: dict[str, torch.Tensor] = {}
    precision = "off" if run.speed == "plain" else training.autocast
    rate = 0.0
    for step in range(run.local_steps):
        rate = learning_rate_at((round_number - 1) * run.local_steps + step, run.num_rounds * run.local_steps, training)
        for group in optimizer.param_groups:
            group["lr"] = rate
        index = torch.randint(len(images), (run.batch_size,), generator=batches).to(device)
        x = mirrored(to_network(images[index], device), generator).contiguous()
        eps = draw_eps(model, x, generator)
        optimizer.zero_grad(set_to_none=True)
        terms = halving.run(partial(_add_gradients, model, x, eps, training, precision), undo=optimizer.zero_grad)
        if anchor:
            add_proximal_gradient(learned, anchor, run.proximal_mu)
        if training.grad_clip:
            torch.nn.utils.clip_grad_norm_(learned, training.grad_clip)
        optimizer.step()
        for name, value in terms.items():
            sums[name] = sums.get(name, torch.zeros((), device=device)) + value
    metrics = {name: float(total) / run.local_steps for name, total in sums.items()}
    metrics["learning_rate"] = rate
    if halving.parts > 1:
        metrics["batch_parts"] = float(halving.parts)
    metrics["images_per_s"] = run.local_steps * run.batch_size / (time.perf_counter() - began)
    return metrics, save_moments(optimizer, learned)


def _add_gradients(
    model: Autoencoder, x: torch.Tensor, eps: torch.Tensor, training: TrainingConfig, precision: str, parts: int
) -> dict[str, torch.Tensor]:
    """Add the gradients of the batch's mean loss, in so many passes, and return the means of the terms.

    Args:
        x: [N,C,H,W] in [-1,1].
        eps: From `draw_eps`, for the whole batch: it is the same in however many parts.
        precision: As `autocast`.
    """
    means: dict[str, torch.Tensor] = {}
    for at in split(len(x), min(parts, len(x))):
        share = len(x[at]) / len(x)
        with autocast_for(x.device, precision):
            found = reconstruction_terms(model, x[at], training, eps[at])
            terms = {name: share * each.mean() for name, each in found.items()}
        terms["loss"].backward()
        for name, value in terms.items():
            means[name] = means.get(name, torch.zeros((), device=x.device)) + value.detach()
    return means
