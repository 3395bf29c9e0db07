"""Processes that carry out runs side by side, one thread each: started by spawn, told by pipe, ended with their parent.

A worker that dies costs its own run, which is named; another takes its place. Whatever stops the study stops them all.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from jointdiff import storage
from jointdiff.errors import JointDiffError
from jointdiff.processes import end_processes, end_with_parent
from simulations.named_run import Result
from simulations.study.plan import PlannedRun

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_LOOK_S = 1.0  # between two calls of `idle`
_GRACE_S = 20.0  # for a worker to end; one that runs Flower stops its daemon first


@dataclass(frozen=True)
class Outcome:
    """What became of one run."""

    planned: PlannedRun
    result: Result | None
    reason: str = ""  # why there is none


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    job: PlannedRun
    round: str = ""  # "4 of 7"


def carry_out_all(
    jobs: Sequence[PlannedRun], folder: Path, num_workers: int, *, idle: Callable[[dict[str, str]], None]
) -> Iterator[Outcome]:
    """Yield every run's outcome as it ends.

    Args:
        jobs: In the order in which they are begun.
        folder: Of the study.
        num_workers: Processes at a time.
        idle: Called about once a second with the names of the runs that go on, and how far each is.
    """
    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(jobs))
    workers: list[_Worker] = []
    spare: list[_Worker] = []
    with _one_thread():
        try:
            while waiting or workers:
                while waiting and len(workers) < num_workers:
                    workers.append(_begin(context, spare, waiting.pop(), folder))
                for worker in _ready(workers):
                    outcome = _hear(worker)
                    if outcome is None:
                        continue
                    workers.remove(worker)
                    if worker.process.is_alive():
                        spare.append(worker)
                    yield outcome
                idle({worker.job.row.run: worker.round for worker in workers})
        finally:
            _end([*workers, *spare])


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let processes that start here compute on one thread each, unless the user has said otherwise."""
    missing = [name for name in _THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(missing, "1"))
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


def _begin(context: Any, spare: list[_Worker], job: PlannedRun, folder: Path) -> _Worker:
    spare[:] = [worker for worker in spare if worker.process.is_alive()]
    if spare:
        worker = spare.pop()
        worker.job, worker.round = job, ""
    else:
        pipe, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, os.getpid()), daemon=False)
        with _deaf():  # what is ignored stays so in the new process, from its first instruction on
            process.start()
        theirs.close()
        worker = _Worker(process, pipe, job)
    with contextlib.suppress(OSError):  # one that has died is found by its silence
        worker.pipe.send((job, folder))
    return worker


def _ready(workers: Sequence[_Worker]) -> list[_Worker]:
    found = wait([worker.pipe for worker in workers], timeout=_LOOK_S)
    return [worker for worker in workers if worker.pipe in found]


def _hear(worker: _Worker) -> Outcome | None:
    """Take one message of a worker; return its outcome once there is one."""
    try:
        kind, content = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join(_GRACE_S)
        code = worker.process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        if code == -signal.SIGKILL:
            how += ", perhaps for want of memory: try fewer workers"
        return Outcome(worker.job, None, f"its process died ({how})")
    if kind == "round":
        worker.round = content
        return None
    return Outcome(worker.job, content) if kind == "result" else Outcome(worker.job, None, content)


def _end(workers: Sequence[_Worker]) -> None:
    with _deaf():
        for worker in workers:
            if worker.process.is_alive():
                worker.process.terminate()
        deadline = time.monotonic() + _GRACE_S
        for worker in workers:
            worker.process.join(max(0.1, deadline - time.monotonic()))
            if worker.process.is_alive():
                end_processes(worker.process.pid)
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Pass over Ctrl-C for a moment."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Stop:
    """SIGTERM's handler in a worker: it raises KeyboardInterrupt, again in `check` should the first be lost.

    What is raised while Python calls a finaliser or a weak reference's callback is printed and passed over: the run
    would go on to its end.
    """

    asked = False

    def __call__(self, *_: object) -> None:
        """Raise KeyboardInterrupt, here and from now on."""
        self.asked = True
        raise KeyboardInterrupt

    def check(self, event: str) -> None:
        """Raise KeyboardInterrupt where the process has been asked to stop and the run goes on: at its next event."""
        if self.asked and event != "run_failed":
            raise KeyboardInterrupt


def _work(pipe: Connection, parent: int) -> None:
    """Carry out runs until nobody asks any more. The whole life of a worker's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    stop = Stop()
    signal.signal(signal.SIGTERM, stop)
    end_with_parent()
    if os.getppid() != parent:  # it went before the kernel was told
        return
    import torch

    from jointdiff.record import reason_of
    from simulations.study.jobs import carry_out

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

    def tell(event: dict[str, Any]) -> None:
        stop.check(event["event"])
        if event["event"] == "round_started":
            pipe.send(("round", f"round {event['round']} of {event['num_rounds']}"))

    with contextlib.suppress(KeyboardInterrupt, EOFError, OSError):
        while True:
            job, folder = pipe.recv()
            try:
                pipe.send(("result", carry_out(job, folder, tell)))
            except Exception as error:
                if not isinstance(error, JointDiffError):  # somebody will want to know where
                    storage.write_atomic(folder / "logs" / f"{job.row.run}.error.txt", traceback.format_exc())
                pipe.send(("failure", reason_of(error)))
