"""Reads of the provision package: rows of the state → records."""

from sqlite_utils import Database

from kmgr.grid.rows import Row, one, rows, scalar
from kmgr.ids import AccountName, DesktopId, ServerId, TemplateId
from kmgr.provision.causes import known
from kmgr.provision.model import (
    Ask,
    Copy,
    CopyState,
    Desktop,
    DesktopState,
    Failure,
    Origin,
    Purpose,
    Stage,
    TakeOver,
)
from kmgr.templates.model import Kind


def desktops(
    db: Database,
    *,
    template: TemplateId | None = None,
    server: ServerId | None = None,
    user: AccountName | None = None,
) -> tuple[Desktop, ...]:
    """Return the desktops that match all that is given, by name; retired ones included until they are removed."""
    wanted = {"template": template, "server": server, "user": user}
    given = [(column, value) for column, value in wanted.items() if value is not None]
    where = " and ".join(f"{column} = ?" for column, _ in given) or "1"
    found = rows(db, f"select * from desktops where {where} order by name, id", [value for _, value in given])  # noqa: S608
    return tuple(record(row) for row in found)


def left_alone(db: Database) -> tuple[Desktop, ...]:
    """Return the pooled desktops that are somebody's and of which the log knows no open screen."""
    found = rows(
        db,
        "select * from desktops where state = 'in_use' and kind = 'pooled' and purpose = 'use'"
        " and (connected_at is null or disconnected_at is not null) order by id",
    )
    return tuple(record(row) for row in found)


def outline(db: Database, server: ServerId) -> tuple[tuple[str, str, int], ...]:
    """Return id, state and generation of a server's desktops: cheap to ask and to compare."""
    found = rows(db, "select id, state, generation from desktops where server = ? order by id", [server])
    return tuple((row["id"], row["state"], row["generation"]) for row in found)


def desktop(db: Database, desktop: DesktopId) -> Desktop | None:
    """Return one desktop, or None if it is gone."""
    row = one(db, "select * from desktops where id = ?", [desktop])
    return None if row is None else record(row)


def life(db: Database, desktop: DesktopId) -> tuple[Stage, ...]:
    """Return the stages of a desktop's life, the first one first; of a long life the last ones."""
    found = rows(
        db,
        "select n, at, state, generation, server, user, step, cause from stages where desktop = ? order by n",
        [desktop],
    )
    return tuple(Stage(**{**row, "state": DesktopState(row["state"])}) for row in found)


def asks(db: Database, template: TemplateId | None = None) -> tuple[Ask, ...]:
    """Return who waits for a desktop of which template, or of one, who waits longest first."""
    where, values = ("where template = ?", [template]) if template else ("", [])
    found = rows(db, f"select * from asks {where} order by template, since, user", values)  # noqa: S608 - own names
    return tuple(Ask(**row) for row in found)


def failures(db: Database) -> tuple[Failure, ...]:
    """Return, per template and version, how often building failed in a row and why last."""
    return tuple(Failure(**row) for row in rows(db, "select * from failures order by template, version"))


def copies(db: Database, *, desktop: DesktopId | None = None, server: ServerId | None = None) -> tuple[Copy, ...]:
    """Return the disks of personal desktops elsewhere: all, or one desktop's, or one server's."""
    wanted = {"desktop": desktop, "server": server}
    given = [(column, value) for column, value in wanted.items() if value is not None]
    where = " and ".join(f"{column} = ?" for column, _ in given) or "1"
    sql = f"select * from copies where {where} order by desktop, server, generation"  # noqa: S608 - own names
    return tuple(Copy(**{**row, "state": CopyState(row["state"])}) for row in rows(db, sql, [v for _, v in given]))


def take_overs(db: Database, desktop: DesktopId | None = None) -> tuple[TakeOver, ...]:
    """Return the last start from a safe copy of every desktop that had one, or of one desktop."""
    found = rows(db, "select * from take_overs where ? is null or desktop = ? order by desktop", [desktop, desktop])
    return tuple(TakeOver(**row) for row in found)


def put_backs(db: Database) -> frozenset[DesktopId]:
    """Return the desktops of which a superseded disk is being put back, and which run nowhere until then."""
    return frozenset(DesktopId(row["desktop"]) for row in rows(db, "select desktop from put_backs order by desktop"))


def tenures(db: Database) -> frozenset[ServerId]:
    """Return the servers whose personal desktops nobody takes over (`provision.tenure_rules`)."""
    return frozenset(ServerId(row["server"]) for row in rows(db, "select server from tenures order by server"))


def tenure_of(db: Database, server: ServerId) -> str:
    """Return the name of a server's tenure, empty if it has none."""
    return str(scalar(db, "select tenure from tenures where server = ?", [server], default=""))


def record(row: Row) -> Desktop:
    """Make a record from a row."""
    words = {
        "state": DesktopState(row["state"]),
        "kind": Kind(row["kind"]),
        "origin": Origin(row["origin"]),
        "purpose": Purpose(row["purpose"]),
    }
    trouble = known(row["trouble"]) if row["cause"] else None
    return Desktop(**{**row, **words, "trouble": trouble})
