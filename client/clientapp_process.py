"""Flower's `flwr-clientapp` with a look at the run's bundle first (bundle.py); the SuperNode starts one per message.

`install` writes a command of that name into a folder that comes first on the SuperNode's PATH: Flower starts the
command by its name, and has no option for another. The first such process stays and forks for the later ones
(warm_process.py).
"""

from __future__ import annotations

import importlib
import shlex
import sys
from pathlib import Path
from typing import Any

from client import warm_process

COMMAND = "flwr-clientapp"


def install(folder: Path) -> Path:
    """Write the command into a folder, and return that folder.

    Args:
        folder: Of the site; made where it is not there. Nobody else may enter it: who can may start work here.
    """
    from jointdiff import storage

    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    path = folder / COMMAND
    code = f"from client.clientapp_process import main; main({str(folder.resolve())!r})"
    # A shebang could not name a Python whose path holds spaces; -P: nothing is imported from the folder it runs in.
    storage.write_atomic(path, f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -c {shlex.quote(code)} "$@"\n')
    path.chmod(0o700)
    return folder


def main(folder: str) -> None:
    """Have one message worked on: by a fork of the process that waits, or of this one, which waits from then on.

    Args:
        folder: Where `install` wrote the command.
    """
    words = sys.argv[1:]
    is_message = any(word.startswith("--token") for word in words)
    if is_message and warm_process.hand_over(Path(folder), words):
        return
    flwr_clientapp = _checking_flower()
    if is_message:
        words = warm_process.stay(Path(folder), words, same_code=_same_code())
    sys.argv = [COMMAND, *words]
    flwr_clientapp()


def _checking_flower() -> Any:
    """Import what a message needs, torch included, and return Flower's command, which looks at bundles from now on."""
    importlib.import_module("client.app")
    from client.bundle import check_bundle

    names = vars(importlib.import_module("flwr.supernode.runtime.run_clientapp"))
    install_from_fab = names["install_from_fab"]

    def checked(content: bytes, *args: Any, **settings: Any) -> Path:
        check_bundle(content)
        found: Path = install_from_fab(content, *args, **settings)
        return found

    names["install_from_fab"] = checked
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp

    return flwr_clientapp


def _same_code() -> Any:
    """Return a function that says whether the code on disk is still that of this process."""
    from jointdiff.identity import code_hash

    imported = code_hash()  # kept for the forks: a site must name the code that it runs
    return lambda: code_hash.__wrapped__() == imported
