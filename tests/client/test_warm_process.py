"""The process that forks for each message, with real processes: who works, who ends, and what they do not share."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from client import warm_process
from client.warm_process import SOCKET, hand_over
from jointdiff import processes

WORK = """
import json, os, secrets, sys
from pathlib import Path
import torch
from client.warm_process import stay
folder, out, old = map(Path, sys.argv[1:4])
words = stay(folder, ["first"], same_code=lambda: not old.exists(), idle_s=float(sys.argv[4]))
torch.set_num_threads(2)
product = float((torch.ones(600, 600) @ torch.ones(600, 600)).sum())
found = {"pid": os.getpid(), "parent": os.getppid(), "words": words, "product": product, "draw": secrets.randbits(63)}
(out / (words[0] + ".draft")).write_text(json.dumps(found))
(out / (words[0] + ".draft")).replace(out / words[0])
"""


class Station:
    """A folder with a socket, and what the messages left."""

    def __init__(self, folder: Path):
        self.door, self.out, self.old = folder / "bin", folder / "out", folder / "old"
        self.door.mkdir(mode=0o700, parents=True)
        self.out.mkdir()
        self.started: list[subprocess.Popen] = []

    def start(self, idle_s: float = 60.0, *, shell: bool = False) -> subprocess.Popen:
        words = [sys.executable, "-c", WORK, str(self.door), str(self.out), str(self.old), str(idle_s)]
        if shell:  # the shell's second command keeps it from becoming the first one
            words = ["sh", "-c", '"$@"; sleep 60', "sh", *words]
        process = subprocess.Popen(words, start_new_session=True)
        self.started.append(process)
        return process

    def result(self, name: str) -> dict:
        until(lambda: (self.out / name).exists())
        return json.loads((self.out / name).read_text())


def until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def station(tmp_path):
    found = Station(tmp_path / ("long" * 40))  # longer than a socket's path may be
    yield found
    for process in found.started:
        processes.end_all(lambda group=process.pid: processes.group_members(group), grace_s=1.0)
        process.wait()


def test_one_process_imports_and_every_message_is_a_fork_of_it(station):
    assert not hand_over(station.door, ["nobody waits"])
    server = station.start()
    first = station.result("first")
    assert all(hand_over(station.door, [name, "--token", "x y"]) for name in ("second", "third"))
    second, third = station.result("second"), station.result("third")
    assert second["words"] == ["second", "--token", "x y"]
    assert {found["parent"] for found in (first, second, third)} == {server.pid}
    assert len({found["pid"] for found in (first, second, third)}) == 3
    assert {found["product"] for found in (first, second, third)} == {600.0**3}  # torch's threads work after a fork
    assert len({found["draw"] for found in (first, second, third)}) == 3
    assert (station.door / SOCKET).stat().st_mode & 0o777 == 0o600


def test_after_an_update_of_the_code_the_old_process_takes_nothing(station):
    server = station.start()
    station.result("first")
    station.old.touch()
    assert not hand_over(station.door, ["late"])
    assert server.wait(20) == 0 and not (station.door / SOCKET).exists()
    assert not (station.out / "late").exists()


def test_it_ends_when_nothing_comes(station):
    assert station.start(idle_s=0.5).wait(60) == 0
    assert station.result("first") and not (station.door / SOCKET).exists()


def test_it_ends_with_the_process_that_started_it(station):
    shell = station.start(shell=True)
    server = station.result("first")["parent"]
    shell.kill()
    until(lambda: not processes.is_alive(server), 20)


def test_where_it_was_killed_the_next_one_takes_its_place(station):
    first = station.start()
    station.result("first")
    first.kill()
    first.wait()
    assert not hand_over(station.door, ["lost"])
    (station.out / "first").unlink()
    second = station.start()
    station.result("first")
    assert hand_over(station.door, ["again"]) and station.result("again")["parent"] == second.pid


def test_of_two_that_stay_the_earlier_one_ends(station):
    first = station.start()
    station.result("first")
    (station.out / "first").unlink()
    second = station.start()
    assert station.result("first")["parent"] == second.pid
    assert first.wait(20) == 0 and (station.door / SOCKET).exists()
    assert hand_over(station.door, ["next"]) and station.result("next")["parent"] == second.pid


def test_what_is_no_list_of_words_is_not_taken(station):
    station.start()
    station.result("first")
    assert not hand_over(station.door, {"not": "words"})
    assert not hand_over(station.door, ["x" * 2 * warm_process._MAX_BYTES])
    assert hand_over(station.door, ["still"]) and station.result("still")


def test_a_fork_is_safe_after_the_imports():
    """Before a fork there may be no thread and no look at a GPU: children could not use it."""
    code = (
        "import threading, torch\n"
        "def touched(*_): raise SystemExit('an import looks at the GPU')\n"
        "torch._C._cuda_getDeviceCount = torch._C._cuda_init = touched\n"
        "from client.clientapp_process import _checking_flower\n"
        "_checking_flower()\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "import sys; assert {'client.round', 'client.egress', 'jointdiff.explanation'} <= set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.returncode == 0, done.stderr
