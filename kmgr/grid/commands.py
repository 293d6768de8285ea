"""Replicated changes of the grid package: the grid itself, its servers, invitations, settings.

A server's life: `server.add` (joining) → `server.up` ⇄ `server.lost`, with
`server.drain` and `server.undrain` between; `server.remove` ends it for good, its
id never comes back. A draining server that is lost is draining again when it returns.
"""

from collections.abc import Mapping

from sqlite_utils import Database

from kmgr import settings
from kmgr.errors import Refused
from kmgr.grid.envelope import Applied, Command, Outcome, Rejected
from kmgr.grid.fsm import Applier
from kmgr.grid.history import note
from kmgr.grid.invitations import APPLIERS as INVITATIONS
from kmgr.grid.invitations import cannot_add, holder_of, insert_server
from kmgr.grid.model import ServerRole, ServerState
from kmgr.grid.queries import settings as settings_now
from kmgr.grid.rows import Row, one, rows, scalar

_RUNNING = "select id from servers where state in (?, ?) order by id"


def create_grid(db: Database, command: Command) -> Outcome:
    """Give the state its grid. body: grid, name, ca_cert_pem, ca_key_sealed."""
    body = command.body
    row = one(db, "select name from grid order by id")
    if row is not None:
        return Rejected("conflict", f"this log already belongs to the grid {row['name']!r}")
    db.execute(
        "insert into grid (id, name, ca_cert_pem, ca_key_sealed, created_at) values (?, ?, ?, ?, ?)",
        [body["grid"], body["name"], body["ca_cert_pem"], body["ca_key_sealed"], command.at],
    )
    note(db, command, "grid", body["grid"], f"grid {body['name']!r} created")
    return Applied({"grid": body["grid"]})


def add_server(db: Database, command: Command) -> Outcome:
    """Make a server known, in state joining.

    body: server, name, grid_address, web_address, version, fingerprint, and role if it is a witness
    """
    refusal = cannot_add(db, command.body)
    if refusal is not None:
        return refusal
    insert_server(db, command, command.body)
    return Applied({"server": command.body["server"]})


def announce_server(db: Database, command: Command) -> Outcome:
    """Note where a server is reached and what it runs.

    body: server, grid_address, web_address, version, fingerprint
    """
    body = command.body
    row = _living(db, body["server"])
    if isinstance(row, Rejected):
        return row
    fields = ("grid_address", "web_address", "version", "fingerprint")
    changed = [name for name in fields if row[name] != body[name]]
    if not changed:
        return Applied()
    holder = holder_of(db, "grid_address", body["grid_address"], other_than=row["id"])
    if holder is not None:
        return Rejected(
            "conflict", f"{body['grid_address']} is already the grid address of server {holder['name']!r}"
        )
    db.execute(
        "update servers set grid_address = ?, web_address = ?, version = ?, fingerprint = ?, changed_at = ?"
        " where id = ?",
        [*(body[name] for name in fields), command.at, row["id"]],
    )
    told = ", ".join(f"{name.replace('_', ' ')} {body[name]}" for name in changed if name != "fingerprint")
    note(db, command, "server", row["id"], f"{row['name']} announced {told or 'a new certificate'}")
    return Applied()


def server_up(db: Database, command: Command) -> Outcome:
    """Count a server as running. body: server."""
    row = _living(db, command.body["server"])
    if isinstance(row, Rejected):
        return row
    if row["state"] in (ServerState.UP, ServerState.DRAINING):
        return Applied()
    _enter(db, command, row, ServerState.DRAINING if row["draining"] else ServerState.UP)
    text = "is back" if row["state"] == ServerState.LOST else "is up for the first time"
    note(db, command, "server", row["id"], f"{row['name']} {text}")
    return Applied()


def server_lost(db: Database, command: Command) -> Outcome:
    """Count a running server as lost. body: server."""
    row = _living(db, command.body["server"])
    if isinstance(row, Rejected):
        return row
    if row["state"] == ServerState.LOST:
        return Applied()
    if row["state"] == ServerState.JOINING:
        return Rejected("conflict", f"server {row['name']!r} has not been up yet, so it cannot be lost")
    _enter(db, command, row, ServerState.LOST)
    note(db, command, "server", row["id"], f"{row['name']} is lost: the grid stopped hearing from it")
    return Applied()


def drain_server(db: Database, command: Command) -> Outcome:
    """Give a server no new desktops from now on. body: server, running?, although? as for `remove_server`."""
    row = _living(db, command.body["server"])
    if isinstance(row, Rejected):
        return row
    if (refusal := _moved_on(db, command)) is not None:
        return refusal
    if row["role"] == ServerRole.WITNESS:
        return Rejected("refused", f"{row['name']} is a witness: it has no desktops, so there is nothing to drain")
    if row["state"] == ServerState.JOINING:
        return Rejected("conflict", f"server {row['name']!r} is still joining: wait until it is up")
    if row["draining"]:
        return Applied()
    db.execute("update servers set draining = 1 where id = ?", [row["id"]])
    if row["state"] == ServerState.UP:
        _enter(db, command, row, ServerState.DRAINING)
    note(db, command, "server", row["id"], f"{row['name']} drains: it is given no new desktops{_although(command)}")
    return Applied()


def undrain_server(db: Database, command: Command) -> Outcome:
    """Let a draining server have new desktops again. body: server."""
    row = _living(db, command.body["server"])
    if isinstance(row, Rejected):
        return row
    if not row["draining"]:
        return Applied()
    db.execute("update servers set draining = 0 where id = ?", [row["id"]])
    if row["state"] == ServerState.DRAINING:
        _enter(db, command, row, ServerState.UP)
    note(db, command, "server", row["id"], f"{row['name']} drains no longer")
    return Applied()


def remove_server(db: Database, command: Command) -> Outcome:
    """Take a server out of the grid for good; it need not be there.

    body: server, and what was weighed before: running? (ids of the servers that were up; if others are now, the
    command is rejected), although? (reasons against it that were overridden, for the history)
    """
    row = one(db, "select * from servers where id = ?", [command.body["server"]])
    if row is None:
        return _unknown(command.body["server"])
    if row["state"] == ServerState.REMOVED:
        return Applied()
    if (refusal := _moved_on(db, command)) is not None:
        return refusal
    others = scalar(
        db,
        "select count(*) as n from servers where id <> ? and role = ? and state not in (?, ?)",
        [row["id"], ServerRole.SERVER, ServerState.REMOVED, ServerState.JOINING],
    )
    if others == 0:
        return Rejected("refused", f"{row['name']} is the last server of the grid: the grid would be gone with it")
    _enter(db, command, row, ServerState.REMOVED)
    note(db, command, "server", row["id"], f"{row['name']} was removed from the grid{_although(command)}")
    return Applied()


def set_setting(db: Database, command: Command) -> Outcome:
    """Store a grid-wide setting. body: name, value."""
    name = command.body["name"]
    try:
        value = settings.check(name, command.body["value"])
    except Refused as error:
        return Rejected(error.code, error.message)
    before = settings_now(db)
    problems = settings.problems({**before, name: value})
    if problems:
        return Rejected("refused", "; ".join(problems))
    if before[name] == value:
        return Applied({"before": value})
    db.execute(
        "insert into settings (k, v) values (?, ?) on conflict (k) do update set v = excluded.v", [name, str(value)]
    )
    note(db, command, "setting", name, f"{name} changed from {before[name]} to {value}")
    return Applied({"before": before[name]})


def _living(db: Database, server: str) -> Row | Rejected:
    row = one(db, "select * from servers where id = ?", [server])
    if row is None:
        return _unknown(server)
    if row["state"] == ServerState.REMOVED:
        return Rejected(
            "refused", f"server {row['name']!r} was removed from the grid: it may join again as a new one"
        )
    return row


def _moved_on(db: Database, command: Command) -> Rejected | None:
    """Refuse what was decided while other servers were up than now: the reasons against it may be others too."""
    believed = command.body.get("running")
    now = [row["id"] for row in rows(db, _RUNNING, [ServerState.UP, ServerState.DRAINING])]
    if believed is None or sorted(believed) == now:
        return None
    return Rejected("conflict", "a server went or came in this moment: look at the grid again, then decide anew")


def _although(command: Command) -> str:
    reasons = "; ".join(command.body.get("although", ()))
    return f", although: {reasons}" if reasons else ""


def _unknown(server: str) -> Rejected:
    return Rejected("not_found", f"no server {server} in this grid")


def _enter(db: Database, command: Command, row: Row, state: ServerState) -> None:
    db.execute("update servers set state = ?, changed_at = ? where id = ?", [state, command.at, row["id"]])


APPLIERS: Mapping[str, Applier] = {
    "grid.create": create_grid,
    "server.add": add_server,
    "server.announce": announce_server,
    "server.up": server_up,
    "server.lost": server_lost,
    "server.drain": drain_server,
    "server.undrain": undrain_server,
    "server.remove": remove_server,
    **INVITATIONS,
    "setting.set": set_setting,
}
