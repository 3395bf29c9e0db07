"""Who may import whom: import-linter's contracts, and the finer rules that it cannot say."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PURE = (
    "schedule",
    "diffusion",
    "losses",
    "pseudo_labels",
    "pseudo_labels.agreement",
    "pseudo_labels.alignment",
    "pseudo_labels.fixed",
    "pseudo_labels.flexmatch",
    "pseudo_labels.freematch",
    "pseudo_labels.judgement",
    "pseudo_labels.mixture",
    "pseudo_labels.softmatch",
    "ema",
    "augment",
    "unet",
    "statistics",
    "fixed_point",
    "quorum",
    "regions",
    "paired",
    "autoencoder_config",
    "autoencoder",
    "latent_scale",
    "reconstruction",
)
# As pure, but they are handed the network and may name its type.
ON_A_MODEL = ("sampling", "edit_task", "single_pass", "region_search", "counterfactual")
PURE_LIBRARIES = {"torch", "numpy", "math", "__future__", "collections", "dataclasses", "functools", "itertools"}
PURE_LIBRARIES |= {"time", "typing"}
# Libraries that belong to one adapter, or to one door of the house.
ONLY_IN = {
    "medmnist": ("jointdiff/data/medmnist.py",),
    "pydicom": ("jointdiff/data/dicom.py", "client/secondary_capture.py"),  # one reads, one writes
    "opacus": ("jointdiff/privacy.py", "jointdiff/accounting.py"),
    "Crypto": ("jointdiff/secure_sum.py",),
    "rich": ("jointdiff/views/terminal.py",),
    "flwr": ("client/", "server/", "simulations/"),
    "ray": (),
    "fastapi": ("client/dashboard.py", "server/dashboard.py"),
    "uvicorn": ("client/dashboard.py", "server/dashboard.py"),
    "sklearn": ("simulations/pixels.py",),  # a development tool: the baseline on pixels
}


def test_import_linter_contracts_hold() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_forbidden_import_breaks_a_contract(tmp_path: Path) -> None:
    for package in ("jointdiff", "client", "server", "simulations", "configs"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (tmp_path / "client" / "__init__.py").write_text("import server\n")
    tool = Path(sys.executable).with_name("lint-imports")
    run_here = f"import runpy, sys; sys.path.insert(0, '.'); sys.argv = ['lint-imports', '--no-cache']; runpy.run_path({str(tool)!r}, run_name='__main__')"  # noqa: E501
    command = [sys.executable, "-c", run_here]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "A hospital never imports the server BROKEN" in done.stdout


@pytest.mark.parametrize("name", ["errors", "protocol"])
def test_the_ground_floor_imports_nothing_but_the_standard_library(name: str) -> None:
    assert {root for root, _ in _imports(ROOT / "jointdiff" / f"{name}.py")} <= sys.stdlib_module_names


@pytest.mark.parametrize("name", PURE + ON_A_MODEL)
def test_pure_mathematics_knows_torch_and_mathematics_only(name: str) -> None:
    rooms = (*PURE, *ON_A_MODEL, "model") if name in ON_A_MODEL else (*PURE, "metrics", "score_histogram")
    allowed = {f"jointdiff.{room}" for room in rooms}
    path = ROOT / "jointdiff" / name.replace(".", "/")
    for root, module in _imports(path / "__init__.py" if path.is_dir() else path.with_suffix(".py")):
        assert root in PURE_LIBRARIES or module in allowed, f"{name} imports {module}"


def test_libraries_stay_in_their_rooms() -> None:
    strays = []
    for path in _sources():
        place = path.relative_to(ROOT).as_posix()
        for root, module in _imports(path):
            if root in ONLY_IN and not place.startswith(tuple(ONLY_IN[root]) or ("-",)):
                strays.append(f"{place} imports {module}")
    assert not strays


def _sources() -> list[Path]:
    found = [path for name in ("jointdiff", "client", "server", "simulations") for path in (ROOT / name).rglob("*.py")]
    assert len(found) > 20  # a wrong ROOT must not make the rule empty
    return found


def _imports(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (top-level package, whole module) of every import, wherever it stands in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import; write the whole name"
            assert node.module is not None
            if node.module == "jointdiff":
                for alias in node.names:
                    yield "jointdiff", f"jointdiff.{alias.name}"
            else:
                yield node.module.split(".")[0], node.module
