"""What every test gets: a home of its own, no telemetry, one thread, and skips where a tool is missing."""

from __future__ import annotations

import os
import shutil

import pytest

os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", RAY_USAGE_STATS_ENABLED="0")


@pytest.fixture(autouse=True, scope="session")
def _own_home(tmp_path_factory: pytest.TempPathFactory):
    """No test reads or writes the homes of the person who runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOINTDIFF_HOME", str(tmp_path_factory.mktemp("jointdiff-home")))
        patch.setenv("FLWR_HOME", str(tmp_path_factory.mktemp("flower-home")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny tensors are slower on many threads, and sums are the same everywhere on one."""
    import torch

    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot do; `-m` chooses before that."""
    for item in items:
        if "gpu" in item.keywords and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="no CUDA here"))
        if "browser" in item.keywords and not (shutil.which("chromium") or shutil.which("chromium-browser")):
            item.add_marker(pytest.mark.skip(reason="no chromium here: make setup-system"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
