"""Which code is this? A version and a hash, so that a site can refuse to work with a server that runs other code.

Flower's bundle carries no Python of ours (each side runs what it installed), so its own hash says nothing about us.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import jointdiff
from jointdiff.errors import RefusedError

PACKAGES = ("client", "configs", "jointdiff", "server")
SUFFIXES = (".py", ".yaml")


def code_version() -> str:
    """Return the version of the installed JointDiff."""
    return jointdiff.__version__


@cache
def code_hash() -> str:
    """Return the SHA-256 (hex) over the .py and .yaml files of the installed packages; read once per process."""
    roots = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)  # finds a top-level package without importing it
        roots += [(package, Path(folder)) for folder in (spec.submodule_search_locations or ())] if spec else []
    return hash_files(
        (f"{package}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        for package, folder in roots
        for path in folder.rglob("*")
        if path.suffix in SUFFIXES and path.is_file()
    )


def hash_files(files: Iterable[tuple[str, bytes]]) -> str:
    r"""Return one SHA-256 (hex) over names and contents, whatever their order and their line ends.

    >>> hash_files([("a.py", b"x\r\n"), ("b.py", b"y")]) == hash_files([("b.py", b"y"), ("a.py", b"x\n")])
    True
    >>> hash_files([("a.py", b"xb"), ("b.py", b"")]) == hash_files([("a.py", b"x"), ("b.py", b"b")])
    False
    """
    total = hashlib.sha256()
    for name, content in sorted(files):
        digest = hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest()
        total.update(f"{name}\0{digest}\n".encode())
    return total.hexdigest()


def check_identity(version: str, code: str) -> None:
    """Refuse instructions that come from other code than is installed here.

    Args:
        version, code: `code_version()` and `code_hash()` of the sender.

    Raises:
        RefusedError: They differ from those of this process; names both and the remedy.
    """
    if (version, code) != (code_version(), code_hash()):
        raise RefusedError(
            f"The server runs JointDiff {version} (code {code[:12]}), this site runs {code_version()} "
            f"(code {code_hash()[:12]}). Weights and statistics of different code must not be mixed: install the "
            "same version on both sides and start the run again."
        )
