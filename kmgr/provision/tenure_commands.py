"""Replicated changes about tenures (`provision.tenure_rules` has what they are for): one applier per command.

A server with a tenure is not removed: it could go on with its personal desktops for ever, and the state would
not show of whom. It gives its tenure back as soon as it drains; of one that is away a person says that it is off.
`grid.recover` alone removes servers and keeps their tenures: it asks nobody.
"""

from collections.abc import Mapping

from sqlite_utils import Database

from kmgr.grid.commands import remove_server
from kmgr.grid.envelope import Applied, Command, Outcome, Rejected
from kmgr.grid.fsm import Applier
from kmgr.grid.history import note
from kmgr.grid.model import RUNNING, ServerState
from kmgr.grid.rows import one


def begin(db: Database, command: Command) -> Outcome:
    """Let nobody take over a running server's personal desktops from now on. body: server, tenure (its name)."""
    row = one(db, "select state from servers where id = ?", [command.body["server"]])
    if row is None or ServerState(row["state"]) not in RUNNING:
        told = "unknown" if row is None else row["state"]
        return Rejected("conflict", f"the grid counts server {command.body['server']} as {told}: it has no tenure")
    db.execute(
        "insert or replace into tenures (server, tenure, at) values (?, ?, ?)",
        [command.body["server"], command.body["tenure"], command.at],
    )
    return Applied()


def give_back(db: Database, command: Command) -> Outcome:
    """A server goes on only with a majority from now on. body: server, tenure."""
    db.execute(
        "delete from tenures where server = ? and tenure = ?", [command.body["server"], command.body["tenure"]]
    )
    return Applied()


def end(db: Database, command: Command) -> Outcome:
    """A person says that a server which is away is switched off: its desktops may go on elsewhere. body: server."""
    row = one(db, "select name, state from servers where id = ?", [command.body["server"]])
    if row is None:
        return Rejected("not_found", f"no server {command.body['server']} in this grid")
    if ServerState(row["state"]) in RUNNING:
        return Rejected(
            "conflict", f"server {row['name']} is {row['state']}: the grid hears from it, so it is not off"
        )
    if one(db, "select server from tenures where server = ?", [command.body["server"]]) is None:
        return Applied()
    db.execute("delete from tenures where server = ?", [command.body["server"]])
    text = f"{command.by} says that {row['name']} is switched off: its personal desktops may go on elsewhere"
    note(db, command, "server", command.body["server"], text)
    return Applied()


def remove(db: Database, command: Command) -> Outcome:
    """Take a server out of the grid for good, unless it has a tenure. body: as for `grid.commands.remove_server`."""
    sql = "select s.name, s.state from servers s join tenures t on t.server = s.id where s.id = ? and s.state <> ?"
    row = one(db, sql, [command.body["server"], ServerState.REMOVED])
    if row is None:
        return remove_server(db, command)
    if ServerState(row["state"]) in RUNNING:
        cure = "drain it first, and it gives that up within seconds"
    else:
        cure = f"it is {row['state']}; say first that it is switched off (kmgr off {row['name']})"
    return Rejected("tenure", f"{row['name']} may run its personal desktops without the others: {cure}")


APPLIERS: Mapping[str, Applier] = {
    "tenure.begin": begin,
    "tenure.give_back": give_back,
    "tenure.end": end,
    # In place of the grid's own, which knows nothing of desktops.
    "server.remove": remove,
}
