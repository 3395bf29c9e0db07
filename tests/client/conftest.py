"""The fake runs of the views' tests: their sites' folders are what a site's dashboard shows."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("_fake_runs", Path(__file__).parents[1] / "views" / "conftest.py")
assert _spec is not None and _spec.loader is not None
_fake_runs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fake_runs)
fake_run = _fake_runs.fake_run
