"""Flower's `flwr-clientapp` with a look at the run's bundle first (bundle.py); the SuperNode starts one per message.

`install` writes a command of that name into a folder that comes first on the SuperNode's PATH: Flower starts the
command by its name, and has no option for another.
"""

from __future__ import annotations

import importlib
import shlex
import sys
from pathlib import Path
from typing import Any

from client.bundle import check_bundle
from jointdiff import storage

COMMAND = "flwr-clientapp"


def install(folder: Path) -> Path:
    """Write the command into a folder, and return that folder.

    Args:
        folder: Of the site; made where it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / COMMAND
    code = "from client.clientapp_process import main; main()"
    # A shebang could not name a Python whose path holds spaces; -P: nothing is imported from the folder it runs in.
    storage.write_atomic(path, f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -c {shlex.quote(code)} "$@"\n')
    path.chmod(0o700)
    return folder


def main() -> None:
    """Become Flower's ClientApp process."""
    sys.argv[0] = COMMAND
    names = vars(importlib.import_module("flwr.supernode.runtime.run_clientapp"))
    install_from_fab = names["install_from_fab"]

    def checked(content: bytes, *args: Any, **settings: Any) -> Path:
        check_bundle(content)
        found: Path = install_from_fab(content, *args, **settings)
        return found

    names["install_from_fab"] = checked
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp

    flwr_clientapp()
