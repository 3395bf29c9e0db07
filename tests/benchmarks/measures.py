"""What the benchmarks share: the machine in one line, medians with their spread, memory (Linux)."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch


def machine() -> str:
    """Say what was measured on: processor, cores and their load, memory, GPU, versions."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    cpu = next((line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")), "CPU")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    capable = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    bf16 = "bf16" if capable.get("avx512_bf16") or capable.get("amx_bf16") else "no bf16 instructions"
    return (
        f"{cpu} ({bf16}), {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {memory:.0f} GB, {gpu}; "
        f"Python {platform.python_version()}, torch {torch.__version__} ({torch.get_num_threads()} threads), "
        f"flwr {importlib.metadata.version('flwr')}"
    )


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return the median with the range.

    >>> spread([1.0, 3.0, 2.0], 1)
    '2.0 (1.0 to 3.0)'
    """
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def forget_peak() -> int:
    """Forget this process's peak of resident memory, and return the bytes in memory now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return memory("VmRSS")


def memory(name: str = "VmHWM") -> int:
    """Return a size of this process in bytes: VmHWM (the peak) or VmRSS (now)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Clock:
    """Seconds, by the wall or of this process: where others use the machine too, take the latter with one thread."""

    def __init__(self, kind: str, device: torch.device) -> None:
        self._read = CLOCKS[kind]
        self._device = device

    def now(self) -> float:
        """Return the seconds so far; a GPU is waited for."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._read()
