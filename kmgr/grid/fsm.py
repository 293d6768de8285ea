"""The state machine: one log entry in, one change of the SQLite file, the same on every server.

* Entries of one batch share one transaction, which also stores the applied
  index: after a crash the file stands between two batches, never inside one.
* Each command runs in its own savepoint. A `Rejected` leaves no trace but its
  outcome; an exception is a bug and leaves through `InvariantBroken`.
* A command id that was applied before is answered from the table of outcomes:
  sending a command again is safe. Outcomes are kept for so many entries; one that
  comes so late that its outcome may be gone is refused, never done twice.

Runs on the thread that applies the log. Imports no clock and no randomness.
"""

import sqlite3
from collections.abc import Callable, Mapping
from typing import TypeAlias

from sqlite_utils import Database

from kmgr.errors import InvariantBroken
from kmgr.grid.envelope import Command, Outcome, Rejected, decode, decode_outcome, encode_outcome, first_asked
from kmgr.grid.store import Store, is_of_the_disk

Applier: TypeAlias = Callable[[Database, Command], Outcome]

# Outcomes kept for answering retries, counted in log entries.
OUTCOMES_KEPT = 100_000
# The code of what was refused because it came too late to be known.
TOO_LATE = "too_late"


class Machine:
    """Applies log entries in order to a store; `commit()` ends a batch and wakes the readers."""

    def __init__(
        self, store: Store, appliers: Mapping[str, Applier], *, on_commit: Callable[[int], None] | None = None
    ) -> None:
        self._store = store
        self._db = store.writer
        self._appliers = appliers
        self._on_commit = on_commit
        self._open = False
        self.applied = store.applied()

    def apply(self, index: int, data: bytes) -> Outcome | None:
        """Apply the entry at `index`; None if the file has it already (replay after a restart)."""
        if index <= self.applied:
            return None
        self._expect(index)
        command = decode(data)
        outcome = self._known(command) or _too_late(index, command) or self._run(index, command)
        self.applied = index
        return outcome

    def skip(self, index: int) -> None:
        """Count an entry that changes no table (a leader's no-op, a change of members)."""
        if index <= self.applied:
            return
        self._expect(index)
        self.applied = index

    def commit(self) -> None:
        """End the batch: all its entries and the applied index become visible at once."""
        if not self._open:
            return
        self._db.execute(
            "insert into meta (k, v) values ('applied', ?) on conflict (k) do update set v = excluded.v",
            [self.applied],
        )
        self._db.execute("delete from outcomes where idx <= ?", [self.applied - OUTCOMES_KEPT])
        self._db.conn.execute("commit")
        self._open = False
        if self._on_commit is not None:
            self._on_commit(self.applied)

    def reset(self) -> None:
        """Forget an unfinished batch and read the applied index again (after a snapshot was installed)."""
        if self._open:
            # SQLite ends a transaction by itself when the disk is full.
            if self._db.conn.in_transaction:
                self._db.conn.execute("rollback")
            self._open = False
        self.applied = self._store.applied()

    def _expect(self, index: int) -> None:
        if index != self.applied + 1:
            raise InvariantBroken(f"log entry {index} came after {self.applied}: the log has a gap")
        if not self._open:
            self._db.conn.execute("begin immediate")
            self._open = True

    def _known(self, command: Command) -> Outcome | None:
        found = self._db.conn.execute("select outcome from outcomes where id = ?", [command.id]).fetchone()
        return None if found is None else decode_outcome(found[0])

    def _run(self, index: int, command: Command) -> Outcome:
        applier = self._appliers.get(command.type)
        if applier is None:
            raise InvariantBroken(
                f"log entry {index} is a {command.type!r}, which this version does not know: install a newer kmgr"
            )
        self._db.conn.execute("savepoint entry")
        try:
            outcome = applier(self._db, command)
        except sqlite3.DatabaseError as error:
            if is_of_the_disk(error):
                raise
            raise InvariantBroken(f"applying {command.type} at {index} failed: {error!r}") from error
        except Exception as error:
            raise InvariantBroken(f"applying {command.type} at {index} failed: {error!r}") from error
        if isinstance(outcome, Rejected):
            self._db.conn.execute("rollback to entry")
        self._db.conn.execute("release entry")
        self._db.execute(
            "insert into outcomes (id, idx, outcome) values (?, ?, ?)",
            [command.id, index, encode_outcome(outcome)],
        )
        return outcome


def _too_late(index: int, command: Command) -> Rejected | None:
    first = first_asked(command.id)
    if first is None or index - first <= OUTCOMES_KEPT:
        return None
    return Rejected(
        TOO_LATE,
        f"this change was first asked for {index - first} changes of the grid ago, and of what is so old it is not "
        "known any more whether it was made: look, and if it was not, ask for it anew",
    )
