"""Keeps the log short: when it has grown, a snapshot is copied beside the raft thread, then the old entries go.

A copy shows the state of one entry however long it takes, because it reads
inside one transaction that was begun right after that entry. It gets its place
on the raft thread, and only if no newer snapshot was installed meanwhile.

A copy writes all of the state, and the log's own syncs wait for the same disk. So
a log that is smaller than the state may have more entries before one is made: how much
is written for a change stays bounded, as the Raft dissertation says (Ongaro 2014, 5.1.3),
and so does how much has to be read and applied again at a start.
"""

import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kmgr.grid.raft import snapshot
from kmgr.grid.raft.background import Background
from kmgr.grid.raft.courier import Courier
from kmgr.grid.raft.journal import Journal
from kmgr.grid.raft.library import Timing, monotonic
from kmgr.grid.raft.logfile import sync_folder
from kmgr.grid.raft.snapshot import Snapshot
from kmgr.grid.store import Store

logger = logging.getLogger(__name__)

# After a snapshot could not be written (a full disk), the next attempt.
AGAIN_S = 60.0
# Kept behind a snapshot for servers that lag a little: a fifth of what is allowed, and no more than this.
KEPT_BYTES = 2 << 20
# The write-ahead file of the state may grow so far before it is emptied; looked at so often.
MOST_WAL_BYTES = 4 << 20
LOOK_S = 0.5


@dataclass(slots=True)
class Compaction:
    """The snapshots that this server makes of its own state."""

    path: Path
    store: Store
    journal: Journal
    courier: Courier
    background: Background
    limits: Timing
    _not_before: float = 0.0
    _copying: bool = False
    _checkpointing: bool = False
    _checkpointed: int = 0
    _look_at: float = 0.0

    def step(self, applied: int) -> None:
        """Begin a snapshot if the log has grown too long; `applied` is what the state shows now."""
        journal = self.journal
        if self._copying or monotonic() < self._not_before or not self._long():
            return
        previous, last = journal.at(applied - 1), journal.at(applied)
        if previous is None or last is None or self._keep_from(applied) <= journal.first.index:
            return
        made = Snapshot(previous, last, journal.voters(upto=applied))
        pinned = snapshot.pin(self.store)
        self._copying = True
        self.background.start(lambda go_on: self._copy(pinned, made, go_on), lambda error: self._copied(made, error))

    def _long(self) -> bool:
        entries, size, limits = len(self.journal.entries), self.journal.size, self.limits
        if entries <= limits.compact_entries and size <= limits.compact_bytes:
            return False
        return is_long(entries, size, limits, state_bytes=self.store.path.stat().st_size)

    def checkpoint(self, applied: int) -> None:
        """Have SQLite move what its write-ahead file holds to its place, and sync it, beside the raft thread."""
        now = monotonic()
        if self._checkpointing or now < self._look_at or applied == self._checkpointed:
            return
        self._look_at = now + LOOK_S
        if snapshot.wal_bytes(self.store) > MOST_WAL_BYTES:
            self._checkpointing, self._checkpointed = True, applied
            self.background.start(lambda _: snapshot.checkpoint(self.store), lambda _: self._moved())

    def _moved(self) -> None:
        self._checkpointing = False

    def _copy(self, pinned: sqlite3.Connection, made: Snapshot, go_on: Callable[[], None]) -> OSError | None:
        try:
            snapshot.copy(pinned, self.path, made, go_on)
        except OSError as error:
            return error
        return None

    def _copied(self, made: Snapshot, error: OSError | None) -> None:
        if error is not None:
            self._copying = False
            self._not_before = monotonic() + AGAIN_S
            logger.warning("the log could not be compacted", extra={"cause": error.strerror or str(error)})
        elif self.courier.current[0] < made.last.index:
            snapshot.place(self.path)
            self.courier.current = (made.last.index, made.last.term)
            self.background.start(lambda _: sync_folder(self.path.parent), lambda _: self._placed(made))
        else:
            self._copying = False

    def _placed(self, made: Snapshot) -> None:
        self._copying = False
        self.journal.forget_before(self._keep_from(made.last.index))
        logger.info("the log was compacted", extra={"index": made.last.index, "kept": len(self.journal.entries)})

    def _keep_from(self, index: int) -> int:
        room, least = KEPT_BYTES, index - self.limits.compact_entries // 5
        while index > least and (entry := self.journal.at(index - 1)) is not None and room > 0:
            room -= len(entry.command)
            index -= 1
        return index


def is_long(entries: int, size: int, limits: Timing, *, state_bytes: int) -> bool:
    """Return whether a log of so many entries and bytes is worth a copy of the state."""
    if size > limits.compact_bytes or entries > max(limits.compact_entries, limits.compact_most):
        return True
    return entries > limits.compact_entries and size >= state_bytes
