"""Replicated changes of the users package: one applier per command. Password hashes come ready made."""

import json
import re
from collections.abc import Mapping
from typing import Any

from sqlite_utils import Database

from kmgr.grid.envelope import Applied, Command, Outcome, Rejected
from kmgr.grid.fsm import Applier
from kmgr.grid.history import note
from kmgr.grid.rows import Row, one, rows, scalar
from kmgr.provision.belongings import forget_person, kept_for
from kmgr.users.model import BUILT_IN, DirectoryConfig, Role, SubjectKind, normalised, problem_of

_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")
_CHANGEABLE = ("display_name", "role", "groups", "disabled")

# However busy they are, people show once a week that they still know their password.
LONGEST_SESSION_MS = 7 * 86_400_000


def create_account(db: Database, command: Command) -> Outcome:
    """Add a built-in account. body: name, display_name, role, groups, password_hash."""
    body = command.body
    if not _NAME.fullmatch(str(body["name"])):
        return Rejected(
            "refused", f"{body['name']!r} cannot be an account's name: use small letters, digits and . _ - @"
        )
    if problem := _problem(body):
        return Rejected("refused", problem)
    if one(db, "select name from accounts where name = ?", [body["name"]]):
        return Rejected("conflict", f"there is already an account {body['name']}")
    db.execute(
        "insert into accounts (name, display_name, role, groups, disabled, password_hash, created_at, changed_at)"
        " values (?, ?, ?, ?, 0, ?, ?, ?)",
        [
            *(body["name"], body["display_name"], body["role"], _listed(body["groups"])),
            *(body["password_hash"], command.at, command.at),
        ],
    )
    note(db, command, "account", body["name"], f"account {body['name']} created ({body['role']})")
    return Applied({"name": body["name"]})


def update_account(db: Database, command: Command) -> Outcome:
    """Change an account; its sessions follow at once. body: name, any of display_name, role, groups, disabled."""
    row = _account(db, command)
    if isinstance(row, Rejected):
        return row
    changes = {key: value for key, value in command.body.items() if key != "name"}
    unknown = sorted(set(changes) - set(_CHANGEABLE))
    if unknown:
        return Rejected("refused", f"an account has no {', '.join(unknown)} that could be changed")
    if problem := _problem(changes):
        return Rejected("refused", problem)
    loses = changes.get("role", row["role"]) != Role.ADMIN or changes.get("disabled", row["disabled"])
    if loses and (refusal := _last_admin(db, row)):
        return refusal
    for key, value in sorted(changes.items()):
        stored = _listed(value) if key == "groups" else int(value) if key == "disabled" else value
        db.execute(
            f"update accounts set {key} = ?, changed_at = ? where name = ?",  # noqa: S608 - own names
            [stored, command.at, row["name"]],
        )
    _refresh_sessions(db, str(row["name"]))
    told = ", ".join(sorted(changes))
    note(db, command, "account", row["name"], f"account {row['name']} changed: {told}")
    return Applied()


def set_password(db: Database, command: Command) -> Outcome:
    """Give an account another password; closes its sessions. body: name, password_hash."""
    row = _account(db, command)
    if isinstance(row, Rejected):
        return row
    db.execute(
        "update accounts set password_hash = ?, changed_at = ? where name = ?",
        [command.body["password_hash"], command.at, row["name"]],
    )
    db.execute("delete from sessions where name = ?", [row["name"]])
    db.execute("delete from login_failures where name = ?", [row["name"]])
    note(db, command, "account", row["name"], f"account {row['name']} has a new password")
    return Applied()


def delete_account(db: Database, command: Command) -> Outcome:
    """Remove an account with what was given to it by name. body: name, moves. Never the last enabled administrator.

    Refused while desktops are kept for it: with them whoever gets the name later would get what somebody else saved.
    If it `moves`, the same person logs in by a directory from now on, and keeps what their name has.
    """
    row = _account(db, command)
    if isinstance(row, Rejected):
        return row
    if refusal := _last_admin(db, row):
        return refusal
    if command.body.get("moves"):
        return _moved(db, command, row["name"])
    if kept := kept_for(db, row["name"]):
        names = f"desktop{'s' if len(kept) > 1 else ''} {', '.join(kept)}"
        return Rejected(
            "conflict",
            f"{row['name']} has {names}, and whoever gets this name later would get what was saved there: delete "
            f"{'them' if len(kept) > 1 else 'it'} first, or disable the account instead; if the same person logs in "
            "by a directory from now on, say so, and they keep what they have",
        )
    forget_person(db, command, row["name"])
    _close_account(db, row["name"])
    # Whoever gets this name later is somebody else.
    db.execute("delete from assignments where kind = ? and subject = ?", [SubjectKind.USER, row["name"]])
    note(db, command, "account", row["name"], f"account {row['name']} deleted")
    return Applied()


def _moved(db: Database, command: Command, name: str) -> Outcome:
    if one(db, "select id from directories limit 1", []) is None:
        return Rejected("conflict", f"no directory is set up by which {name} could log in from now on: add it first")
    _close_account(db, name)
    said = f"account {name} deleted: {name} logs in by a directory and keeps their desktops"
    note(db, command, "account", name, said)
    return Applied()


def _close_account(db: Database, name: str) -> None:
    for table in ("accounts", "sessions", "login_failures"):
        db.execute(f"delete from {table} where name = ?", [name])  # noqa: S608 - own names


def add_assignment(db: Database, command: Command) -> Outcome:
    """Let a user, a group or everyone use a template. body: template, kind, subject."""
    body = command.body
    template = one(db, "select name from templates where id = ?", [body["template"]])
    if template is None:
        return Rejected("not_found", f"there is no template {body['template']}")
    if body["kind"] not in list(SubjectKind):
        return Rejected("refused", f"{body['kind']!r} is none of {', '.join(SubjectKind)}")
    subject = _subject(command)
    if body["kind"] != SubjectKind.EVERYONE and not subject:
        return Rejected("refused", f"say which {body['kind']} may use template {template['name']}")
    new = db.execute(
        "insert or ignore into assignments (template, kind, subject) values (?, ?, ?)",
        [body["template"], body["kind"], subject],
    ).rowcount
    if new:
        told = _told(str(body["kind"]), subject)
        note(db, command, "template", body["template"], f"template {template['name']} given to {told}")
    return Applied()


def remove_assignment(db: Database, command: Command) -> Outcome:
    """Take a template from a user, a group or everyone. body: template, kind, subject."""
    body, subject = command.body, _subject(command)
    gone = db.execute(
        "delete from assignments where template = ? and kind = ? and subject = ?",
        [body["template"], body["kind"], subject],
    ).rowcount
    if gone:
        row = one(db, "select name from templates where id = ?", [body["template"]])
        name = f"template {row['name']}" if row else "a template"
        note(db, command, "template", body["template"], f"{name} taken from {_told(str(body['kind']), subject)}")
    return Applied()


def open_session(db: Database, command: Command) -> Outcome:
    """Log a person in, unless their built-in account was closed a moment ago.

    body: hash, name, display_name, groups, role, source, address, server, expires_at
    """
    body = command.body
    if body["source"] == BUILT_IN:
        row = _account(db, command)
        if isinstance(row, Rejected) or row["disabled"]:
            return Rejected("not_allowed", "This account is disabled or gone. Ask your administrator.")
    db.execute(
        "insert or ignore into sessions (hash, name, display_name, groups, role, source, address, server, created_at,"
        " expires_at) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            *(body["hash"], body["name"], body["display_name"], _listed(body["groups"]), body["role"]),
            *(body["source"], body["address"], body["server"], command.at, body["expires_at"]),
        ],
    )
    db.execute("delete from login_failures where name = ?", [body["name"]])
    note(db, command, "session", body["name"], f"{body['name']} logged in from {body['address']}")
    return Applied()


def renew_session(db: Database, command: Command) -> Outcome:
    """Let a session that is in use go on, at most `LONGEST_SESSION_MS` from its log-in. body: hash, expires_at.

    One that has ended stays ended, and none is made shorter.
    """
    row = one(db, "select * from sessions where hash = ?", [command.body["hash"]])
    if row is None or row["expires_at"] <= command.at:
        return Rejected("not_logged_in", "this session has ended: log in again")
    until = max(row["expires_at"], min(command.body["expires_at"], row["created_at"] + LONGEST_SESSION_MS))
    db.execute("update sessions set expires_at = ? where hash = ?", [until, row["hash"]])
    return Applied({"expires_at": until})


def close_session(db: Database, command: Command) -> Outcome:
    """Log a person out. body: hash."""
    row = one(db, "select name from sessions where hash = ?", [command.body["hash"]])
    if row is not None:
        db.execute("delete from sessions where hash = ?", [command.body["hash"]])
        note(db, command, "session", row["name"], f"{row['name']} logged out")
    return Applied()


def close_all_sessions(db: Database, command: Command) -> Outcome:
    """End every session of a person. body: name."""
    gone = db.execute("delete from sessions where name = ?", [command.body["name"]]).rowcount
    if gone:
        note(db, command, "session", command.body["name"], f"{gone} sessions of {command.body['name']} closed")
    return Applied({"closed": gone})


def expire_sessions(db: Database, command: Command) -> Outcome:
    """Remove the sessions that ended before this command's time. body: nothing."""
    gone = db.execute("delete from sessions where expires_at < ?", [command.at]).rowcount
    db.execute(
        "delete from login_failures where locked_until < ? and last_at < ?", [command.at, command.at - 86_400_000]
    )
    return Applied({"expired": gone})


def login_failed(db: Database, command: Command) -> Outcome:
    """Count a wrong password; after `tries` in a row the name waits. body: name, tries, wait_s."""
    body = command.body
    db.execute(
        "insert into login_failures (name, n, last_at, locked_until) values (?, 1, ?, 0)"
        " on conflict (name) do update set n = n + 1, last_at = excluded.last_at",
        [body["name"], command.at],
    )
    n = scalar(db, "select n from login_failures where name = ?", [body["name"]])
    if n >= body["tries"]:
        until = command.at + body["wait_s"] * 1000
        db.execute("update login_failures set n = 0, locked_until = ? where name = ?", [until, body["name"]])
        note(db, command, "session", body["name"], f"too many wrong passwords for {body['name']}: log-ins wait")
    return Applied()


def set_directory(db: Database, command: Command) -> Outcome:
    """Add or change a directory.

    body: directory, urls, base_dn, user_filter, bind_name, ca_pem, start_tls, admin_group
    """
    body = command.body
    config = DirectoryConfig(
        id=str(body["directory"]),
        urls=tuple(str(url) for url in body["urls"]),
        base_dn=str(body["base_dn"]),
        user_filter=str(body["user_filter"]),
        bind_name=str(body["bind_name"]),
        ca_pem=str(body["ca_pem"]),
        start_tls=bool(body["start_tls"]),
        admin_group=str(body["admin_group"]),
    )
    if problem := problem_of(config):
        return Rejected("refused", problem)
    db.execute(
        "insert into directories (id, urls, base_dn, user_filter, bind_name, ca_pem, start_tls, admin_group,"
        " created_at, changed_at) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict (id) do update set"
        " urls = excluded.urls, base_dn = excluded.base_dn, user_filter = excluded.user_filter,"
        " bind_name = excluded.bind_name, ca_pem = excluded.ca_pem, start_tls = excluded.start_tls,"
        " admin_group = excluded.admin_group, changed_at = excluded.changed_at",
        [
            *(config.id, _listed(config.urls), config.base_dn, config.user_filter, config.bind_name),
            *(config.ca_pem, int(config.start_tls), config.admin_group, command.at, command.at),
        ],
    )
    note(
        db, command, "directory", body["directory"], f"directory {body['directory']} set to {', '.join(config.urls)}"
    )
    return Applied()


def remove_directory(db: Database, command: Command) -> Outcome:
    """Forget a directory. body: directory."""
    gone = db.execute("delete from directories where id = ?", [command.body["directory"]]).rowcount
    if not gone:
        return Rejected("not_found", f"there is no directory {command.body['directory']}")
    note(db, command, "directory", command.body["directory"], f"directory {command.body['directory']} removed")
    return Applied()


def _account(db: Database, command: Command) -> Row | Rejected:
    row = one(db, "select * from accounts where name = ?", [command.body["name"]])
    return row or Rejected("not_found", f"there is no account {command.body['name']}")


def _problem(fields: Mapping[str, Any]) -> str:
    """Say what no account can have; fields that are not given are no problem."""
    if fields.get("role", Role.USER) not in list(Role):
        return f"{fields['role']!r} is no role: choose {' or '.join(Role)}"
    if not isinstance(fields.get("display_name", ""), str):
        return "the name that is shown is a text"
    groups = fields.get("groups", ())
    if not isinstance(groups, list | tuple) or not all(isinstance(group, str) for group in groups):
        return "groups are a list of names"
    if not isinstance(fields.get("disabled", False), bool):
        return "an account is disabled or not: true or false"
    return ""


def _refresh_sessions(db: Database, name: str) -> None:
    # A session carries a copy of who its person is: what the account lost must not live on in it.
    db.execute(
        "delete from sessions where name = ? and (select disabled from accounts a where a.name = sessions.name)",
        [name],
    )
    db.execute(
        "update sessions set (display_name, groups, role) ="
        " (select display_name, groups, role from accounts a where a.name = sessions.name)"
        " where name = ? and source = ?",
        [name, BUILT_IN],
    )


def _subject(command: Command) -> str:
    return "" if command.body["kind"] == SubjectKind.EVERYONE else normalised(str(command.body["subject"]))


def _told(kind: str, subject: str) -> str:
    return f"the group {subject}" if kind == SubjectKind.GROUP else subject or "everyone"


def _last_admin(db: Database, row: Row) -> Rejected | None:
    admins = [
        r["name"] for r in rows(db, "select name from accounts where role = 'admin' and disabled = 0 order by name")
    ]
    if admins == [row["name"]]:
        return Rejected("refused", f"{row['name']} is the last administrator: make another one first")
    return None


def _listed(values: object) -> str:
    return json.dumps([str(v) for v in values] if isinstance(values, list | tuple) else [])


APPLIERS: Mapping[str, Applier] = {
    "account.create": create_account,
    "account.update": update_account,
    "account.password": set_password,
    "account.delete": delete_account,
    "assignment.add": add_assignment,
    "assignment.remove": remove_assignment,
    "session.open": open_session,
    "session.renew": renew_session,
    "session.close": close_session,
    "session.close_all": close_all_sessions,
    "session.expire": expire_sessions,
    "login.failed": login_failed,
    "directory.set": set_directory,
    "directory.remove": remove_directory,
}
