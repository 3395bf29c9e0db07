"""A process that has imported everything and forks for each message: a start in milliseconds instead of seconds.

Flower starts a command per message and does not wait for it. The site's first one stays, on a Unix socket in the site's
own folder (mode 0700), and the later ones hand their words over to it. It only forks: a message finds modules that are
imported and nothing else of an earlier one. Standard library alone, so that handing over costs no imports.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SOCKET = "clientapp.sock"
IDLE_S = 900.0  # without a message, after which it ends
_LOOK_S = 1.0  # between looks at whether the process that started it lives
_ANSWER_S = 60.0
_MAX_BYTES = 65_536
_TAKEN = b"taken"


def hand_over(folder: Path, words: list[str]) -> bool:
    """Give the words of a command to the process that waits; False where none does, or it does not take them.

    Args:
        folder: The socket's.
        words: Without the command's own name.
    """
    with contextlib.suppress(OSError), _in(folder) as path, _new_socket() as line:
        line.settimeout(_ANSWER_S)
        line.connect(path)
        line.sendall(json.dumps(words).encode())
        line.shutdown(socket.SHUT_WR)
        return line.recv(len(_TAKEN)) == _TAKEN
    return False


def stay(folder: Path, words: list[str], *, same_code: Callable[[], bool], idle_s: float = IDLE_S) -> list[str]:
    """Return the words of each message in a process of its own: a fork of this one, which does not return itself.

    It ends with the process that started it, after `idle_s`, when another one took its place, or when its code is old.

    Args:
        folder: Of the socket.
        words: Of this process' own message.
        same_code: Whether the code on disk is still the one imported; asked for every message.
    """
    try:
        door = _open(folder)
    except OSError:  # a file system without sockets, a path too long for them: this message alone
        return words
    parent = os.getppid()
    if _fork() == 0:
        door.close()
        return words
    with contextlib.suppress(KeyboardInterrupt):
        number = os.stat(folder / SOCKET).st_ino
        last = time.monotonic()
        while os.getppid() == parent and _is(folder, number) and (_children() or time.monotonic() - last < idle_s):
            if not select.select([door], [], [], _LOOK_S)[0]:
                continue
            last = time.monotonic()
            line, _ = door.accept()
            with line, contextlib.suppress(OSError, ValueError):
                line.settimeout(_ANSWER_S)
                if not same_code():
                    break
                if (found := _received(line)) is not None and _fork() == 0:
                    door.close()
                    _take(line)
                    return found
        if _is(folder, number):
            (folder / SOCKET).unlink(missing_ok=True)
    os._exit(0)


def _take(line: socket.socket) -> None:
    """Tell that the message is taken; where nobody waits for that any more, somebody else does the work."""
    try:
        line.sendall(_TAKEN)
    except OSError:
        os._exit(0)


def _received(line: socket.socket) -> list[str] | None:
    content = b""
    while len(content) < _MAX_BYTES and (part := line.recv(_MAX_BYTES)):
        content += part
    words = json.loads(content)
    return words if isinstance(words, list) and all(isinstance(word, str) for word in words) else None


def _open(folder: Path) -> socket.socket:
    """Return a listening socket under its name at once, so that of several that come at a time one is reached."""
    door, draft = _new_socket(), f"{SOCKET}.{os.getpid()}"
    try:
        with _in(folder, draft) as path:
            door.bind(path)
        (folder / draft).chmod(0o600)
        door.listen(16)
        (folder / draft).replace(folder / SOCKET)
    except OSError:
        door.close()
        (folder / draft).unlink(missing_ok=True)
        raise
    return door


@contextlib.contextmanager
def _in(folder: Path, name: str = SOCKET) -> Iterator[str]:
    """Give a path of a socket that is short enough for the system (108 bytes), however long the folder's is."""
    if not Path("/proc/self/fd").exists():
        yield str(folder / name)
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


def _new_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


def _fork() -> int:
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return pid


def _is(folder: Path, number: int) -> bool:
    with contextlib.suppress(OSError):
        return os.stat(folder / SOCKET).st_ino == number
    return False


def _children() -> bool:
    """Reap the children that ended; say whether one still runs."""
    with contextlib.suppress(ChildProcessError):
        while True:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return True
    return False
