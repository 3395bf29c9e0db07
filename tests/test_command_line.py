"""How commands end where their output goes nowhere."""

import subprocess
import sys

TALKS = (
    "import sys; from jointdiff.command_line import exit_code_of; sys.exit(exit_code_of(lambda: print('x' * 10**6)))"
)
FAILS = TALKS.replace("print('x' * 10**6)", "(_ for _ in ()).throw(BrokenPipeError('a line was cut'))")


def test_a_reader_that_has_seen_enough_ends_a_command_quietly():
    command = subprocess.Popen([sys.executable, "-c", TALKS], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    command.stdout.read(1)
    command.stdout.close()
    assert command.stderr.read() == b"" and command.wait(60) == 141


def test_another_broken_pipe_is_no_such_case():
    done = subprocess.run([sys.executable, "-c", FAILS], capture_output=True, timeout=60)
    assert done.returncode == 1 and b"a line was cut" in done.stderr
