"""Where a run lives on disk, and how a file gets there whole: JOINTDIFF_HOME, runs/<name>/, atomic writes.

Every path that leaves this module is absolute: Flower's daemon keeps the working directory of its first run, so a
relative path means another place there than in the user's terminal.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jointdiff.errors import RunError

HOME_VARIABLE = "JOINTDIFF_HOME"
DEFAULT_HOME = "~/.jointdiff"
LATEST = "latest"
LOCK_FILE = "run.lock"
_LOCK_ATTEMPTS = 20
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


def home(run_home: str = "") -> Path:
    """Return the folder that holds the runs, made if needed: `run_home`, else $JOINTDIFF_HOME, else ~/.jointdiff.

    Args:
        run_home: The run-config key `home`; '' leaves the choice to the environment.

    Raises:
        RunError: The folder cannot be made or written.
    """
    origin = "home" if run_home else HOME_VARIABLE if os.environ.get(HOME_VARIABLE) else "the default home"
    folder = home_path(run_home)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A trial file, not os.access: only writing tells about read-only mounts and full disks.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
            pass
    except OSError as error:
        raise RunError(
            f"The home folder {folder} ({origin}) cannot be written: {error.strerror or error}. "
            f"Runs, checkpoints and reports go there. Choose another with home=/some/folder or {HOME_VARIABLE}."
        ) from error
    return folder


def home_path(run_home: str = "") -> Path:
    """Return the same folder as `home`, without making or trying it."""
    chosen = run_home or os.environ.get(HOME_VARIABLE, "") or DEFAULT_HOME
    return Path(os.path.abspath(os.path.expanduser(chosen)))


def run_path(home_folder: Path, run_name: str) -> Path:
    """Return HOME/runs/<run_name>, whether it is there or not.

    Raises:
        RunError: The name would leave the folder of the runs, or is the name of the link to the newest.
    """
    if run_name == LATEST or not _RUN_NAME.fullmatch(run_name):
        raise RunError(
            f"run-name {run_name!r} must be 1 to 80 letters, digits, '.', '_' or '-', begin with a letter or digit, "
            f"and not be '{LATEST}'."
        )
    return Path(os.path.abspath(home_folder)) / "runs" / run_name


def create_run(home_folder: Path, run_name: str) -> Path:
    """Make the folder of a new run, HOME/runs/<run_name>/, and point runs/latest at it.

    Raises:
        RunError: A run of that name is there already, or the folder cannot be made.
    """
    folder = run_path(home_folder, run_name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()  # mkdir is atomic: of two runs that start at once with one name, one is refused
    except FileExistsError as error:
        raise RunError(
            f"A run named '{run_name}' is there already: {folder}. Nothing was touched. Choose another run-name, "
            "or carry that run on with resume=true if it has not finished."
        ) from error
    except OSError as error:
        raise RunError(
            f"The run's folder {folder} cannot be made: {error.strerror or error}. Choose another home."
        ) from error
    _point_latest(folder)
    return folder


def _point_latest(folder: Path) -> None:
    """Swap runs/latest to `folder` in one step; a file system without links goes without it."""
    link = folder.parent / LATEST
    fresh = folder.parent / f".{LATEST}-{folder.name}-{os.getpid()}"
    with contextlib.suppress(OSError):
        fresh.symlink_to(folder.name, target_is_directory=True)
        os.replace(fresh, link)
    with contextlib.suppress(OSError):
        fresh.unlink(missing_ok=True)


# safetensors says so in an exception of its own where the disk is full.
_FOREIGN_ERROR = re.compile(r"I/O error: .*\(os error (\d+)\)$")


@contextlib.contextmanager
def atomic_path(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well it becomes `path`, in one step and durably.

    For writers that want a file name (safetensors, Pillow). When the block raises, `path` is as it was before.

    Args:
        private: Readable by its owner alone, at every moment.

    Raises:
        OSError: The disk is full, or the like; whatever the block raises besides.
    """
    path = Path(os.path.abspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if not private:
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes 0600: a report should be as readable as any file
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if number := _FOREIGN_ERROR.search(str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise
    _sync(path.parent)


def writable(path: Path | str) -> Path:
    """Return a file's absolute path if a file can be written there: for asking before long work, not after it.

    Makes nothing: folders that are missing are made by whoever writes.

    Raises:
        RunError: A folder is there, or its folder cannot be written.
    """
    path = Path(os.path.abspath(os.path.expanduser(path)))
    if path.is_dir():
        raise RunError(f"{path} is a folder: name a file in it.")
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}. Choose another place.") from None
    return path


def write_atomic(path: Path, content: bytes | str, *, private: bool = False) -> Path:
    """Write a whole file, or leave what was there: temporary file beside it, fsync, rename, fsync of the folder.

    Args:
        content: Text is written as UTF-8, with its line ends as they are.
        private: Readable by its owner alone.

    Returns:
        The absolute path.
    """
    with atomic_path(path, private=private) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return Path(os.path.abspath(path))


def remove_temporaries(folder: Path) -> None:
    """Remove what processes that were killed within `atomic_path` left in a folder that nobody else writes now."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def written(what: str, *, then: str) -> Iterator[None]:
    """Turn what the disk refuses within the block into one clear error, whose text names no path and so may travel.

    Args:
        what: That is written, in the plural, at the start of a sentence.
        then: A sentence: what stays, and what to do.

    Raises:
        RunError: The disk is full, read-only, or the like.
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"{what} cannot be written: {error.strerror or type(error).__name__}. {then}") from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, made if needed; another process waits for it. A process that dies lets go."""
    with open(path, "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def run_locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process alone, or refuse: two servers that write one run would spoil it.

    Raises:
        RunError: Another process holds it. A process that dies lets go, so there is never a lock to remove by hand.
    """
    path = Path(folder) / LOCK_FILE
    with open(path, "a+", encoding="utf-8") as file:
        for attempt in range(_LOCK_ATTEMPTS):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # whoever only looks (`is_locked`) lets go at once
                if attempt + 1 < _LOCK_ATTEMPTS:
                    time.sleep(0.05)
        else:
            file.seek(0)
            holder = file.read(20).strip() or "unknown"
            raise RunError(
                f"The run {folder} is being written by another server (process {holder}): two cannot write one run. "
                "Wait until it has ended, or stop that process."
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def is_locked(folder: Path) -> bool:
    """Tell whether a process holds a run's folder to write it. The lock is asked for shared and given back at once."""
    try:
        with open(Path(folder) / LOCK_FILE, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    except OSError:
        pass  # no lock file: the run is just being made, or is of an older version
    return False  # closing the file gave the lock back


def write_json(path: Path, value: Any) -> Path:
    """Write `value` as indented JSON, atomically. NaN and infinities become null: they are not JSON.

    Raises:
        TypeError: A value has no JSON form.
    """
    return write_atomic(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        RunError: The file is missing or damaged.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing. Is this the folder of a finished run?") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read as JSON: {error}. The file is damaged; look for a backup.") from error


def plain(value: Any) -> Any:
    """Return `value` in JSON's own types: numpy scalars and arrays, tuples, sets and paths too; non-finite is None.

    >>> plain({"auc": float("nan"), "size": (28, 28)})
    {'auc': None, 'size': [28, 28]}
    """
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None  # inf - inf and nan - nan are nan
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays, torch tensors, without importing either
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk, so that a power cut cannot undo the rename."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some network file systems cannot sync a folder; a file must be
            raise
    finally:
        os.close(handle)
