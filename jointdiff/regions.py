"""Regions of an image: where an edit is strongest, as soft masks.

Shapes: maps and masks [N,1,H,W]; masks lie in [0,1].
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def smooth(maps: torch.Tensor, size: int) -> torch.Tensor:
    """Return the mean over a square of `size` pixels (odd) around each pixel; the border is mirrored."""
    if size == 1:
        return maps
    return F.avg_pool2d(F.pad(maps, (size // 2,) * 4, mode="reflect"), size, stride=1)


def change_map(images: torch.Tensor, edited: torch.Tensor, *, around: int = 3) -> torch.Tensor:
    """Return how strongly images [N,C,H,W] were changed in a square of `around` pixels (odd) around each: [N,1,H,W]."""
    return smooth((edited - images).abs().mean(dim=1, keepdim=True), around)


def strongest(change: torch.Tensor, shares: torch.Tensor, *, edge: int = 5) -> torch.Tensor:
    """Return the region that holds the given share of the pixels, those with the strongest change.

    Args:
        change: [N,1,H,W].
        shares: Of each image, in (0,1]: [N].
        edge: Width of the square over which the border of the region is softened, in pixels.
    """
    flat = change.flatten(1)
    count = (shares * flat.shape[1]).long().clamp(min=1)
    level = flat.sort(dim=1, descending=True).values.gather(1, count[:, None] - 1)
    return smooth((change >= level.view(-1, 1, 1, 1)).to(change.dtype), edge)
