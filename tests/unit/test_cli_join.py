"""`kmgr join` and `kmgr init` for scripts: from options or a file, nothing asked, no secret among the arguments."""

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kmgr import __version__
from kmgr.cli.options import answers_in
from kmgr.errors import ConfigError
from kmgr.grid import identity
from tests.lab.join_lab import Office, free_port, opened

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str


async def kmgr(*words: str, stdin: str = "") -> Done:
    """Run the command line as a process."""
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "kmgr", *words)
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe)
    out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


def settings(port: int) -> dict[str, str]:
    return {"grid_host": "127.0.0.1", "grid_port": str(port), "libvirt_uri": "", "web_address": "b.example:443"}


def sets(port: int) -> list[str]:
    return [word for key, value in settings(port).items() for word in ("--set", f"{key}={value}")]


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    async with opened(tmp_path, version=__version__) as office:
        yield office


async def test_the_phrase_comes_from_standard_input_and_what_was_noticed_is_printed(
    office: Office, tmp_path: Path
) -> None:
    words = ("join", "--name", "b", "--to", office.address, "--data", str(tmp_path / "b"), "--phrase-file", "-")
    done = await kmgr(*words, *sets(free_port()), stdin=await office.phrase() + "\n")
    assert done.status == 0, done.err
    assert "b joined the grid 'office'" in done.out
    # The office's clock stands in 2023.
    assert "warning: the new server's clock is" in done.err
    assert office.names() == ["a", "b"]


async def test_a_file_of_answers_is_enough(office: Office, tmp_path: Path) -> None:
    phrase, answers = tmp_path / "phrase", tmp_path / "answers.toml"
    phrase.write_text((await office.phrase()).replace("-", " "))
    lines = [f'name = "b"\nto = "{office.address}"\nphrase_file = "{phrase}"\n[settings]']
    lines += [f"{key} = {value if value.isdigit() else repr(value)}" for key, value in settings(free_port()).items()]
    answers.write_text("\n".join(lines))
    done = await kmgr("join", "--data", str(tmp_path / "b"), "--answers", str(answers))
    assert done.status == 0, done.err
    joined = identity.load(tmp_path / "b")
    assert joined is not None and joined.name == "b"


async def test_everything_that_stops_a_join_is_printed_and_the_status_says_refused(
    office: Office, tmp_path: Path
) -> None:
    words = ("join", "--name", "a", "--to", office.address, "--data", str(tmp_path / "b"), "--phrase-file", "-")
    done = await kmgr(*words, *sets(int(office.address.rpartition(":")[2])), stdin=await office.phrase())
    assert done.status == 1
    lines = [line for line in done.err.splitlines() if line.startswith("stops the join: ")]
    assert [any(word in line for line in lines) for word in ("the name 'a'", "is taken by server", "in use by")] == [
        True
    ] * 3
    assert "nothing was changed" in done.err


async def test_a_phrase_among_the_arguments_is_warned_of(office: Office, tmp_path: Path) -> None:
    words = ("join", "--name", "b", "--to", office.address, "--data", str(tmp_path / "b"))
    done = await kmgr(*words, *sets(free_port()), "--phrase", await office.phrase())
    assert done.status == 0, done.err
    assert "can read --phrase in the list of processes" in done.err


async def test_where_nobody_can_be_asked_the_option_is_named(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "b"))
    for words, option in (
        (("join",), "--to"),
        (("join", "--to", "h:1"), "--name"),
        (("init",), "--grid"),
        (("init", "--grid", "g"), "--name"),
    ):
        done = await kmgr(*words, *data)
        assert done.status == 1 and option in done.err, done.err
    assert not (tmp_path / "b").exists()


async def test_a_grid_is_founded_from_a_file_of_answers(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("long enough")
    answers = tmp_path / "answers.toml"
    answers.write_text(
        f'name = "a"\ngrid = "school"\npassword_file = "{tmp_path}/password"\n[settings]\nmdns = false\n'
    )
    done = await kmgr("init", "--data", str(tmp_path / "a"), "--answers", str(answers))
    assert done.status == 0, done.err
    assert "mdns = false" in (tmp_path / "a" / "kmgr.toml").read_text()


def test_a_wrong_file_of_answers_names_everything_that_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "answers.toml"
    path.write_text('nmae = "b"\nto = 5\nsettings = 1\n')
    with pytest.raises(ConfigError, match=r"nmae: unknown.*to: must be a text.*settings: must be a table"):
        answers_in(path, ("name", "to"))
    path.write_text("=")
    with pytest.raises(ConfigError, match="cannot be read as TOML"):
        answers_in(path, ("name",))
    assert answers_in(None, ()).text("name") == ""
