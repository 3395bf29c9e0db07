"""What a model says about images: features and probabilities, in batches, without gradients."""

from __future__ import annotations

import numpy as np
import torch

from jointdiff.model import JointModel, to_network
from jointdiff.spaces import PIXELS, Space


@torch.no_grad()
def extract_features(
    model: JointModel, images: np.ndarray, *, device: torch.device, batch_size: int = 256
) -> torch.Tensor:
    """Return the pooled shared representations of a network's inputs, uint8 [N,H,W,C]: [N,D] float32 on the device."""
    model.eval()
    parts = [model.features(to_network(images[i : i + batch_size], device)) for i in range(0, len(images), batch_size)]
    return torch.cat(parts) if parts else torch.zeros(0, len(model.head.mean), device=device)


@torch.no_grad()
def predict(
    model: JointModel, images: np.ndarray, *, device: torch.device, batch_size: int = 256, space: Space = PIXELS
) -> np.ndarray:
    """Return the probabilities of uint8 images [N,H,W,C]: float32 [N,K], softmax or sigmoid by the model's task.

    Args:
        space: Where the network works; PIXELS also for what is its input already.
    """
    features = extract_features(model, space.inputs(images), device=device, batch_size=batch_size)
    return model.probabilities(model.head(features)).float().cpu().numpy()
