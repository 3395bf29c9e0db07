"""Who trains in a round: all hospitals, or a share of them that is drawn anew for each round.

The draw comes from the run's seed and the round alone, so a round that is repeated, or taken up after a crash, asks the
same hospitals.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from jointdiff.config import RunConfig
from jointdiff.reproducibility import SERVER, generator_for


def asked_to_train(names: Sequence[str], run: RunConfig, round_number: int) -> tuple[str, ...]:
    """Return the hospitals that train in a round (1-based), in their order: `participation` of `names`, at least one.

    Every set of that size is as likely as any other (McMahan et al. 2017, arXiv 1602.05629).
    """
    if run.num_asked == len(names):
        return tuple(names)
    generator = generator_for(run.seed, SERVER, round_number, "participation")
    drawn = torch.randperm(len(names), generator=generator)[: run.num_asked]
    return tuple(names[index] for index in sorted(drawn.tolist()))
