"""How a training step is computed: precision, memory layout, compiled or not (run-config key `speed`).

    auto      bf16 where the hardware computes it faster than fp32, channels last, and on a GPU torch.compile where a
              round is long enough to repay it
    plain     fp32, torch's own layout, nothing compiled: the yardstick that the others are held to
    compiled  as auto, and torch.compile wherever a compiler is found: on a CPU, and for short rounds

Results differ by rounding alone; tests/test_speed.py states by how much. On a GPU nothing of this has been run yet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch

from jointdiff.config import Config
from jointdiff.errors import ConfigError
from jointdiff.model import JointModel

_log = logging.getLogger(__name__)

# A deployed site starts a process for every round, and each compiles anew what torch's cache on disk does not hold.
# Reckoned, not measured: about a minute of compiling against tenths of a second saved per step at large sizes.
MIN_STEPS_TO_COMPILE = 300  # in a round


def _denoise(model: JointModel, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return model.denoise(x, t)


def _classify(model: JointModel, x: torch.Tensor) -> torch.Tensor:
    return model.classify(x)


@dataclass(frozen=True)
class Speed:
    """How the passes of a step are done."""

    precision: Callable[[], AbstractContextManager[None]]  # a new context of mixed precision
    memory_format: torch.memory_format
    denoise: Callable[[JointModel, torch.Tensor, torch.Tensor], torch.Tensor] = _denoise
    classify: Callable[[JointModel, torch.Tensor], torch.Tensor] = _classify

    @property
    def compiled(self) -> bool:
        """Whether the passes are compiled."""
        return self.denoise is not _denoise


def speed_for(model: JointModel, config: Config, device: torch.device, *, num_views: int) -> Speed:
    """Return how a round's steps are computed; a compiler that is missing or fails is said once, and done without.

    Args:
        model: On the device, without gradients. It is left as it was, but for its layout in memory.
        num_views: Images that a step classifies; 0 = none.

    Raises:
        ConfigError: The preset asks for bf16, and the device has none.
    """
    setting = config.run.speed
    plain = setting == "plain"
    precision = partial(autocast_for, device, "off" if plain else config.training.autocast)
    speed = Speed(precision, torch.contiguous_format if plain else torch.channels_last)
    with precision():
        pass  # what the device cannot do is said before the first step
    model.to(memory_format=speed.memory_format)
    if not _wants_compiler(config, device):
        return speed
    try:
        denoise, classify = _compiled()
        fast = Speed(precision, speed.memory_format, denoise, classify)
        _try_out(fast, model, config, device, num_views)
    except Exception as error:  # torch.compile calls compilers, drivers and the file system: each fails in its own way
        _say_once(f"torch.compile does not work here ({type(error).__name__}): the network runs as it is, more slowly.")
        return speed
    finally:
        model.zero_grad(set_to_none=True)
    return fast


def autocast_for(device: torch.device, setting: str) -> AbstractContextManager[None]:
    """Return the context of mixed precision: bf16 where the hardware computes it faster than fp32.

    Args:
        setting: auto | bf16 | off. A CPU or GPU without bf16 instructions emulates them, far slower than fp32: auto
            leaves it alone.

    Raises:
        ConfigError: bf16 is asked for, and the GPU cannot even emulate it.
    """
    if setting == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError(f"The preset asks for autocast: bf16, and {device} has no bf16. Take autocast: auto or off.")
    enabled = setting == "bf16" or (setting == "auto" and has_fast_bf16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the device has instructions for bf16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    can = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))


def _wants_compiler(config: Config, device: torch.device) -> bool:
    if config.model.dropout:  # compiled dropout draws other numbers
        return False
    long_enough = config.run.local_steps >= MIN_STEPS_TO_COMPILE
    return config.run.speed == "compiled" or (config.run.speed == "auto" and device.type == "cuda" and long_enough)


@lru_cache(maxsize=1)
def _compiled() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return both passes, compiled when they are first called: once in a process, for all models of one make."""
    return torch.compile(_denoise), torch.compile(_classify)


def _try_out(speed: Speed, model: JointModel, config: Config, device: torch.device, num_views: int) -> None:
    """Compile by doing each pass once, forward and backward, on blank images of the shapes that a step has."""
    size, channels = config.model.image_size, config.model.channels
    for count, once in ((config.run.batch_size, _denoise_once), (num_views, _classify_once)):
        if count:
            blank = torch.zeros(count, channels, size, size, device=device).contiguous(
                memory_format=speed.memory_format
            )
            with speed.precision():
                result = once(speed, model, blank)
            result.float().sum().backward()


def _denoise_once(speed: Speed, model: JointModel, x: torch.Tensor) -> torch.Tensor:
    return speed.denoise(model, x, torch.zeros(len(x), dtype=torch.int64, device=x.device))


def _classify_once(speed: Speed, model: JointModel, x: torch.Tensor) -> torch.Tensor:
    return speed.classify(model, x)


@lru_cache(maxsize=8)
def _say_once(text: str) -> None:
    _log.warning(text)
