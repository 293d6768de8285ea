"""Replicated changes of invitations: one open phrase at a time, five tries, and how a server gets its row.

An invitation is `open` until it is used, locked by wrong tries, replaced by a newer
one, or its time is over; whatever ends it takes the sealed phrase out of the state.
"""

from collections.abc import Mapping
from typing import Any

from sqlite_utils import Database

from kmgr.grid.envelope import Applied, Command, Outcome, Rejected
from kmgr.grid.fsm import Applier
from kmgr.grid.history import note
from kmgr.grid.model import NEW_INVITATION, InvitationState, ServerRole, ServerState
from kmgr.grid.rows import Row, one

# Invitations are forgotten a day after they expired: until then a late newcomer is told "expired", not "unknown".
_KEPT_MS = 24 * 3600 * 1000
_OPEN = InvitationState.OPEN
_NONE = Rejected("not_allowed", f"no server is invited at present: {NEW_INVITATION}")


def create_invitation(db: Database, command: Command) -> Outcome:
    """Let one server join with a phrase; an invitation that is still open is replaced.

    body: invitation, sealed, expires_at, tries
    """
    body = command.body
    if one(db, "select id from invitations where id = ?", [body["invitation"]]) is not None:
        return Rejected("conflict", f"there has been an invitation {body['invitation']} already: make a new one")
    db.execute("delete from invitations where expires_at < ?", [command.at - _KEPT_MS])
    open_before = one(db, "select id from invitations where state = ? and expires_at >= ?", [_OPEN, command.at])
    db.execute("update invitations set state = ?, sealed = '' where state = ?", [InvitationState.REPLACED, _OPEN])
    db.execute(
        "insert into invitations (id, sealed, state, created_by, created_at, expires_at, tries_left)"
        " values (?, ?, ?, ?, ?, ?, ?)",
        [body["invitation"], body["sealed"], _OPEN, command.by, command.at, body["expires_at"], body["tries"]],
    )
    text = "an invitation was made: one server may join with its phrase"
    if open_before is not None:
        text += "; the one before it is no longer valid"
    note(db, command, "invitation", body["invitation"], text)
    return Applied({"replaced": open_before is not None})


def try_invitation(db: Database, command: Command) -> Outcome:
    """Use up one of a phrase's tries, before anybody learns whether the try was right. body: invitation."""
    row = one(db, "select * from invitations where id = ?", [command.body["invitation"]])
    refusal = _unusable(row, command.at)
    if refusal is not None or row is None:
        return refusal or _NONE
    left = row["tries_left"] - 1
    db.execute("update invitations set tries_left = ? where id = ?", [left, row["id"]])
    return Applied({"tries_left": left})


def invitation_proved(db: Database, command: Command) -> Outcome:
    """Give a try back: the phrase was right. body: invitation."""
    db.execute(
        "update invitations set tries_left = tries_left + 1 where id = ? and state = ?",
        [command.body["invitation"], _OPEN],
    )
    return Applied()


def invitation_failed(db: Database, command: Command) -> Outcome:
    """Note that a try was wrong; after the last one the phrase is gone for everybody. body: invitation, remote."""
    row = one(db, "select * from invitations where id = ?", [command.body["invitation"]])
    if row is None or row["state"] != _OPEN:
        return Applied({"tries_left": 0})
    left = max(row["tries_left"], 0)
    text = f"a wrong phrase was tried from {command.body['remote']}; {left} tries are left"
    if left == 0:
        db.execute("update invitations set state = ?, sealed = '' where id = ?", [InvitationState.LOCKED, row["id"]])
        text = f"a wrong phrase was tried from {command.body['remote']}: the invitation is locked for everybody"
    note(db, command, "invitation", row["id"], text)
    return Applied({"tries_left": left})


def redeem_invitation(db: Database, command: Command) -> Outcome:
    """Use up an invitation and add the server, in one step. body: invitation, server {as server.add, and key}.

    A server whose earlier join was cut off after this step may do it again with a
    new phrase: it proves to be the same one by its key.
    """
    newcomer: Mapping[str, Any] = command.body["server"]
    row = one(db, "select * from invitations where id = ?", [command.body["invitation"]])
    known = one(db, "select * from servers where id = ?", [newcomer["server"]])
    again = known is not None and known["state"] == ServerState.JOINING and known["key_hash"] == newcomer["key"]
    refusal = _unusable(row, command.at, trying=False) or cannot_add(db, newcomer, again=again)
    if refusal is not None:
        return refusal
    db.execute(
        "update invitations set state = ?, sealed = '', used_by = ? where id = ?",
        [InvitationState.USED, newcomer["server"], command.body["invitation"]],
    )
    if again:
        db.execute("delete from servers where id = ?", [newcomer["server"]])
    insert_server(db, command, newcomer)
    return Applied({"server": newcomer["server"], "again": again})


def cannot_add(db: Database, newcomer: Mapping[str, Any], *, again: bool = False) -> Rejected | None:
    """Return why a newcomer cannot have its row, None if it can; `again`: it has one since an earlier try."""
    if newcomer.get("role", ServerRole.SERVER) not in list(ServerRole):
        return Rejected("refused", f"{newcomer['role']!r} is nothing that a member can be: {', '.join(ServerRole)}")
    known = one(db, "select name, state from servers where id = ?", [newcomer["server"]])
    if known is not None and not again:
        return Rejected(
            "conflict",
            f"server id {newcomer['server']} belongs to {known['name']!r} already ({known['state']}): "
            "start with an empty data folder, which gets a new id",
        )
    for column, words, cure in (
        ("name", "name", "choose another name, or remove the old server first if this one replaces it"),
        ("grid_address", "grid address", "each server needs its own, reachable from the others"),
    ):
        holder = holder_of(db, column, newcomer[column], other_than=newcomer["server"])
        if holder is not None:
            return Rejected(
                "conflict", f"the {words} {newcomer[column]!r} is taken by server {holder['name']!r}: {cure}"
            )
    return None


def insert_server(db: Database, command: Command, newcomer: Mapping[str, Any]) -> None:
    """Give a newcomer its row, in state joining."""
    db.execute(
        "insert into servers (id, name, grid_address, web_address, state, version, fingerprint, joined_at,"
        " changed_at, role, key_hash) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            newcomer["server"],
            newcomer["name"],
            newcomer["grid_address"],
            newcomer["web_address"],
            ServerState.JOINING,
            newcomer["version"],
            newcomer["fingerprint"],
            command.at,
            command.at,
            newcomer.get("role", ServerRole.SERVER),
            newcomer.get("key", ""),
        ],
    )
    as_what = " as a witness" if newcomer.get("role") == ServerRole.WITNESS else ""
    text = f"{newcomer['name']} joined the grid{as_what} from {newcomer['grid_address']}"
    note(db, command, "server", newcomer["server"], text)


def holder_of(db: Database, column: str, value: str, *, other_than: str) -> Row | None:
    """Return another living server that has this value, if one does."""
    sql = f"select id, name from servers where {column} = ? and id <> ? and state <> ? order by id"  # noqa: S608
    return one(db, sql, [value, other_than, ServerState.REMOVED])


def _unusable(row: Row | None, at: int, *, trying: bool = True) -> Rejected | None:
    if row is None:
        return _NONE
    why = InvitationState(row["state"]).why_not
    if not why and row["expires_at"] < at:
        why = "this invitation has expired"
    if not why and trying and row["tries_left"] <= 0:
        why = InvitationState.LOCKED.why_not
    return Rejected("not_allowed", f"{why}: {NEW_INVITATION}") if why else None


APPLIERS: Mapping[str, Applier] = {
    "invitation.create": create_invitation,
    "invitation.try": try_invitation,
    "invitation.proved": invitation_proved,
    "invitation.failed": invitation_failed,
    "invitation.redeem": redeem_invitation,
}
