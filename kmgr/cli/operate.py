"""Commands that speak to the daemon of this server through its local door."""

import asyncio
import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any

import typer

from kmgr.cli.options import DEFAULT_DATA, DataOption, PasswordFileOption, read_secret
from kmgr.control import ask
from kmgr.web.words import span

# Heartbeats come every second; a busy server may miss some.
_QUIET_S = 5


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
    for line in told(answer):
        print(line)


def told(answer: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that `kmgr status` prints."""
    leader = answer["leader"] or "unknown"
    yield f"grid {answer['grid']}: {'has' if answer['majority'] else 'HAS NO'} majority, leader {leader}"
    if answer["island_since"] is not None:
        since = datetime.fromtimestamp(answer["island_since"] / 1000).astimezone()
        yield f"this server goes on by itself since {since:%Y-%m-%d %H:%M:%S}"
    for server in answer["servers"]:
        where = "witness" if server["role"] == "witness" else f"https://{server['web_address']}"
        votes = "votes" if server["voter"] else "-"
        mark = " (this server)" if server["id"] == answer["server"] else _silence(server.get("heard_s_ago", 0))
        yield f"  {server['name']:<20} {server['state']:<10} {votes:<6} {where}{mark}"
    for problem in answer["problems"]:
        yield f"  ! {problem}"


def _silence(heard_s_ago: int | None) -> str:
    """Say that a server does not answer, whether or not the log could note yet that it is lost."""
    if heard_s_ago is None:
        return " SILENT since kmgr was started here"
    return f" SILENT for {span(heard_s_ago)}" if heard_s_ago > _QUIET_S else ""


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
