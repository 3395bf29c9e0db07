"""Run one command, and end it with everything it has started as soon as whoever asked for it is gone.

`python -m simulations.guard FOLDER COMMAND ...` watches its standard input; when that closes, by intent or because the
launcher was killed with -9, the whole tree ends and FOLDER, which held its temporary files, is removed. Flower's
simulation outlives its daemon, so nobody else would do it.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence

from jointdiff.processes import adopt_orphans, end_processes, end_with_parent

_LOOK_S = 0.2


def main(folder: str, command: Sequence[str]) -> int:
    """Run `command` until it ends, standard input closes, or SIGTERM comes.

    Args:
        folder: Removed at the end, with all that is in it.
        command: Program and arguments.

    Returns:
        The command's exit code, 0 where the guard ended it.
    """
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    adopt_orphans()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=end_with_parent)
    code = None
    while code is None and not asked:
        ready, _, _ = select.select([0], [], [], _LOOK_S)
        if ready and not os.read(0, 1024):
            break
        code = child.poll()
    end_processes(os.getpid())
    shutil.rmtree(folder, ignore_errors=True)
    return 0 if code is None else code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
