"""The command line as a whole: every command is there, and only the one that was asked for is loaded."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from kmgr import __version__
from kmgr.cli.app import command_line

LOADED = """
import sys
from kmgr.cli.app import command_line
command_line([{word!r}])
print(*sys.modules)
"""


def said(*words: str) -> str:
    done = CliRunner().invoke(command_line(list(words)), list(words))
    assert done.exit_code == 0, done.output
    return done.output


def loaded(word: str) -> set[str]:
    program = [sys.executable, "-c", LOADED.format(word=word)]
    return set(subprocess.run(program, check=True, capture_output=True, text=True, timeout=60).stdout.split())


def test_the_help_page_has_every_command_and_what_it_is_for() -> None:
    page = said("--help")
    for name in (
        "init", "join", "run", "reset", "invite", "status", "drain", "undrain", "remove", "plan", "off", "set",
        "reset-password", "grid", "image", "witness", "version",
    ):  # fmt: skip
        assert f"│ {name} " in page
    assert "Virtual desktops" in page


@pytest.mark.parametrize("words", [("status",), ("grid", "backup"), ("init",), ("image", "import"), ("run",)])
def test_each_command_has_a_help_page(words: tuple[str, ...]) -> None:
    assert f"Usage: root {' '.join(words)} " in said(*words, "--help")


def test_the_version_is_printed_alone() -> None:
    assert said("version").strip() == __version__


def test_an_unknown_word_is_named() -> None:
    done = CliRunner().invoke(command_line(["restart"]), ["restart"])
    assert done.exit_code == 2
    assert "restart" in done.output


@pytest.mark.parametrize("word", ["status", "drain", "off", "version", "image"])
def test_a_word_to_a_running_server_loads_neither_web_nor_libvirt(word: str) -> None:
    assert not loaded(word) & {"aiohttp", "libvirt", "ldap3", "pysyncobj", "kmgr.daemon.serve"}
