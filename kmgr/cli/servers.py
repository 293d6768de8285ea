"""`kmgr drain`, `undrain`, `remove`, `off`: what the console does with servers, from the terminal of any of them."""

import asyncio
from typing import Annotated

import typer

from kmgr.cli.options import DEFAULT_DATA, DataOption
from kmgr.control import ask

ServerArgument = Annotated[str, typer.Argument(help="Name or id of a server of the grid.")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Do it although the grid would be weaker; the history says so.")
]

NoticeOption = Annotated[
    int,
    typer.Option(
        "--notice",
        min=0,
        help="Minutes after which pooled desktops end that cannot be moved; their users are told. 0: they stay.",
    ),
]


def drain(
    server: ServerArgument, data: DataOption = DEFAULT_DATA, force: ForceOption = False, notice: NoticeOption = 0
) -> None:
    """Give a server no new desktops; refused with the reasons if the grid would be weaker than now."""
    asyncio.run(ask(data, "drain", {"server": server, "force": force, "notice_minutes": notice}))
    print(f"{server} gets no new desktops from now on; the ones that people work on move while they run.")
    if notice:
        print(f"Who cannot be moved is told to leave; pooled desktops that are still there end after {notice} min.")
    else:
        print("What cannot be moved stays until its user logs out.")


def undrain(server: ServerArgument, data: DataOption = DEFAULT_DATA) -> None:
    """Let a draining server have new desktops again."""
    asyncio.run(ask(data, "undrain", {"server": server}))
    print(f"{server} gets desktops again.")


def remove(server: ServerArgument, data: DataOption = DEFAULT_DATA, force: ForceOption = False) -> None:
    """Take a server out of the grid for good, dead or alive; refused with the reasons if that is unwise."""
    asyncio.run(ask(data, "remove", {"server": server, "force": force}))
    print(f"{server} is removed from the grid; its certificate counts no more.")


def off(server: ServerArgument, data: DataOption = DEFAULT_DATA) -> None:
    """Say that a lost or removed server is switched off: what it might run without the others goes on elsewhere."""
    asyncio.run(ask(data, "off", {"server": server}))
    print(f"{server} is believed to be switched off: its personal desktops start from their safe copies.")
