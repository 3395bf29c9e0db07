"""How many hospitals train at once, and what of the machine each of them gets."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

SITE_BYTES = 1.5e9  # of memory for a hospital's process: torch, a model, a data set
SITES_PER_GPU = 4  # hospitals that share one GPU at a time


@dataclass(frozen=True)
class Resources:
    """What Flower is asked for."""

    federation: dict[str, float]  # keys of Flower's --federation-config
    environment: dict[str, str] = field(default_factory=dict)  # for the daemon


def choose(
    device: str, num_hospitals: int, *, num_cpus: int, num_gpus: int, free_bytes: float, asked_threads: int = 0
) -> Resources:
    """Share the machine among the hospitals.

    Args:
        device: The run-config key: auto | cpu | cuda | cuda:N.
        num_hospitals: How many there are; each gets a SuperNode of its own.
        num_cpus: Cores that this process may use, at least 1.
        num_gpus: GPUs that torch can use.
        free_bytes: Memory that is free.
        asked_threads: What OMP_NUM_THREADS says of every process; 0 = nothing. More than a hospital's share of the
            cores is cut to it; without a word Ray gives each process its share.

    >>> choose("auto", 3, num_cpus=2, num_gpus=0, free_bytes=8e9).federation
    {'num-supernodes': 3, 'init-args-num-cpus': 3, 'client-resources-num-cpus': 1, 'client-resources-num-gpus': 0.0}
    >>> choose("auto", 3, num_cpus=16, num_gpus=1, free_bytes=1e11).federation["client-resources-num-gpus"]
    0.33
    """
    # Three hospitals on two cores: side by side no core should idle, as it does with two first and then one.
    # Reckoned, not measured.
    workers = num_hospitals if num_cpus < num_hospitals <= 1.5 * num_cpus else num_cpus
    at_once = max(1, min(num_hospitals, workers, int(free_bytes // SITE_BYTES)))
    share = 0.0
    environment = {}
    if num_gpus and device in ("auto", "cuda"):
        at_once = min(at_once, num_gpus * SITES_PER_GPU)
        # Ray hides every GPU from a process that has asked for none. Rounded down: thirds must fit three times.
        share = min(1.0, int(100 * num_gpus / at_once) / 100)
    elif num_gpus and device.startswith("cuda:"):
        # Ray would renumber the GPUs; whoever names one means the machine's own number.
        environment["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"] = "1"
    threads = max(1, num_cpus // at_once)
    if asked_threads > threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    federation = {
        "num-supernodes": num_hospitals,
        "init-args-num-cpus": max(num_cpus, at_once),
        "client-resources-num-cpus": threads,
        "client-resources-num-gpus": share,
    }
    return Resources(federation=federation, environment=environment)


def of_this_machine(device: str, num_hospitals: int) -> Resources:
    """Share this machine; a GPU counts where torch can use it."""
    import torch

    num_gpus = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else 0
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return choose(
        device, num_hospitals, num_cpus=num_cpus(), num_gpus=num_gpus, free_bytes=_free_bytes(),
        asked_threads=int(asked) if asked.isdecimal() else 0,
    )  # fmt: skip


def num_cpus() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _free_bytes() -> float:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return 1024.0 * int(line.split()[1])
    except OSError:
        pass
    return float("inf")
