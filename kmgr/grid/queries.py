"""Reads of the grid package: rows of the state → records. Any thread, on a connection lent by `Grid.view()`."""

from sqlite_utils import Database

from kmgr.grid.model import Event, GridInfo, InvitationState, Server, ServerRole, ServerState, StoredInvitation
from kmgr.grid.rows import Row, one, rows
from kmgr.ids import ServerId
from kmgr.settings import SETTINGS


def grid_info(db: Database) -> GridInfo | None:
    """Return the grid itself, or None while the log has not created it yet."""
    row = one(db, "select id, name, ca_cert_pem, ca_key_sealed, created_at from grid order by id")
    return None if row is None else GridInfo(**row)


def servers(db: Database, *, removed: bool = False) -> tuple[Server, ...]:
    """Return the grid's servers by name; those that were removed only if asked."""
    found = (_server(row) for row in rows(db, "select * from servers order by name, joined_at, id"))
    return tuple(server for server in found if removed or server.state is not ServerState.REMOVED)


def server(db: Database, server: ServerId) -> Server | None:
    """Return one server, removed or not, or None if the grid never knew it."""
    row = one(db, "select * from servers where id = ?", [server])
    return None if row is None else _server(row)


def events(
    db: Database, *, before: int | None = None, limit: int = 100, subject: str | None = None, kind: str | None = None
) -> tuple[Event, ...]:
    """Return lines of the history, newest first; `before` (an event's `n`) continues an earlier page."""
    wanted: list[tuple[str, str | int]] = []
    if before is not None:
        wanted.append(("n < ?", before))
    if subject is not None:
        wanted.append(("subject = ?", subject))
    if kind is not None:
        wanted.append(("kind = ?", kind))
    where = " and ".join(clause for clause, _ in wanted) or "1"
    found = rows(
        db,
        f"select n, at, by, kind, subject, text from events where {where} order by n desc limit ?",  # noqa: S608
        [*(value for _, value in wanted), limit],
    )
    return tuple(Event(**row) for row in found)


def settings(db: Database) -> dict[str, int]:
    """Return every grid-wide setting: the stored value, or its default."""
    stored = {row["k"]: int(row["v"]) for row in rows(db, "select k, v from settings order by k")}
    return {name: stored.get(name, setting.default) for name, setting in SETTINGS.items()}


def invitations(db: Database) -> tuple[StoredInvitation, ...]:
    """Return the invitations that the grid remembers, newest first; at most one of them is open."""
    found = rows(
        db,
        "select id, sealed, state, created_by, created_at, expires_at, tries_left, used_by from invitations"
        " order by created_at desc, id",
    )
    return tuple(StoredInvitation(**{**row, "state": InvitationState(row["state"])}) for row in found)


def key_hash(db: Database, server: ServerId) -> str:
    """Return the SHA-256 of the public key that a server joined with; empty for the grid's first one."""
    row = one(db, "select key_hash from servers where id = ?", [server])
    return "" if row is None else str(row["key_hash"])


def _server(row: Row) -> Server:
    return Server(
        id=ServerId(row["id"]),
        name=row["name"],
        grid_address=row["grid_address"],
        web_address=row["web_address"],
        state=ServerState(row["state"]),
        version=row["version"],
        fingerprint=row["fingerprint"],
        joined_at=row["joined_at"],
        changed_at=row["changed_at"],
        role=ServerRole(row["role"]),
    )
