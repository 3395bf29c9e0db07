"""Which software this site runs, for comparing with the coordinator's."""

from __future__ import annotations

import importlib.metadata
import platform
import re

from jointdiff import identity

FLOWER_FROM, FLOWER_BELOW = (1, 41), (1, 43)  # as pyproject.toml says; a test holds the two together


def versions() -> dict[str, str]:
    """Return the versions of Python, torch, Flower and JointDiff, and the hash of JointDiff's code.

    Raises:
        importlib.metadata.PackageNotFoundError: One of them is not installed.
    """
    return {
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "flwr": importlib.metadata.version("flwr"),
        "jointdiff": identity.code_version(),
        "code_hash": identity.code_hash(),
    }


def flower_fits(version: str) -> bool:
    """Tell whether JointDiff works with this version of Flower.

    >>> flower_fits("1.41.0"), flower_fits("1.43.0"), flower_fits("2.0")
    (True, False, False)
    """
    match = re.match(r"(\d+)\.(\d+)", version)
    return bool(match) and FLOWER_FROM <= (int(match[1]), int(match[2])) < FLOWER_BELOW  # type: ignore[index]
