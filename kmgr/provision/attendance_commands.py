"""Replicated facts about desktops and their users: a screen opened, a screen closed, and the end that follows.

The desktop's own server reports; what it says carries the generation, so that a
word about a former life of the desktop changes nothing.
"""

from collections.abc import Mapping

from sqlite_utils import Database

from kmgr.grid.envelope import Applied, Command, Outcome, Rejected
from kmgr.grid.fsm import Applier
from kmgr.grid.history import note
from kmgr.grid.rows import Row, one
from kmgr.provision.desktop_rows import desktop_row, fenced, owned
from kmgr.provision.lifecycle import Event, after
from kmgr.provision.model import DesktopState as S
from kmgr.provision.model import Purpose
from kmgr.provision.outfit import outfit
from kmgr.templates.policy import from_json

# What a person reads in passing, on a screen that belongs to their work.
MOST_LETTERS = 500


def connected(db: Database, command: Command) -> Outcome:
    """Its user's screen was opened. body: desktop, generation, server."""
    row = in_use(db, command, hint=": the report was of a former one")
    if isinstance(row, Rejected):
        return row
    if row["connected_at"] is None or row["disconnected_at"] is not None:
        db.execute(
            "update desktops set connected_at = ?, disconnected_at = null where id = ?", [command.at, row["id"]]
        )
    return Applied()


def disconnected(db: Database, command: Command) -> Outcome:
    """Its user's screen was closed. body: desktop, generation, server."""
    row = in_use(db, command, hint=": the report was of a former one")
    if isinstance(row, Rejected):
        return row
    if row["connected_at"] is not None and row["disconnected_at"] is None:
        db.execute("update desktops set disconnected_at = ? where id = ?", [command.at, row["id"]])
    return Applied()


def message(db: Database, command: Command) -> Outcome:
    """An administrator sends a message to whoever works on a desktop. body: desktop, user, text."""
    text = command.body["text"]
    if not isinstance(text, str) or not 0 < len(text) <= MOST_LETTERS:
        return Rejected("refused", f"a message has 1 to {MOST_LETTERS} letters")
    row = desktop_row(db, command)
    if isinstance(row, Rejected):
        return row
    if row["state"] != S.IN_USE or row["user"] != command.body["user"]:
        return Rejected("conflict", f"desktop {row['name']} is not {command.body['user']}'s (any more)")
    note(db, command, "desktop", row["id"], f"a message to {row['user']} on desktop {row['name']}: {text}")
    return Applied()


def over(db: Database, command: Command) -> Outcome:
    """Give a pooled desktop back because its time with its user is over.

    body: desktop, user, generation, connected_at, disconnected_at, why. All but why is what was believed: whoever
    came back to it in the meantime keeps it.
    """
    body = command.body
    row = desktop_row(db, command)
    if isinstance(row, Rejected):
        return row
    if row["state"] == S.RETIRED:
        return Applied()
    if row["state"] != S.IN_USE or row["user"] != body["user"]:
        return Rejected("conflict", f"desktop {row['name']} is not {body['user']}'s any more")
    if owned(row):
        return Rejected("refused", f"desktop {row['name']} is {row['user']}'s personal desktop and is kept")
    if row["purpose"] != Purpose.USE:
        return Rejected("refused", f"desktop {row['name']} is there to {row['purpose']} and stays until that is done")
    for believed in ("generation", "connected_at", "disconnected_at"):
        if row[believed] != body[believed]:
            return Rejected("conflict", f"{row['user']} has come back to desktop {row['name']}, or left it only now")
    db.execute(
        "update desktops set state = ?, changed_at = ? where id = ?",
        [after(S.IN_USE, Event.RETIRED), command.at, row["id"]],
    )
    note(db, command, "desktop", row["id"], f"desktop {row['name']} of {row['user']} is given back: {body['why']}")
    return Applied()


def outfitted(db: Database, command: Command) -> Outcome:
    """Its server starts it again, with what its template says by now. body: desktop, generation, server.

    values: vcpus, memory_mib
    """
    row = fenced(db, command)
    if isinstance(row, Rejected):
        return row
    template = one(db, "select vcpus, memory_mib, policy from templates where id = ?", [row["template"]])
    if template is None:
        return Applied({"vcpus": row["vcpus"], "memory_mib": row["memory_mib"]})
    db.execute(
        "update desktops set vcpus = ?, memory_mib = ?, outfit = ? where id = ?",
        [template["vcpus"], template["memory_mib"], outfit(from_json(template["policy"]), row["outfit"]), row["id"]],
    )
    return Applied({"vcpus": template["vcpus"], "memory_mib": template["memory_mib"]})


def in_use(db: Database, command: Command, *, hint: str = "") -> Row | Rejected:
    """Return a desktop in use, where and in the life that was believed. body: desktop, generation, server.

    `hint` ends the sentence that says that it has another life by now.
    """
    body = command.body
    row = desktop_row(db, command)
    if isinstance(row, Rejected):
        return row
    if (row["generation"], row["server"], row["state"]) != (body["generation"], body["server"], S.IN_USE):
        return Rejected("conflict", f"desktop {row['name']} has another life by now{hint}")
    return row


APPLIERS: Mapping[str, Applier] = {
    "desktop.connected": connected,
    "desktop.disconnected": disconnected,
    "desktop.message": message,
    "desktop.over": over,
    "desktop.outfitted": outfitted,
}
