"""Reads of the users package: rows of the state → records."""

import json

from sqlite_utils import Database

from kmgr.grid.rows import Row, one, rows
from kmgr.ids import AccountName, ServerId, TemplateId
from kmgr.users.model import Account, Assignment, DirectoryConfig, Person, Role, Session, SubjectKind


def accounts(db: Database) -> tuple[Account, ...]:
    """Return the built-in accounts by name."""
    return tuple(_account(row) for row in rows(db, "select * from accounts order by name"))


def account(db: Database, name: str) -> Account | None:
    """Return one built-in account, or None."""
    row = one(db, "select * from accounts where name = ?", [name])
    return None if row is None else _account(row)


def assignments(db: Database, template: TemplateId | None = None) -> tuple[Assignment, ...]:
    """Return who may use which template, or one template."""
    where, values = ("where template = ?", [template]) if template else ("", [])
    found = rows(db, f"select * from assignments {where} order by template, kind, subject", values)  # noqa: S608
    return tuple(Assignment(row["template"], SubjectKind(row["kind"]), row["subject"]) for row in found)


def sessions(db: Database) -> tuple[Session, ...]:
    """Return all sessions, the newest first."""
    return tuple(_session(row) for row in rows(db, "select * from sessions order by created_at desc, hash"))


def session_by_hash(db: Database, token_hash: str) -> Session | None:
    """Return the session whose token has this hash, expired or not; None if there is none."""
    row = one(db, "select * from sessions where hash = ?", [token_hash])
    return None if row is None else _session(row)


def directories(db: Database) -> tuple[DirectoryConfig, ...]:
    """Return the configured LDAP and AD directories, in the order in which they are asked: the oldest first."""
    return tuple(_directory(row) for row in rows(db, "select * from directories order by created_at, id"))


def locked_until(db: Database, name: str) -> int:
    """Return until when (ms) log-ins of a name must wait, 0 if they need not."""
    row = one(db, "select locked_until from login_failures where name = ?", [name])
    return int(row["locked_until"]) if row else 0


def _account(row: Row) -> Account:
    return Account(
        name=AccountName(row["name"]),
        display_name=row["display_name"],
        role=Role(row["role"]),
        groups=tuple(json.loads(row["groups"])),
        disabled=bool(row["disabled"]),
        password_hash=row["password_hash"],
        created_at=row["created_at"],
        changed_at=row["changed_at"],
    )


def _session(row: Row) -> Session:
    person = Person(
        name=AccountName(row["name"]),
        display_name=row["display_name"],
        groups=tuple(json.loads(row["groups"])),
        role=Role(row["role"]),
        source=row["source"],
    )
    return Session(row["hash"], person, row["address"], ServerId(row["server"]), row["created_at"], row["expires_at"])


def _directory(row: Row) -> DirectoryConfig:
    return DirectoryConfig(
        id=row["id"],
        urls=tuple(json.loads(row["urls"])),
        base_dn=row["base_dn"],
        user_filter=row["user_filter"],
        bind_name=row["bind_name"],
        ca_pem=row["ca_pem"],
        start_tls=bool(row["start_tls"]),
        admin_group=row["admin_group"],
    )
