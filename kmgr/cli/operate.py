"""Commands that speak to the daemon of this server through its local door."""

import asyncio
import json
from datetime import datetime
from typing import Annotated

import typer

from kmgr.cli.options import DEFAULT_DATA, DataOption, PasswordFileOption, read_secret
from kmgr.control import ask


def invite(
    data: DataOption = DEFAULT_DATA,
    plain: Annotated[bool, typer.Option("--plain", help="Print only the four words, for scripts.")] = False,
) -> None:
    """Print four words that let one new server join (15 minutes, five tries); open ones end."""
    answer = asyncio.run(ask(data, "invite"))
    if plain:
        print(answer["phrase"])
        return
    print(f"The four words for one new server, valid for 15 minutes:\n\n    {answer['phrase']}\n")
    print("On the new server open its address in a browser, or run there and type them when asked:\n")
    print(f"    kmgr join --to {answer['address']}\n")
    if answer["replaced"]:
        print("The four words that were shown before are no longer valid.")


def status(
    data: DataOption = DEFAULT_DATA,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show what this server knows about the grid."""
    answer = asyncio.run(ask(data, "status"))
    if as_json:
        print(json.dumps(answer, indent=2))
        return
    print(f"grid {answer['grid']}: {'has' if answer['majority'] else 'HAS NO'} majority, leader {answer['leader']}")
    if answer["island_since"] is not None:
        since = datetime.fromtimestamp(answer["island_since"] / 1000).astimezone()
        print(f"this server goes on by itself since {since:%Y-%m-%d %H:%M:%S}")
    for server in answer["servers"]:
        mark = " (this server)" if server["id"] == answer["server"] else ""
        where = "witness" if server["role"] == "witness" else f"https://{server['web_address']}"
        votes = "votes" if server["voter"] else "-"
        print(f"  {server['name']:<20} {server['state']:<10} {votes:<6} {where}{mark}")
    for problem in answer["problems"]:
        print(f"  ! {problem}")


def change_setting(
    name: Annotated[str, typer.Argument(help="Name of a grid-wide setting, grid_address_ip or time_zone.")],
    value: Annotated[str, typer.Argument(help="Its new value; '' for no grid address.")],
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Change a grid-wide setting on all servers."""
    answer = asyncio.run(ask(data, "set", {"name": name, "value": value}))
    before = answer.get("before", "")
    print(f"{name} is {value or 'none'} now (it was {before if before != '' else 'none'}).")


def reset_password(
    account: Annotated[str, typer.Argument(help="Name of a built-in account.")],
    data: DataOption = DEFAULT_DATA,
    password_file: PasswordFileOption = None,
) -> None:
    """Give a built-in account a new password, for the day the only administrator forgot theirs."""
    password = read_secret(password_file, prompt=f"New password for {account}", twice=True)
    asyncio.run(ask(data, "reset-password", {"name": account, "password": password}))
    print(f"The password of {account} is changed; all sessions of {account} are closed.")
