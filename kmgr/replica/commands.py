"""Replicated changes of the replica package: images, their versions, and which server holds what.

A version enters the log only when the importing server has all of it on its
own disks, so `version.add` is also that server's first holding. Deleting an
image is a command of the templates package, which knows who uses it.
"""

from collections.abc import Mapping

from sqlite_utils import Database

from kmgr.grid.envelope import Applied, Command, Outcome, Rejected
from kmgr.grid.fsm import Applier
from kmgr.grid.history import note
from kmgr.grid.model import ServerState
from kmgr.grid.rows import Row, one, scalar
from kmgr.replica.model import ALL_SERVERS, FEWEST_COPIES, MOST_COPIES, VersionState, name_problem
from kmgr.whole import is_whole, must_be

_HEX = frozenset("0123456789abcdef")


def create_image(db: Database, command: Command) -> Outcome:
    """Start a new line of versions. body: image, name, notes."""
    body = command.body
    name = str(body["name"])
    if problem := name_problem(name):
        return Rejected("refused", problem)
    if one(db, "select id from images where name = ?", [name]) is not None:
        return Rejected("conflict", f"there is already an image {name!r}: import into it, or choose another name")
    if one(db, "select id from images where id = ?", [body["image"]]) is not None:
        return Rejected("conflict", f"the id {body['image']} is taken by another image")
    db.execute(
        "insert into images (id, name, notes, created_at, created_by) values (?, ?, ?, ?, ?)",
        [body["image"], name, body["notes"], command.at, command.by],
    )
    note(db, command, "image", body["image"], f"image {name!r} created")
    return Applied({"image": body["image"]})


def add_version(db: Database, command: Command) -> Outcome:
    """Make a version known, held by the server that imported it.

    body: version, image, size_bytes, used_bytes, block_bytes, manifest_hash, notes, server
    """
    body = command.body
    refusal = _bad_numbers(body)
    if refusal is not None:
        return refusal
    image = one(db, "select id, name from images where id = ?", [body["image"]])
    if image is None:
        return Rejected("not_found", f"there is no image {body['image']}: it may have been deleted meanwhile")
    holder = _server(db, body["server"])
    if isinstance(holder, Rejected):
        return holder
    if one(db, "select id from versions where id = ?", [body["version"]]) is not None:
        return Rejected("conflict", f"the id {body['version']} is taken by another version")
    twin = one(
        db,
        "select number from versions where image = ? and manifest_hash = ? order by number",
        [image["id"], body["manifest_hash"]],
    )
    if twin is not None:
        return Rejected("conflict", f"version {twin['number']} of {image['name']!r} has exactly the same contents")
    number = 1 + int(scalar(db, "select max(number) from versions where image = ?", [image["id"]], default=0))
    db.execute(
        "insert into versions (id, image, number, size_bytes, used_bytes, block_bytes, manifest_hash, state, notes,"
        " created_at, created_by) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            *(body["version"], image["id"], number, body["size_bytes"], body["used_bytes"], body["block_bytes"]),
            *(body["manifest_hash"], str(VersionState.READY), body["notes"], command.at, command.by),
        ],
    )
    _hold(db, command, body["version"], holder["id"])
    note(db, command, "image", image["id"], f"version {number} of {image['name']!r} imported on {holder['name']}")
    return Applied({"number": number})


def version_here(db: Database, command: Command) -> Outcome:
    """Note that a server has all of a version, verified. body: version, server."""
    found = _version_and_server(db, command)
    if isinstance(found, Rejected):
        return found
    version, server = found
    if holds(db, version["id"], server["id"]):
        return Applied()
    _hold(db, command, version["id"], server["id"])
    note(db, command, "image", version["image"], f"{described(version)} is on {server['name']}")
    return Applied()


def version_gone(db: Database, command: Command) -> Outcome:
    """Note that a server lost a version's file. body: version, server, why? (a clause)."""
    found = _version_and_server(db, command)
    if isinstance(found, Rejected):
        return found
    version, server = found
    if not holds(db, version["id"], server["id"]):
        return Applied()
    forget_holding(db, version["id"], server["id"])
    why = f": {command.body['why']}" if command.body.get("why") else ""
    note(db, command, "image", version["image"], f"{described(version)} is no longer on {server['name']}{why}")
    return Applied()


def set_copies(db: Database, command: Command) -> Outcome:
    """Let so many servers keep each version of an image; 0 is all servers. body: image, copies."""
    copies = command.body["copies"]
    if not is_whole(copies, ALL_SERVERS, MOST_COPIES):
        return Rejected("refused", f"copies {must_be(copies, ALL_SERVERS, MOST_COPIES)}; 0 means all servers")
    if ALL_SERVERS < copies < FEWEST_COPIES:
        return Rejected(
            "refused",
            f"{copies} copies cannot be: choose 0 for all servers, or {FEWEST_COPIES} to {MOST_COPIES}, so that one "
            "server may be lost",
        )
    image = one(db, "select id, name from images where id = ?", [command.body["image"]])
    if image is None:
        return Rejected("not_found", f"there is no image {command.body['image']}")
    before = int(scalar(db, "select copies from image_copies where image = ?", [image["id"]], default=ALL_SERVERS))
    if copies != before:
        db.execute(
            "insert into image_copies (image, copies) values (?, ?)"
            " on conflict (image) do update set copies = excluded.copies",
            [image["id"], copies],
        )
        where = "all servers" if copies == ALL_SERVERS else f"{copies} servers"
        note(db, command, "image", image["id"], f"image {image['name']!r} is kept on {where}")
    return Applied()


def version_repaired(db: Database, command: Command) -> Outcome:
    """Note that a server's disk returned wrong bytes which were put right.

    body: version, server, file, offset, blocks, sources (server ids)
    """
    found = _version_and_server(db, command)
    if isinstance(found, Rejected):
        return found
    version, server = found
    body = command.body
    told = [one(db, "select name from servers where id = ?", [source]) for source in body["sources"]]
    names = ", ".join(row["name"] for row in told if row is not None) or "its own other versions"
    note(
        db, command, "alarm", version["image"],
        f"{server['name']}: {_blocks(body['blocks'])} of {described(version)} went bad on its disk, the first at "
        f"byte {body['offset']} of {body['file']}, and came anew from {names}. Its disk may be failing",
    )  # fmt: skip
    return Applied()


def version_damaged(db: Database, command: Command) -> Outcome:
    """Note how many blocks of a held version are wrong and cannot be put right now; 0: none any more.

    body: version, server, file, offset, blocks
    """
    found = _version_and_server(db, command)
    if isinstance(found, Rejected):
        return found
    version, server = found
    body = command.body
    for name in ("blocks", "offset"):
        if not is_whole(body[name]):
            return Rejected("refused", f"{name} of a damage {must_be(body[name])}")
    if not holds(db, version["id"], server["id"]):
        return Rejected("conflict", f"{server['name']} does not hold {described(version)}")
    key = [version["id"], server["id"]]
    before = int(scalar(db, "select blocks from damages where version = ? and server = ?", key, default=0))
    if body["blocks"] == before:
        return Applied()
    db.execute("delete from damages where version = ? and server = ?", key)
    if body["blocks"] < 1:
        note(db, command, "image", version["image"], f"{described(version)} is whole again on {server['name']}")
        return Applied()
    db.execute(
        "insert into damages (version, server, blocks, first_byte, at) values (?, ?, ?, ?, ?)",
        [*key, body["blocks"], body["offset"], command.at],
    )
    note(
        db, command, "alarm", version["image"],
        f"{server['name']}: {_blocks(body['blocks'])} of {described(version)} went bad on its disk, the first at "
        f"byte {body['offset']} of {body['file']}, and no other server could give the right bytes. Its disk may be "
        "failing",
    )  # fmt: skip
    return Applied()


def version_lied(db: Database, command: Command) -> Outcome:
    """Note that a server sent wrong bytes of a version to another one. body: version, server (who says so), liar."""
    found = _version_and_server(db, command)
    if isinstance(found, Rejected):
        return found
    version, server = found
    liar = _server(db, command.body["liar"])
    if isinstance(liar, Rejected):
        return liar
    note(
        db, command, "alarm", version["image"],
        f"{liar['name']} sent wrong bytes of {described(version)} to {server['name']}, which kept none of them. "
        f"The disk or memory of {liar['name']} may be failing",
    )  # fmt: skip
    return Applied()


def forget_holding(db: Database, version: str, server: str) -> None:
    """Drop the record that a server has a version."""
    db.execute("delete from holdings where version = ? and server = ?", [version, server])
    db.execute("delete from damages where version = ? and server = ?", [version, server])


def version_row(db: Database, version: str) -> Row | None:
    """Return id, image and number of a version and the name of its image, or None."""
    return one(
        db,
        "select v.id, v.image, v.number, i.name from versions v join images i on i.id = v.image where v.id = ?",
        [version],
    )


def described(version: Row) -> str:
    """Return how histories and refusals call a `version_row`."""
    return f"version {version['number']} of {version['name']!r}"


def holds(db: Database, version: str, server: str) -> bool:
    """Tell whether a server holds a version."""
    return one(db, "select at from holdings where version = ? and server = ?", [version, server]) is not None


def forget_version(db: Database, version: str) -> None:
    """Drop a version and every record of where it is; its files are removed by the servers' agents."""
    for table, column in (("holdings", "version"), ("damages", "version"), ("versions", "id")):
        db.execute(f"delete from {table} where {column} = ?", [version])  # noqa: S608 - own names


APPLIERS: Mapping[str, Applier] = {
    "image.create": create_image,
    "version.add": add_version,
    "version.here": version_here,
    "version.gone": version_gone,
    "image.copies": set_copies,
    "version.repaired": version_repaired,
    "version.damaged": version_damaged,
    "version.lied": version_lied,
}


def _bad_numbers(body: Mapping[str, object]) -> Rejected | None:
    for name, least in (("size_bytes", 1), ("used_bytes", 0), ("block_bytes", 1)):
        value = body[name]
        if not is_whole(value, least):
            return Rejected("refused", f"{name} of a version {must_be(value, least)}")
    digest = body["manifest_hash"]
    if not isinstance(digest, str) or len(digest) != 64 or not set(digest) <= _HEX:
        return Rejected("refused", "manifest_hash of a version must be 64 hexadecimal digits")
    return None


def _version_and_server(db: Database, command: Command) -> tuple[Row, Row] | Rejected:
    version = version_row(db, command.body["version"])
    if version is None:
        return Rejected(
            "not_found", f"there is no version {command.body['version']}: its image may have been deleted"
        )
    server = _server(db, command.body["server"])
    return server if isinstance(server, Rejected) else (version, server)


def _server(db: Database, server: str) -> Row | Rejected:
    row = one(db, "select id, name, state from servers where id = ?", [server])
    if row is None or row["state"] == ServerState.REMOVED:
        return Rejected("not_found", f"server {server} is not in this grid (any more)")
    return row


def _hold(db: Database, command: Command, version: str, server: str) -> None:
    db.execute("insert into holdings (version, server, at) values (?, ?, ?)", [version, server, command.at])


def _blocks(count: object) -> str:
    return "one block" if count == 1 else f"{count} blocks"
