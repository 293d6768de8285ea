"""What several of the package's changes ask about a desktop's row, and how a new one is recorded.

Runs on the thread that applies the log.
"""

from sqlite_utils import Database

from kmgr.grid.envelope import Command, Rejected
from kmgr.grid.model import PLACEABLE, ServerRole, ServerState
from kmgr.grid.rows import Row, one, scalar
from kmgr.provision.lifecycle import LIVING
from kmgr.provision.model import DesktopState as S
from kmgr.provision.model import Purpose
from kmgr.provision.outfit import outfit
from kmgr.templates.model import Kind
from kmgr.templates.policy import computer_name, from_json
from kmgr.templates.versions import OVER

_LIVING_SQL = ", ".join(f"'{state}'" for state in LIVING)
_OVER_SQL = ", ".join(f"'{stand}'" for stand in OVER)
_OWNED_SQL = "kind = 'personal' and user is not null"


def desktop_row(db: Database, command: Command) -> Row | Rejected:
    """Return the desktop that a change names, or the refusal if there is none. body: desktop."""
    row = one(db, "select * from desktops where id = ?", [command.body["desktop"]])
    return row if row is not None else Rejected("not_found", f"there is no desktop {command.body['desktop']}")


def add_desktop(
    db: Database,
    command: Command,
    template: Row,
    *,
    kind: str,
    user: str | None = None,
    purpose: str = Purpose.USE,
) -> str:
    """Record a new desktop of a template and return its name, the template's next one.

    body: desktop, version, server. What is a `user`'s from the beginning counts as claimed at once.
    """
    body, name = command.body, next_name(db, template)
    db.execute(
        "insert into desktops (id, name, template, version, server, state, generation, vcpus, memory_mib, user,"
        " claimed_at, step, cause, created_at, changed_at, ready_at, kind, purpose, outfit)"
        " values (?, ?, ?, ?, ?, ?, 1, ?, ?, ?, ?, '', '', ?, ?, null, ?, ?, ?)",
        [
            *(body["desktop"], name, template["id"], body["version"], body["server"], S.PLACED, template["vcpus"]),
            *(template["memory_mib"], user, None if user is None else command.at, command.at, command.at),
            *(kind, purpose, outfit(from_json(template["policy"]))),
        ],
    )
    return name


def takes_desktops(server: Row) -> bool:
    """Tell whether a server may be given desktops now."""
    return server["role"] == ServerRole.SERVER and ServerState(server["state"]) in PLACEABLE


def next_name(db: Database, template: Row) -> str:
    """Return the next name for a desktop of a template, and let the template go on behind it.

    A name may be taken although the template never gave it: by a desktop of a
    deleted template of the same name that is not removed yet.
    """
    pattern = from_json(template["policy"]).name_pattern
    number = int(template["next_number"])
    while taken(db, name := computer_name(pattern, template["name"], number)):
        number += 1
    db.execute("update templates set next_number = ? where id = ?", [number + 1, template["id"]])
    return name


def taken(db: Database, name: str) -> bool:
    """Tell whether a desktop has this name; it is a host name, for which large and small letters are the same."""
    return one(db, "select id from desktops where lower(name) = lower(?)", [name]) is not None


def living(db: Database, template: Row, server: str | None = None) -> int:
    """Count the living desktops of a template, on one server or on all."""
    where = "template = ? and (? is null or server = ?) and purpose = 'use'"
    # A personal desktop that is broken still is somebody's, with all that they saved.
    alive = f"(state in ({_LIVING_SQL}) or (state = 'broken' and {_OWNED_SQL}))"
    sql = f"select count(*) from desktops where {where} and {alive}"  # noqa: S608 - own names
    return int(scalar(db, sql, [template["id"], server, server]))


def owned(row: Row) -> bool:
    """Tell whether a row is a personal desktop that is somebody's."""
    return row["kind"] == Kind.PERSONAL and row["user"] is not None and row["state"] != S.RETIRED


def owned_row(db: Database, command: Command) -> Row | Rejected:
    """Return a personal desktop that is somebody's, of the generation that was believed."""
    row = desktop_row(db, command)
    if isinstance(row, Rejected):
        return row
    if not owned(row):
        return Rejected("refused", f"desktop {row['name']} is nobody's personal desktop")
    if row["generation"] != command.body["generation"]:
        told = f"desktop {row['name']} is at generation {row['generation']}, not {command.body['generation']}"
        return Rejected("conflict", told)
    return row


def own_desktop(db: Database, user: str, template: str) -> Row | None:
    """Return the desktop of a template that a user has, None if they have none."""
    # A personal desktop is its user's wherever its server is; a pooled one is forgotten with its server.
    mine = one(
        db,
        f"select * from desktops where user = ? and template = ? and {_OWNED_SQL} and state <> ?"  # noqa: S608
        " order by claimed_at, id",
        [user, template, S.RETIRED],
    )
    return mine or one(
        db,
        "select d.* from desktops d join servers s on s.id = d.server where d.user = ? and d.template = ?"
        " and d.state = ? and s.state in (?, ?) and d.purpose = 'use' order by d.claimed_at, d.id",
        [user, template, S.IN_USE, ServerState.UP, ServerState.DRAINING],
    )


def best_standby(db: Database, template: str) -> Row | None:
    """Return the standby of a template that is given away next, None if none is ready."""
    # The template's present version before others, least used server first, then the one that waits longest. Of a
    # version that was stopped or withdrawn nobody is given one, though it may be ready.
    return one(
        db,
        "select d.* from desktops d join servers s on s.id = d.server join templates t on t.id = d.template"  # noqa: S608
        " left join template_versions v on v.template = d.template and v.version = d.version"
        " left join (select server, count(*) as used from desktops where state = ? group by server) u"
        " on u.server = d.server"
        f" where d.template = ? and d.state = ? and s.state = ? and coalesce(v.stand, '') not in ({_OVER_SQL})"
        " and d.purpose = 'use' order by d.version = t.version desc,"
        " coalesce(u.used, 0), d.ready_at, d.id limit 1",
        [S.IN_USE, template, S.READY, ServerState.UP],
    )


def fenced(db: Database, command: Command) -> Row | Rejected:
    """Return a desktop of the generation and on the server that were believed, or the refusal: it moved on since.

    body: desktop, generation, server
    """
    body, row = command.body, desktop_row(db, command)
    if isinstance(row, Rejected):
        return row
    if row["generation"] != body["generation"] or row["server"] != body["server"]:
        return Rejected(
            "conflict",
            f"desktop {row['name']} is at generation {row['generation']} on {row['server']}, not "
            f"{body['generation']} on {body['server']} (any more)",
        )
    return row
