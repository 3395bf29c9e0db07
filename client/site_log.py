"""site.log, and the wall that sends everything printed or logged inside a site's work into it.

In a simulation Ray forwards what a worker prints to the server's log; in a deployment a SuperNode's log may be shipped
to somebody. So while the site works, its log lines, prints, warnings and tracebacks go to site.log, and nowhere else:
Python's streams and logging handlers, and the process's file descriptors 1 and 2 with what C code writes to them.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

LOG_FILE = "site.log"
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_one_at_a_time = threading.Lock()  # the process has one standard output: two sites' work must not take turns in it


def write_line(folder: Path, text: str) -> None:
    """Append one line with the time to site.log, flushed to the disk.

    Raises:
        OSError: It cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOG_FILE, "a", encoding="utf-8") as file:
        file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {one_line(text)}\n")
        file.flush()
        os.fsync(file.fileno())


def one_line(text: str) -> str:
    r"""Return a text on one line: what others chose must not be able to write lines of its own into the log.

    >>> one_line("a\nb\x1b[2J")
    'a\\nb\\x1b[2J'
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


@contextlib.contextmanager
def captured(folder: Path) -> Iterator[None]:
    """Send all output of the block to site.log in `folder`; where that cannot be opened, to nowhere.

    Whatever the block changed of streams and handlers is put back as it was. Blocks of several threads wait for each
    other. Not covered: code that keeps a descriptor of its own, or opens a connection; that is for a firewall.
    """
    with _one_at_a_time, _open_log(folder) as log:
        streams, handlers = (sys.stdout, sys.stderr), _take_handlers(log)
        with _descriptors_to(log.fileno()), warnings.catch_warnings():
            sys.stdout = sys.stderr = log
            warnings.showwarning = _show_warning
            try:
                yield
            finally:
                with contextlib.suppress(OSError, ValueError):  # a full disk, or a block that closed the log
                    log.flush()
                sys.stdout, sys.stderr = streams
                _give_back_handlers(handlers)


def _open_log(folder: Path) -> TextIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return open(folder / LOG_FILE, "a", buffering=1, encoding="utf-8", errors="backslashreplace")
    except OSError:
        return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def _descriptors_to(log: int) -> Iterator[None]:
    """Let the process's descriptors 1 and 2 lead to another one."""
    saved = {}
    _flush_all()
    for number in (1, 2):
        with contextlib.suppress(OSError):  # a daemon may have closed them
            saved[number] = os.dup(number)
            os.dup2(log, number)
    try:
        yield
    finally:
        _flush_all()
        for number, copy in saved.items():
            os.dup2(copy, number)
            os.close(copy)


def _flush_all() -> None:
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    ctypes.CDLL(None).fflush(None)  # C's own buffers


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: object = None,
    line: str | None = None,
) -> None:  # fmt: skip
    """Write a warning to the log, whoever else has asked for them."""
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def _take_handlers(log: TextIO) -> list[tuple[logging.Logger, list[logging.Handler]]]:
    """Put one handler that writes to the log in the place of all; return who had which."""
    ours = logging.StreamHandler(log)
    ours.setFormatter(logging.Formatter(_FORMAT))
    others = [found for found in logging.root.manager.loggerDict.values() if isinstance(found, logging.Logger)]
    before = [(logger, logger.handlers[:]) for logger in (logging.root, *others)]
    logging.root.handlers = [ours]
    for logger, handlers in before[1:]:
        logger.handlers = [ours] if handlers and not logger.propagate else []
    return before


def _give_back_handlers(before: list[tuple[logging.Logger, list[logging.Handler]]]) -> None:
    for logger, handlers in before:
        logger.handlers = handlers
