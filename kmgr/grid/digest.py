"""One number for a whole state: two servers that applied the same log entry must have the same one.

All tables count, in the order of their names, columns in the order of theirs,
rows in the order of their values; every value is spelled with its kind and
length, so that no two states are spelled alike by chance. SQLite's own tables
do not count: they say how the rows lie in the file.
"""

import hashlib
import json

from sqlite_utils import Database

from kmgr.grid.rows import rows, scalar


def digest(db: Database) -> tuple[int, str]:
    """Return the applied index and the digest of the state that a lent connection shows."""
    found = hashlib.blake2b(digest_size=16)
    for table in rows(db, "select name from sqlite_master where type = 'table' order by name"):
        name = table["name"]
        if name.startswith("sqlite_"):
            continue
        columns = sorted(column.name for column in db[name].columns)
        listed = ", ".join(f'"{column}"' for column in columns)
        found.update(_spelled([name, *columns]))
        for row in db.execute(f'select {listed} from "{name}" order by {listed}'):  # noqa: S608 - names of tables
            found.update(_spelled(row))
    applied = scalar(db, "select v from meta where k = 'applied'", default=0)
    return int(applied), found.hexdigest()


def _spelled(values: object) -> bytes:
    return json.dumps(values, default=lambda blob: {"bytes": blob.hex()}, ensure_ascii=True).encode() + b"\n"
