"""The moments of Adam as plain tensors, so that a site keeps them from round to round beside its other state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

_MOMENTS = ("exp_avg", "exp_avg_sq")


def load_moments(
    optimizer: torch.optim.Optimizer, state: Mapping[str, torch.Tensor] | None, parameters: Sequence[torch.Tensor]
) -> None:
    """Give the optimizer the moments that `save_moments` returned; parameters without any start afresh.

    Args:
        parameters: All of the model's, in its order; the optimizer may hold fewer.
    """
    if state is None or "optimizer.step" not in state:
        return
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for i, parameter in enumerate(parameters):
        if id(parameter) not in held or f"optimizer.{i}.exp_avg" not in state:  # never had a gradient
            continue
        moments = {name: state[f"optimizer.{i}.{name}"] for name in _MOMENTS}
        optimizer.state[parameter] = {name: torch.empty_like(parameter).copy_(m) for name, m in moments.items()}
        optimizer.state[parameter]["step"] = state["optimizer.step"].to(parameter.device).clone()


def save_moments(optimizer: torch.optim.Optimizer, parameters: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the moments by name: optimizer.step [], and optimizer.<i>.exp_avg and .exp_avg_sq like parameter i."""
    state = {}
    for i, parameter in enumerate(parameters):
        moments = optimizer.state.get(parameter)
        if moments:
            state["optimizer.step"] = moments["step"].detach().cpu().clone()
            for name in _MOMENTS:
                state[f"optimizer.{i}.{name}"] = moments[name].detach().cpu().contiguous()
    return state
