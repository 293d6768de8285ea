"""Replicated changes about people who wait for a desktop: one applier per command."""

from collections.abc import Mapping

from sqlite_utils import Database

from kmgr.grid.envelope import Applied, Command, Outcome, Rejected
from kmgr.grid.fsm import Applier
from kmgr.grid.rows import one
from kmgr.provision.allowance import groups_of, why_not_another
from kmgr.provision.desktop_rows import best_standby, own_desktop


def ask(db: Database, command: Command) -> Outcome:
    """Have a desktop made for a user who found none ready; asking again says that they still wait.

    body: user, template, groups?. Nothing is noted if there is one by now: it is theirs, or ready to be claimed.
    """
    user, template = command.body["user"], command.body["template"]
    row = one(db, "select name, enabled from templates where id = ?", [template])
    if row is None:
        return Rejected("not_found", f"there is no template {template}")
    if not row["enabled"]:
        return Rejected("refused", f"template {row['name']} is switched off")
    groups = groups_of(command.body.get("groups"))
    own = own_desktop(db, str(user), str(template))
    if own is None and (full := why_not_another(db, str(user), str(template), groups)):
        return Rejected("quota", full)
    if (own or best_standby(db, str(template))) is None:
        db.execute(
            "insert into asks (template, user, since, at) values (?, ?, ?, ?)"
            " on conflict (template, user) do update set at = excluded.at",
            [template, user, command.at, command.at],
        )
    return Applied()


def unask(db: Database, command: Command) -> Outcome:
    """Nobody waits any more. body: user, template, at: what was believed; who has asked again since still waits."""
    body = command.body
    db.execute(
        "delete from asks where template = ? and user = ? and at = ?", [body["template"], body["user"], body["at"]]
    )
    return Applied()


APPLIERS: Mapping[str, Applier] = {
    "desktop.ask": ask,
    "desktop.unask": unask,
}
