"""Three short ways to ask SQLite, shared by all appliers and queries."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from sqlite_utils import Database

Row: TypeAlias = dict[str, Any]


def rows(db: Database, sql: str, params: Sequence[Any] = ()) -> list[Row]:
    """Return all rows as dicts. The statement must order them: an unordered read may differ between servers."""
    return list(db.query(sql, list(params)))


def one(db: Database, sql: str, params: Sequence[Any] = ()) -> Row | None:
    """Return the first row, or None."""
    return next(iter(rows(db, sql, params)), None)


def scalar(db: Database, sql: str, params: Sequence[Any] = (), default: Any = None) -> Any:
    """Return the first column of the first row, or `default` if there is no row or it is null."""
    row = one(db, sql, params)
    value = next(iter(row.values())) if row else None
    return default if value is None else value
