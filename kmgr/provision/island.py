"""What a cut-off server may do with its own desktops, and how the grid takes that over afterwards.

A server is the only authority on what really happened to its own desktops; the
grid may have decided otherwise meanwhile, without anybody there to hear it.

Rule 1: whoever was given a desktop there keeps it, whatever the grid had decided
about it: it may hold what they work on, and nobody else could see it.
Rule 2: a user who has another one of the template keeps one of the two: the one
on the island if it is looked at or was given in the knowledge of the other, else
the other one. No clocks are compared.
Rule 3: what nobody uses follows the grid: retired stays retired.
Rule 4: a desktop that the grid made anew meanwhile is not the one of the island.

Deterministic, total, and the same when done twice.
"""

from collections.abc import Mapping
from typing import Any

from sqlite_utils import Database

from kmgr.grid.envelope import Applied, Command, Outcome
from kmgr.grid.history import note
from kmgr.grid.island_rules import most_here
from kmgr.grid.model import ServerState
from kmgr.grid.queries import servers
from kmgr.grid.rows import Row, one, rows
from kmgr.grid.settle import IslandRule, IslandRules, Record, Told
from kmgr.ids import ServerId
from kmgr.provision.commands import place_below
from kmgr.provision.desktop_rows import living, next_name, taken
from kmgr.provision.lifecycle import LIFECYCLE, Event
from kmgr.provision.model import DesktopState as S
from kmgr.provision.queries import tenure_of
from kmgr.templates.model import Kind

# What a row has that an island of an older release recorded without it.
_LACKING = {"kind": "pooled", "origin": "cold", "trouble": "", "purpose": "use", "outfit": ""}
# What must have happened to a desktop of the grid's record so that it is in the island's state.
_WAYS: Mapping[S, tuple[Event, ...]] = {
    S.PLACED: (),
    S.BUILDING: (Event.STARTED,),
    S.READY: (Event.STARTED, Event.ANSWERED),
    S.IN_USE: (Event.KEPT,),
    S.BROKEN: (Event.FAILED,),
    S.RETIRED: (Event.RETIRED,),
}
_COLUMNS = (
    "id", "name", "template", "version", "server", "state", "generation", "vcpus", "memory_mib", "user", "claimed_at",
    "step", "cause", "created_at", "changed_at", "ready_at", "kind", "moving_to", "connected_at", "disconnected_at",
    "origin", "trouble", "purpose", "outfit",
)  # fmt: skip


def place_here(db: Database, command: Command) -> Outcome:
    """Place a desktop on an island: up to what the maximum leaves, but at least this server's share of it."""
    server = str(command.body["server"])

    def limit(template: Row) -> tuple[int, int]:
        here, everywhere = living(db, template, server), living(db, template)
        return here, most_here(template["maximum"], everywhere - here, servers(db))

    return place_below(db, command, limit)


def settle_desktop(db: Database, command: Command, values: Mapping[str, Any], told: Told) -> None:
    """Make the grid's record of a desktop agree with its own server's. values: desktop, generation, row, knew."""
    known = one(db, "select * from desktops where id = ?", [values["desktop"]])
    mine: Row | None = values["row"]
    newer = known is not None and (known["server"] != told.server or known["generation"] > values["generation"])
    if newer or (mine is not None and mine["server"] != told.server):
        return
    if mine is None:
        _gone(db, command, known)
        return
    if known is None:
        _insert(db, mine)
    else:
        _follow(db, command, known, mine)
    if mine["state"] == S.IN_USE:
        _one_of_two(db, command, mine, values["knew"], told)


def _gone(db: Database, command: Command, known: Row | None) -> None:
    if known is not None:
        db.execute("delete from desktops where id = ?", [known["id"]])
        _deprived(db, command, known, None)


def _insert(db: Database, mine: Row) -> None:
    template = one(db, "select * from templates where id = ?", [mine["template"]])
    row = {column: mine.get(column, _LACKING.get(column)) for column in _COLUMNS}
    if template is None and row["state"] != S.IN_USE:
        row["state"] = S.RETIRED
    if template is not None:
        row["name"] = _free_name(db, template, str(mine["name"]))
    elif taken(db, str(row["name"])):
        row["name"] = row["id"]
    marks = ", ".join("?" for _ in _COLUMNS)
    db.execute(f"insert into desktops ({', '.join(_COLUMNS)}) values ({marks})", list(row.values()))  # noqa: S608


def _free_name(db: Database, template: Row, wanted: str) -> str:
    """Return a name that no desktop has, and let the template go on behind it."""
    if taken(db, wanted):
        return next_name(db, template)
    told = wanted.rpartition("-")[2]
    number = max(int(template["next_number"]), int(told) + 1 if told.isascii() and told.isdecimal() else 0)
    db.execute("update templates set next_number = ? where id = ?", [number, template["id"]])
    return wanted


def _follow(db: Database, command: Command, known: Row, mine: Row) -> None:
    """Let the events of the island happen to the grid's record, as far as the life of a desktop allows."""
    state = S(known["state"])
    for event in _WAYS[S(mine["state"])]:
        state = LIFECYCLE[state].get(event, state)
    if state == S.BROKEN and mine["state"] == S.BROKEN:
        db.execute(
            "update desktops set step = ?, cause = ?, trouble = ? where id = ?",
            [mine["step"], mine["cause"], mine.get("trouble", ""), known["id"]],
        )
    if state == S.READY and mine["state"] == S.READY:
        db.execute("update desktops set ready_at = ? where id = ?", [mine["ready_at"], known["id"]])
    if mine["user"] is not None:
        db.execute(
            "update desktops set user = ?, claimed_at = ?, ready_at = ?, generation = ?, step = '', cause = ''"
            " where id = ?",
            [mine["user"], mine["claimed_at"], mine["ready_at"], mine["generation"], known["id"]],
        )
    if state != known["state"]:
        db.execute("update desktops set state = ?, changed_at = ? where id = ?", [state, command.at, known["id"]])
    if mine["state"] in (S.IN_USE, S.RETIRED):
        _deprived(db, command, known, mine["user"])


def _deprived(db: Database, command: Command, known: Row, user: str | None) -> None:
    """Say so if somebody else had been given the desktop by the grid: they get another one when they ask."""
    if known["state"] == S.IN_USE and known["user"] != user:
        other = user or "nobody any more"
        text = f"desktop {known['name']} is not {known['user']}'s: while its server was cut off it was {other}'s"
        note(db, command, "desktop", known["id"], text)


def _one_of_two(db: Database, command: Command, mine: Row, knew: list[str], told: Told) -> None:
    others = rows(
        db,
        "select d.* from desktops d join servers s on s.id = d.server where d.user = ? and d.template = ?"
        " and d.state = ? and s.state in (?, ?) and d.id <> ? order by d.id",
        [mine["user"], mine["template"], S.IN_USE, ServerState.UP, ServerState.DRAINING, mine["id"]],
    )
    for other in others:
        stays = mine["id"] in told.connected or other["id"] in knew
        goes = other["id"] if stays else mine["id"]
        row = one(db, "select * from desktops where id = ?", [goes])
        if row is None or row["state"] != S.IN_USE:
            continue
        db.execute("update desktops set state = ?, changed_at = ? where id = ?", [S.RETIRED, command.at, goes])
        text = f"desktop {row['name']} is removed: {row['user']} had got another one while a server was cut off"
        note(db, command, "desktop", goes, text)
        if not stays:
            return


def _desktop(db: Database, id: str, *, generation: int = 0, knew: tuple[str, ...] = ()) -> Record | None:
    row = one(db, "select * from desktops where id = ?", [id])
    reached = row["generation"] if row else generation
    return Record(f"desktop:{id}", {"desktop": id, "generation": reached, "row": row, "knew": list(knew)})


def _reported(db: Database, command: Command, _: Applied) -> Record | None:
    return _desktop(db, str(command.body["desktop"]), generation=int(command.body.get("generation", 0)))


def _claimed(db: Database, command: Command, made: Applied) -> Record | None:
    if not made.values["new"]:
        return None
    sql = "select id from desktops where user = ? and template = ? and state = ? and id <> ? order by id"
    body, desktop = command.body, str(made.values["desktop"])
    knew = tuple(row["id"] for row in rows(db, sql, [body["user"], body["template"], S.IN_USE, desktop]))
    return _desktop(db, desktop, knew=knew)


def _elsewhere(_: Database, command: Command, own: ServerId) -> str:
    return "" if command.body["server"] == own else "a server that is cut off has only its own desktops"


def _not_pooled(db: Database, command: Command, own: ServerId) -> str:
    """Refuse a new desktop of a personal template: two servers that are cut off would give somebody one each."""
    row = one(db, "select name, kind from templates where id = ?", [command.body["template"]])
    if _goes_on_here(db, command, own):
        return ""
    if row is None or row["kind"] != Kind.PERSONAL:
        return _elsewhere(db, command, own) if "server" in command.body else ""
    return (
        f"Desktops of {row['name']} are personal, and this server is cut off from the majority of the grid: another "
        "server could be running yours, so it is opened or started only when a majority is back."
    )


def _goes_on_here(db: Database, command: Command, own: ServerId) -> bool:
    """Tell whether a user asks for their personal desktop that runs here without a majority."""
    mine = one(
        db,
        "select id from desktops where template = ? and user = ? and server = ? and kind = ? and state = ?",
        [command.body["template"], command.body.get("user"), own, Kind.PERSONAL, S.IN_USE],
    )
    return mine is not None and tenure_of(db, own) != ""


def _not_here(db: Database, command: Command, own: ServerId) -> str:
    row = one(
        db,
        "select d.name, d.server, d.kind, d.user, s.name as home from desktops d"
        " left join servers s on s.id = d.server where d.id = ?",
        [command.body["desktop"]],
    )
    if row is not None and row["kind"] == Kind.PERSONAL and row["user"] is not None:
        return f"Desktop {row['name']} is personal: what happens to it waits until a majority of the grid is back."
    if row is None or row["server"] == own:
        return ""
    return (
        f"Desktop {row['name']} runs on {row['home'] or row['server']}, and this server is cut off from it: try "
        "again when it is back."
    )


_REPORT = IslandRule(refuse=_elsewhere, record=_reported, settle=settle_desktop)
_ORDER = IslandRule(refuse=_not_here, record=_reported, settle=settle_desktop)

ISLAND: IslandRules = {
    "desktop.place": IslandRule(refuse=_not_pooled, record=_reported, settle=settle_desktop, apply=place_here),
    "desktop.building": _REPORT,
    "desktop.ready": _REPORT,
    "desktop.failed": _REPORT,
    "desktop.removed": _REPORT,
    "desktop.claim": IslandRule(refuse=_not_pooled, record=_claimed, settle=settle_desktop),
    "desktop.release": _ORDER,
    "desktop.retire": _ORDER,
}
