"""Pages of a long list of desktops, cut out by SQLite: a grid of ten thousand is not read to show a hundred."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlite_utils import Database

from kmgr.grid.rows import rows
from kmgr.provision.model import Desktop, DesktopState
from kmgr.provision.queries import record

MOST_WORDS = 8
_ESCAPE = str.maketrans({"%": r"\%", "_": r"\_", "\\": r"\\"})
_NAMED = ("d.name", "coalesce(d.user, '')", "coalesce(t.name, '')", "coalesce(s.name, '')")


@dataclass(frozen=True, slots=True)
class Filter:
    """What desktops are looked for; empty: all. Each of the `words` is somewhere in the names of desktop, user,
    template and server.
    """  # fmt: skip

    state: str = ""
    template: str = ""
    server: str = ""
    user: str = ""
    words: str = ""


def page(db: Database, wanted: Filter, *, limit: int, after: tuple[str, str] | None = None) -> tuple[Desktop, ...]:
    """Return the next desktops by name and id, behind `after` (name, id)."""
    clauses, values = _clauses(wanted)
    if after is not None:
        clauses.append("(d.name, d.id) > (?, ?)")
        values += after
    sql = f"select d.* {_FROM} where {' and '.join(clauses)} order by d.name, d.id limit ?"
    return tuple(record(row) for row in rows(db, sql, [*values, limit]))


def counts(db: Database, wanted: Filter) -> Mapping[str, int]:
    """Return how many there are in each state, whatever state is wanted."""
    clauses, values = _clauses(Filter("", wanted.template, wanted.server, wanted.user, wanted.words))
    sql = f"select d.state, count(*) as n {_FROM} where {' and '.join(clauses)} group by d.state order by d.state"
    found = {row["state"]: int(row["n"]) for row in rows(db, sql, values)}
    return {str(state): found.get(state, 0) for state in DesktopState}


_FROM = "from desktops d left join templates t on t.id = d.template left join servers s on s.id = d.server"


def _clauses(wanted: Filter) -> tuple[list[str], list[str]]:
    plain = {"d.state": wanted.state, "d.template": wanted.template, "d.server": wanted.server, "d.user": wanted.user}
    clauses, values = ["1"], []
    for column, value in plain.items():
        if value:
            clauses.append(f"{column} = ?")
            values.append(value)
    for word in wanted.words.split()[:MOST_WORDS]:
        clauses.append(" || ' ' || ".join(_NAMED) + r" like ? escape '\'")
        values.append(f"%{word.translate(_ESCAPE)}%")
    return clauses, values
