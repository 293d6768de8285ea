"""`kmgr init` and `kmgr join`: the two questions on a terminal, or all of it as options or in a file for scripts."""

import asyncio
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from kmgr.cli.options import (
    DEFAULT_DATA,
    AnswersOption,
    DataOption,
    NameOption,
    PasswordFileOption,
    SetOption,
    answers_in,
    parse_sets,
    read_secret,
)
from kmgr.clock import SystemClock
from kmgr.control import how_to_start
from kmgr.daemon import folder
from kmgr.daemon.founding import NewGrid, found, join_at, settle
from kmgr.errors import Refused
from kmgr.grid import identity
from kmgr.grid.discovery import browse
from kmgr.grid.joining import Step
from kmgr.grid.model import ServerRole
from kmgr.grid.preflight import Finding, PreflightStopped, Severity

_BROWSE_S = 2.5


def init(
    name: NameOption = "",
    grid: Annotated[str, typer.Option("--grid", help="Name of the new grid, as people will see it.")] = "",
    data: DataOption = DEFAULT_DATA,
    admin: Annotated[str, typer.Option("--admin", help="Name of the first administrator ('admin').")] = "",
    password_file: PasswordFileOption = None,
    answers: AnswersOption = None,
    sets: SetOption = [],  # noqa: B006 - typer reads the default, nobody writes to it
) -> None:
    """Make this server the first of a new grid; what is not given is asked."""
    identity.refuse_if_used(data)
    given = answers_in(answers, ("name", "grid", "admin", "password_file"))
    grid = grid or given.text("grid") or _asked("--grid", "Name of the new grid")
    name = name or given.text("name") or _asked("--name", "Name of this server", default=_own_name())
    admin = admin or given.text("admin") or "admin"
    password = read_secret(password_file or given.path("password_file"), prompt=f"Password for {admin}", twice=True)
    folder.go_on_as_its_owner(data)
    config = settle(data, name, {**given.settings, **parse_sets(sets)})
    asyncio.run(found(config, NewGrid(grid, name, admin, password), clock=SystemClock()))
    print(f"Grid {grid!r} is made; its first server is {name}. Start it: {how_to_start(data)}")


def join(
    name: NameOption = "",
    to: Annotated[str, typer.Option("--to", help="Grid address of any server of the grid, host:port.")] = "",
    data: DataOption = DEFAULT_DATA,
    phrase: Annotated[
        str, typer.Option("--phrase", help="The four words; others on this machine may see them: better a file.")
    ] = "",
    phrase_file: Annotated[
        Path | None, typer.Option("--phrase-file", help="File with the four words ('-': standard input).")
    ] = None,
    answers: AnswersOption = None,
    sets: SetOption = [],  # noqa: B006 - typer reads the default, nobody writes to it
) -> None:
    """Let this server join a grid by the four words `kmgr invite` prints on another one; what is missing is asked."""
    let_join(name, to, data, phrase=phrase, phrase_file=phrase_file, answers=answers, sets=sets)


def let_join(
    name: str,
    to: str,
    data: Path,
    *,
    phrase: str = "",
    phrase_file: Path | None,
    answers: Path | None = None,
    sets: list[str],
    role: ServerRole = ServerRole.SERVER,
) -> None:
    """Join as a server or as a witness."""
    identity.refuse_if_used(data)
    given = answers_in(answers, ("name", "to", "phrase_file"))
    if phrase:
        print("warning: other users of this machine can read --phrase in the list of processes", file=sys.stderr)
    to = to or given.text("to") or _which_grid()
    name = name or given.text("name") or _asked("--name", f"Name of this {role}", default=_own_name())
    words = phrase or read_secret(phrase_file or given.path("phrase_file"), prompt="The four words", hidden=False)
    folder.go_on_as_its_owner(data)
    config = settle(data, name, {**given.settings, **parse_sets(sets), "role": str(role)})
    try:
        joined = asyncio.run(
            join_at(
                config,
                address=to,
                phrase=words,
                clock=SystemClock(),
                role=ServerRole(config.role),
                progress=_show_step,
            )
        )
    except PreflightStopped as stopped:
        _show(stopped.findings)
        raise Refused(
            f"this {role} cannot join yet, nothing was changed: mend what stops it, then repeat"
        ) from stopped
    _show(joined.warnings)
    start = how_to_start(data, witness=role is ServerRole.WITNESS)
    print(f"{name} joined the grid {joined.identity.grid_name!r}. Start it: {start}")


def _show(findings: tuple[Finding, ...]) -> None:
    for finding in findings:
        word = "stops the join" if finding.severity is Severity.STOP else "warning"
        print(f"{word}: {finding.text}", file=sys.stderr)


def _show_step(step: Step) -> None:
    if sys.stderr.isatty():
        print(f"... {step}", file=sys.stderr)


def _which_grid() -> str:
    """List the grids in this network and ask for one of them, or for an address."""
    if not sys.stdin.isatty():
        raise Refused("nobody can be asked which grid: give its address with --to")
    print("Looking for grids in this network ...")
    found = asyncio.run(browse(_BROWSE_S))
    for number, grid in enumerate(found.grids, 1):
        names = ", ".join(server.server_name for server in grid.servers)
        print(f"  {number}. {grid.name}, at {grid.servers[0].grid_address} ({names})")
    if not found.grids:
        print(f"None was found. {found.problem}")
    answer: str = typer.prompt("Its number, or the address of any of its servers (host:port)")
    chosen = int(answer) if answer.isdecimal() else 0
    return found.grids[chosen - 1].servers[0].grid_address if 0 < chosen <= len(found.grids) else answer


def _asked(option: str, question: str, *, default: str | None = None) -> str:
    if not sys.stdin.isatty():
        raise Refused(f"nobody can be asked for it: give {option}")
    answer: str = typer.prompt(question, default=default)
    return answer


def _own_name() -> str:
    return socket.gethostname().split(".")[0]
