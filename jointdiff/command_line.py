"""How every command of ours ends: the true exit code, and one clear error in the last line."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable

from jointdiff.errors import JointDiffError

INTERRUPTED = 130  # 128 + SIGINT, as shells say
NOBODY_READS = 141  # 128 + SIGPIPE


def exit_code_of(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit code; our own errors and Ctrl-C become a line on standard error.

    Whoever reads the output may stop reading: that ends a command quietly.
    """
    try:
        return int(command() or 0)
    except JointDiffError as error:
        sys.stdout.flush()
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stdout.flush()
        sys.stderr.write("stopped by SIGINT.\n")
        return INTERRUPTED
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its end
        return NOBODY_READS


def _nobody_reads() -> bool:
    """Say whether standard output is a pipe whose reader has gone, as with `| head`."""
    look = select.poll()
    look.register(sys.stdout.fileno(), select.POLLOUT)
    return any(state & select.POLLERR for _, state in look.poll(0))
