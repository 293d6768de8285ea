"""Replicated changes that take versions of golden images away: they look at templates and desktops once more.

Whoever proposes them (a person, the leader's `Collector`, a server with a copy too
many) looked at an older state: a template may have published the version since, a
desktop may have been placed. Files are removed by the servers' agents afterwards.
"""

from collections.abc import Mapping

from sqlite_utils import Database

from kmgr.grid.envelope import Applied, Command, Outcome, Rejected
from kmgr.grid.fsm import Applier
from kmgr.grid.history import note
from kmgr.grid.model import RUNNING
from kmgr.grid.queries import settings
from kmgr.grid.rows import Row, one, rows, scalar
from kmgr.ids import ImageId, ServerId, VersionId
from kmgr.provision.uses import uses
from kmgr.replica import collect
from kmgr.replica.commands import described, forget_holding, forget_version, holds, version_row
from kmgr.replica.copies import may_drop
from kmgr.replica.model import ALL_SERVERS
from kmgr.replica.queries import holdings, versions


def delete_version(db: Database, command: Command) -> Outcome:
    """Delete one version of an image that nobody uses now, because a person says so. body: version."""
    version = _version(db, command)
    if isinstance(version, Rejected):
        return version
    users = collect.needed(VersionId(version["id"]), uses(db))
    if users:
        return Rejected(
            "conflict",
            f"{described(version)} is used by {users}: publish another version in its "
            "place, and wait until the desktops are gone",
        )
    forget_version(db, version["id"])
    note(db, command, "image", version["image"], f"{described(version)} deleted")
    return Applied()


def collect_version(db: Database, command: Command) -> Outcome:
    """Delete a version that nobody needs any more, by the grid's own rules. body: version."""
    version = _version(db, command)
    if isinstance(version, Rejected):
        return version
    rules = settings(db)
    kept = collect.reasons(
        versions(db, ImageId(version["image"])),
        uses(db),
        keep_versions=rules["keep_versions"],
        keep_days=rules["keep_days"],
        now_ms=command.at,
    )
    why = kept.get(VersionId(version["id"]))
    if why is not None:
        return Rejected("conflict", f"{described(version)} stays: {why}")
    forget_version(db, version["id"])
    note(db, command, "image", version["image"], f"{described(version)} deleted: nothing uses it any more")
    return Applied()


def drop_version(db: Database, command: Command) -> Outcome:
    """Let a server give up its copy of a version of which enough other servers have one. body: version, server."""
    version = _version(db, command)
    if isinstance(version, Rejected):
        return version
    server = one(db, "select id, name from servers where id = ?", [command.body["server"]])
    if server is None or not holds(db, version["id"], server["id"]):
        return Applied()
    copies = scalar(db, "select copies from image_copies where image = ?", [version["image"]], default=ALL_SERVERS)
    running = {row["id"] for row in rows(db, "select id from servers where state in (?, ?)", list(RUNNING))}
    why = may_drop(
        VersionId(version["id"]),
        ServerId(server["id"]),
        int(copies),
        [holding for holding in holdings(db) if holding.server in running],
        uses(db),
    )
    if why:
        return Rejected("conflict", f"{described(version)} stays here: {why}")
    forget_holding(db, version["id"], server["id"])
    text = f"{described(version)} is not kept on {server['name']} any more"
    note(db, command, "image", version["image"], f"{text}: enough other servers have it")
    return Applied()


def _version(db: Database, command: Command) -> Row | Rejected:
    found = version_row(db, command.body["version"])
    return found or Rejected("not_found", f"there is no version {command.body['version']} (any more)")


APPLIERS: Mapping[str, Applier] = {
    "version.delete": delete_version,
    "version.collect": collect_version,
    "version.drop": drop_version,
}
