"""Log-ins on a server that is cut off, and how the grid takes them over afterwards.

A session that was opened there is valid everywhere, unless its built-in account
was closed meanwhile or has another password: then it ends. Wrong passwords are
counted there alone; only that a name had to wait goes into the history.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sqlite_utils import Database

from kmgr.grid.envelope import Applied, Command
from kmgr.grid.history import note
from kmgr.grid.rows import one, scalar
from kmgr.grid.settle import IslandRule, IslandRules, Record, Told
from kmgr.users.model import BUILT_IN

_FIELDS = ("hash", "name", "display_name", "groups", "role", "source", "address", "server", "expires_at")


def settle_open(db: Database, command: Command, values: Mapping[str, Any], _: Told) -> None:
    """Let a session be valid everywhere, as who its person is now."""
    groups, role, shown = (
        json.dumps([str(group) for group in values["groups"]]),
        values["role"],
        values["display_name"],
    )
    if values["source"] == BUILT_IN:
        row = one(db, "select * from accounts where name = ?", [values["name"]])
        if row is None or row["disabled"] or _digest(str(row["password_hash"])) != values["account"]:
            text = f"a session of {values['name']} has ended: the account was changed while its server was cut off"
            note(db, command, "session", str(values["name"]), text)
            return
        groups, role, shown = row["groups"], row["role"], row["display_name"]
    db.execute(
        "insert or ignore into sessions (hash, name, display_name, groups, role, source, address, server, created_at,"
        " expires_at) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            *(values["hash"], values["name"], shown, groups, role, values["source"], values["address"]),
            *(values["server"], values["at"], values["expires_at"]),
        ],
    )


def settle_close(db: Database, _: Command, values: Mapping[str, Any], __: Told) -> None:
    """End a session everywhere."""
    db.execute("delete from sessions where hash = ?", [values["hash"]])


def settle_close_all(db: Database, _: Command, values: Mapping[str, Any], __: Told) -> None:
    """End every session of a person, also those that were opened elsewhere meanwhile."""
    db.execute("delete from sessions where name = ?", [values["name"]])


def _opened(db: Database, command: Command, _: Applied) -> Record | None:
    body = command.body
    hashed = scalar(db, "select password_hash from accounts where name = ?", [body["name"]], default="")
    account = _digest(str(hashed)) if body["source"] == BUILT_IN else ""
    kept = {field: body[field] for field in _FIELDS}
    return Record(f"session:{body['hash']}", {**kept, "at": command.at, "account": account})


def _closed(_: Database, command: Command, __: Applied) -> Record | None:
    return Record(f"session:{command.body['hash']}", {"hash": command.body["hash"]})


def _closed_all(_: Database, command: Command, __: Applied) -> Record | None:
    return Record(f"person:{command.body['name']}", {"name": command.body["name"]})


def _digest(password_hash: str) -> str:
    return hashlib.sha256(password_hash.encode()).hexdigest()


ISLAND: IslandRules = {
    "session.open": IslandRule(record=_opened, settle=settle_open),
    "session.close": IslandRule(record=_closed, settle=settle_close),
    "session.close_all": IslandRule(record=_closed_all, settle=settle_close_all),
    "session.expire": IslandRule(),
    "login.failed": IslandRule(),
}
