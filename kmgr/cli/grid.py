"""`kmgr grid …`: going on after the majority is lost for good, backup and restore; and `kmgr reset`."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from kmgr.cli.options import DEFAULT_DATA, DataOption, NameOption, SetOption, parse_sets
from kmgr.clock import SystemClock
from kmgr.control import ask, how_to_start
from kmgr.daemon import folder, recovery
from kmgr.daemon.recovery import Answer
from kmgr.errors import Refused, Unavailable
from kmgr.grid.identity import Identity
from kmgr.grid.recover import Finding

grid = typer.Typer(no_args_is_help=True, help="The whole grid: recover, back up, restore.")

YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask: the consequences are known.")]


@grid.command("recover")
def recover(data: DataOption = DEFAULT_DATA, yes: YesOption = False) -> None:
    """Let this server go on alone after the majority of the grid was lost for good (kmgr must not run here)."""
    folder.go_on_as_its_owner(data)
    folder.prepare(data)
    with folder.locked(data):
        own = recovery.belonging(data)
        finding = recovery.examine(data, own)
        answers = asyncio.run(recovery.probe(data, own, finding))
        _show(own, finding, answers)
        recovery.refuse_if_needless(own, finding, answers)
        _confirm(
            own.grid_name,
            "Go on only if the servers named above are lost or switched off for good. What they agreed on without "
            "this server is given up, and they can return only after kmgr reset.",
            yes=yes,
        )
        epoch = recovery.go_on_alone(data, own, clock=SystemClock())
    print(f"{own.name} is now the only server of the grid {own.grid_name!r} (epoch {epoch}).")
    print(f"Start it: {how_to_start(data)}. Then let new servers join, and reset the others before they return.")
    print("Personal desktops of a server that is switched off start here from their safe copies: kmgr off NAME.")


@grid.command("backup")
def backup(
    file: Annotated[Path, typer.Argument(help="The backup, a new tar file.")], data: DataOption = DEFAULT_DATA
) -> None:
    """Save accounts, templates, settings and the grid's keys to a file; kmgr goes on meanwhile."""
    told = recovery.back_up(data, file.absolute())
    print(f"{file} holds the grid up to change {told['applied']}, and its keys: keep it where keys belong.")
    print("Golden images and desktops are not in it.")


@grid.command("restore")
def restore(
    file: Annotated[Path, typer.Argument(help="A file that kmgr grid backup wrote.")],
    name: NameOption,
    data: DataOption = DEFAULT_DATA,
    sets: SetOption = [],  # noqa: B006 - typer reads the default, nobody writes to it
) -> None:
    """Make this new server the first one of a grid that was backed up; all its former servers count as removed."""
    found = recovery.restore(file, data, name, parse_sets(sets), clock=SystemClock())
    when = f"{datetime.fromtimestamp(found.at / 1000, UTC):%d %b %Y, %H:%M} UTC"
    print(f"The grid {found.grid_name!r} is restored as it was on {when}; {name} is its only server.")
    print("Its golden images are missing until they are imported again or copied to images/; desktops are made anew.")
    print(f"Start it: {how_to_start(data)}")


@grid.command("verify")
def verify(data: DataOption = DEFAULT_DATA) -> None:
    """Compare what all servers hold, at one and the same change; exit 1 if they differ."""
    answer = asyncio.run(ask(data, "verify", wait_s=300))
    for one in answer["servers"]:
        print(f"  {one['name']:<20} " + (one["problem"] or f"change {one['applied']:<10} {one['digest']}"))
    if not answer["same"]:
        raise Refused(
            "the servers hold different states, which must never happen: stop changing things, keep the data folders "
            "of all servers, and report it. What most servers hold is right: let the others join again"
        )
    if silent := [one["name"] for one in answer["servers"] if one["problem"]]:
        raise Unavailable(f"those that answered hold the same; {', '.join(silent)} could not be compared")
    print("All servers hold the same state.")


def reset(data: DataOption = DEFAULT_DATA, yes: YesOption = False) -> None:
    """Take this server's grid away from it, so that it can join again; its settings and golden images stay."""
    folder.go_on_as_its_owner(data)
    folder.prepare(data)
    with folder.locked(data):
        _confirm("reset", "This server forgets its grid: identity, log and state are deleted.", yes=yes)
        left = recovery.reset(data)
    print(f"This server has left {left!r}." if left else "This server belonged to no grid.")
    print("Remove it from the grid on another server, if it is still listed there, and let it join again.")


def _show(own: Identity, finding: Finding, answers: tuple[Answer, ...]) -> None:
    print(f"Server {own.name} of the grid {own.grid_name!r}, epoch {finding.epoch}:")
    print(f"  its log ends at entry {finding.last} of term {finding.last_term};")
    print(f"  up to entry {finding.committed} it is known to be agreed on, all of it is kept.")
    if finding.doubt is not None:
        print(
            "  WARNING: the data here is older than it was: a backup or a snapshot was put back. Changes that people"
        )
        print("  were told are made since then are NOT here. If any other voter's disk can be saved, recover there.")
    answering = {answer.server.id: answer for answer in answers}
    for server in finding.others:
        votes = "votes" if server.id in finding.voters else "does not vote"
        answer = answering.get(server.id)
        said = "does not answer" if answer is None else answer.refusal or _standing(answer)
        print(f"  {server.name:<16} {server.grid_address:<22} {votes}, {said}")


def _standing(answer: Answer) -> str:
    term, index = answer.end
    return f"ANSWERS, its log ends at entry {index} of term {term}"


def _confirm(word: str, consequences: str, *, yes: bool) -> None:
    if yes:
        return
    print(consequences)
    if typer.prompt(f"Type {word} to go on") != word:
        raise Refused("that was not it: nothing was changed")
