"""Replicated changes and reads of what a whole grid stands for: its recoveries and its floating address.

A recovery is the one change that is not ordered by a majority: `kmgr grid recover`
and `kmgr grid restore` write it into the log of the only server that is left.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlite_utils import Database

from kmgr.errors import Refused
from kmgr.grid.address import check_address
from kmgr.grid.envelope import Applied, Command, Outcome, Rejected
from kmgr.grid.fsm import Applier
from kmgr.grid.history import note
from kmgr.grid.model import ServerState
from kmgr.grid.rows import one, rows, scalar
from kmgr.ids import ServerId


@dataclass(frozen=True, slots=True)
class Recovery:
    """When and where a grid went on without its majority; `how` is "recovered" or "restored"."""

    epoch: int
    at: int
    server: ServerId
    name: str
    how: str


def recovery(db: Database) -> Recovery | None:
    """Return the grid's last recovery, None if there was none."""
    row = one(db, "select epoch, at, server, name, how from recoveries order by epoch desc limit 1")
    return None if row is None else Recovery(**row)


def floating_address(db: Database) -> str:
    """Return the grid's floating address with its prefix length, empty if it has none."""
    return str(scalar(db, "select address from floating_address where id = 1", default=""))


def recover_grid(db: Database, command: Command) -> Outcome:
    """Go on with one server; all others are removed for good. body: epoch, server, name, how."""
    body = command.body
    if one(db, "select epoch from recoveries where epoch >= ?", [body["epoch"]]) is not None:
        return Rejected("conflict", f"the grid has been recovered in epoch {body['epoch']} already")
    db.execute(
        "insert into recoveries (epoch, at, server, name, how) values (?, ?, ?, ?, ?)",
        [body["epoch"], command.at, body["server"], body["name"], body["how"]],
    )
    lost = rows(
        db,
        "select id, name from servers where id <> ? and state <> ? order by id",
        [body["server"], ServerState.REMOVED],
    )
    for row in lost:
        db.execute(
            "update servers set state = ?, changed_at = ? where id = ?",
            [ServerState.REMOVED, command.at, row["id"]],
        )
        text = f"{row['name']} was removed: the grid was {body['how']} without it on {body['name']}"
        note(db, command, "server", row["id"], text)
    names = ", ".join(row["name"] for row in lost) or "no other server"
    note(db, command, "grid", body["server"], f"the grid was {body['how']} on {body['name']}, without {names}")
    return Applied({"lost": [row["id"] for row in lost]})


def set_floating_address(db: Database, command: Command) -> Outcome:
    """Choose the address that one live server of the grid holds; empty: none. body: address."""
    try:
        address = check_address(command.body["address"])
    except Refused as error:
        return Rejected(error.code, error.message)
    before = floating_address(db)
    if address != before:
        db.execute(
            "insert into floating_address (id, address) values (1, ?)"
            " on conflict (id) do update set address = excluded.address",
            [address],
        )
        text = f"the grid address changed from {before or 'none'} to {address or 'none'}"
        note(db, command, "setting", "grid_address_ip", text)
    return Applied({"before": before})


APPLIERS: Mapping[str, Applier] = {"grid.recover": recover_grid, "grid.address": set_floating_address}
