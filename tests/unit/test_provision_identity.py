"""What a restored guest is told, and when it is believed to be another one."""

import subprocess
from dataclasses import replace

import pytest

from kmgr.provision.identity import Answer, Identity, answer, problem, program

WANTED = Identity("office-7", "52:54:00:aa:bb:cc", "s33d", 1_700_000_000)
GOOD = Answer("office-7", "52:54:00:aa:bb:cc", "4711", "set")


def test_what_the_program_printed_is_read_whatever_else_it_says() -> None:
    printed = "clock=set\nsomething else\nmac=52:54:00:AA:BB:CC\nname=office-7\nsample=4711\n"
    assert answer(printed) == GOOD
    assert answer("") == Answer()
    assert answer("=\n==\nname") == Answer()


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (GOOD, ""),
        (replace(GOOD, name="warm"), "calls itself warm and not office-7"),
        (replace(GOOD, name=""), "calls itself nothing"),
        (replace(GOOD, mac="52:54:00:00:00:01"), "network address is 52:54:00:00:00:01 and not 52:54:00:aa:bb:cc"),
        (replace(GOOD, clock=""), "clock could not be set"),
        (replace(GOOD, sample=""), "no random numbers"),
        (replace(GOOD, sample="7"), "same random numbers"),
    ],
)
def test_only_one_that_is_what_it_was_to_become_is_believed(told: Answer, words: str) -> None:
    found = problem(WANTED, told, drawn=["7"])
    assert words in found
    assert bool(found) is bool(words)


def test_the_program_is_one_that_a_shell_takes_and_gets_everything_as_arguments() -> None:
    told = program(WANTED)
    _, script, _, *arguments = told["arg"]
    assert arguments == ["office-7", "52:54:00:aa:bb:cc", "s33d", "1700000000"]
    assert not any(one in script for one in arguments), "nothing of it is ever part of the program itself"
    done = subprocess.run(["/bin/sh", "-n", "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
