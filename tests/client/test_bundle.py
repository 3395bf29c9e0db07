"""What a site lets in as a run's bundle: settings, no code. Bundles are built by Flower itself."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from client.bundle import check_bundle
from client.clientapp_process import COMMAND, install
from jointdiff.errors import RefusedError

SIMULATION = Path(__file__).parents[2] / "simulations" / "3_hospitals"


def app(folder: Path, **files: str) -> Path:
    folder.mkdir()
    (folder / "pyproject.toml").write_bytes((SIMULATION / "pyproject.toml").read_bytes())
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_py", ".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def bundle(folder: Path) -> bytes:
    return build_fab_from_disk(folder)


def test_our_own_apps_pass():
    for folder in SIMULATION.parent.glob("*/pyproject.toml"):
        check_bundle(bundle(folder.parent))


def test_code_in_the_bundle_is_refused(tmp_path):
    with pytest.raises(RefusedError, match="holds 1 file") as caught:
        check_bundle(bundle(app(tmp_path / "app", client__app_py="import os")))
    assert "app.py" not in str(caught.value) and "/" not in str(caught.value)


def test_another_client_app_is_refused(tmp_path):
    folder = app(tmp_path / "app")
    path = folder / "pyproject.toml"
    path.write_text(path.read_text().replace("client.app:app", "client.gate:app"), encoding="utf-8")
    with pytest.raises(RefusedError, match="another ClientApp"):
        check_bundle(bundle(folder))


def test_what_is_no_bundle_is_refused(tmp_path):
    empty = tmp_path / "empty.zip"
    zipfile.ZipFile(empty, "w").close()
    for content in (b"", b"PK broken", bundle(SIMULATION)[:-40], empty.read_bytes()):
        with pytest.raises(RefusedError, match="cannot be read"):
            check_bundle(content)


def test_the_command_runs_from_a_folder_with_spaces_and_umlauts(tmp_path):
    folder = install(tmp_path / "St. J\u00fcrgen flower")
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    shadow = tmp_path / "client"  # where the process runs, something of our name lies
    shadow.mkdir()
    (shadow / "__init__.py").write_text("raise SystemExit('shadowed')")
    done = subprocess.run(
        [COMMAND, "--help"], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "--token" in done.stdout, done.stderr


def test_it_looks_before_flower_unpacks(tmp_path):
    """In a process of its own, as the command does: Flower's function is replaced there."""
    bad, home = tmp_path / "bad.fab", tmp_path / "flower"
    bad.write_bytes(bundle(app(tmp_path / "app", client__app_py="")))
    code = (
        "import importlib, pathlib;"
        "command = importlib.import_module('flwr.supernode.cli.flwr_clientapp');"
        "from client.clientapp_process import main;"
        "runtime = importlib.import_module('flwr.supernode.runtime.run_clientapp');"
        f"content = pathlib.Path({str(bad)!r}).read_bytes();"
        "command.flwr_clientapp = lambda: runtime.install_from_fab(content, skip_prompt=True);"
        f"main({str(tmp_path)!r})"
    )
    environment = {**os.environ, "FLWR_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode and "no settings, such as Python code" in done.stderr
    assert not (home / "apps").exists()
