"""The grid's history: appliers write a line for everything a person may later ask about."""

from sqlite_utils import Database

from kmgr.grid.envelope import Command

# Lines kept; older ones are dropped by the same log entry on every server.
KEEP = 20_000


def note(db: Database, command: Command, kind: str, subject: str, text: str) -> None:
    """Add one line. `kind` is a short word for filtering, `subject` the id of the thing, `text` a sentence."""
    db.execute(
        "insert into events (at, by, kind, subject, text) values (?, ?, ?, ?, ?)",
        [command.at, command.by, kind, subject, text],
    )
    db.execute("delete from events where n <= (select max(n) from events) - ?", [KEEP])
