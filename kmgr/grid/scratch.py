"""The state that a cut-off server makes by itself: a copy of the grid's, changed by the same appliers.

Disposable: it is made from the grid's state on this server and the facts of the
outbox, when the island begins, after each restart, and when the log moved on in
between. In it the other servers are lost, because that is how they look from
here; so nobody is sent to a desktop that cannot be reached.

A fact is synced to the outbox before the copy shows what it did. Blocking: run it in a thread.
"""

import sqlite3
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing, suppress
from pathlib import Path

from sqlite_utils import Database

from kmgr.errors import NotAllowed, OutcomeUnknown, Unavailable
from kmgr.grid.envelope import Applied, Command, Outcome, decode_outcome, encode
from kmgr.grid.fsm import Applier, Machine
from kmgr.grid.model import RUNNING, ServerState
from kmgr.grid.outbox import Outbox
from kmgr.grid.queries import servers
from kmgr.grid.rows import rows, scalar
from kmgr.grid.settle import SETTLE, Fact, IslandRule, IslandRules, settled, spelled
from kmgr.grid.store import Store
from kmgr.ids import CommandId, ServerId

_SUFFIXES = ("", "-wal", "-shm")


class Scratch:
    """The island's state. `base` is the index of the log's last entry in it."""

    def __init__(
        self,
        path: Path,
        state: AbstractContextManager[Database],
        *,
        server: ServerId,
        schemas: tuple[str, ...],
        appliers: Mapping[str, Applier],
        rules: IslandRules,
        outbox: Outbox,
        at_ms: int,
    ) -> None:
        self._path = path
        self._server = server
        self._outbox = outbox
        self._rules = rules
        self._lock = threading.Lock()
        # Set when the outbox knows more than this copy, or when it is damaged: it must be made anew.
        self.torn = False
        _copy(state, path)
        own = {word: rule.apply for word, rule in rules.items() if rule.apply is not None}
        self._store = Store(path, schemas)
        self._store.on_damage = self._tear
        try:
            self._store.guard()
            self._machine = Machine(self._store, {**appliers, **own})
            self.base = self._machine.applied
            self._prepare(at_ms)
        except BaseException:
            self._store.close()
            raise

    @property
    def applied(self) -> int:
        """Return the index of the last change, counted on from the log's last entry."""
        return self._machine.applied

    def _tear(self, _: str) -> None:
        self.torn = True

    def view(self) -> AbstractContextManager[Database]:
        """Lend a read-only connection that shows one consistent state."""
        return self._store.view()

    def apply(self, command: Command, rule: IslandRule) -> Outcome:
        """Make a change here and note it as a fact; raise if this server must not, or if it cannot be noted."""
        with self._lock:
            db = self._store.writer
            done = scalar(db, "select outcome from outcomes where id = ?", [command.id])
            if done is not None:
                return decode_outcome(done)
            if refusal := rule.refuse(db, command, self._server):
                raise NotAllowed(refusal, code="island")
            before = _last_line(db)
            try:
                outcome = self._run(command)
                if isinstance(outcome, Applied):
                    lines, record = _lines(db, since=before), rule.record(db, command, outcome)
                    if lines or record is not None:
                        self._outbox.add(Fact(command, outcome, lines, record))
            except sqlite3.Error as error:
                self._machine.reset()
                raise Unavailable(
                    f"this server is cut off from the grid and cannot note what it does ({error}): nothing was "
                    "changed. Is its disk full?"
                ) from error
            except BaseException:
                self._machine.reset()
                raise
            self._commit()
            return outcome

    def close(self, *, forget: bool) -> None:
        """Close the copy; `forget` removes its files as well."""
        with self._lock:
            self._store.close()
            if forget:
                _remove(self._path)

    def _prepare(self, at_ms: int) -> None:
        """Let the others be lost and this server be up, and repeat what it did by itself so far."""
        db, own = self._store.writer, self._server
        known = servers(db)
        for server in known:
            if server.id != own and server.state in RUNNING:
                self._do("server.lost", {"server": server.id}, f"lost-{server.id}", at_ms)
            if server.id == own and server.state is ServerState.LOST:
                self._do("server.up", {"server": own}, f"up-{own}", at_ms)
        done = settled(db, self._outbox.id)
        facts = [spelled(fact) for fact in self._outbox.facts() if fact.n > done]
        body = {"server": own, "outbox": self._outbox.id, "facts": facts, "connected": [], "over": None}
        self._do(SETTLE, body, f"facts-{done}", at_ms)
        self._machine.commit()

    def _commit(self) -> None:
        try:
            self._machine.commit()
        except sqlite3.Error as error:
            self._machine.reset()
            self.torn = True
            raise OutcomeUnknown(
                f"this server is cut off from the grid and its disk did not take all of a change ({error}): look "
                "whether it was made"
            ) from error

    def _do(self, type: str, body: Mapping[str, object], word: str, at_ms: int) -> None:
        self._run(Command(type, CommandId(f"island-{self.base}-{word}"), at_ms, self._server, body))

    def _run(self, command: Command) -> Outcome:
        outcome = self._machine.apply(self._machine.applied + 1, encode(command))
        assert outcome is not None  # noqa: S101 - the next index is never a replay
        return outcome


def clear(folder: Path) -> None:
    """Remove what an island of an earlier run left beside the outbox."""
    for path in folder.glob("island-*.sqlite*"):
        path.unlink(missing_ok=True)


def _copy(state: AbstractContextManager[Database], path: Path) -> None:
    _remove(path)
    with state as source, closing(sqlite3.connect(path)) as copy:
        source.conn.backup(copy)


def _remove(path: Path) -> None:
    for suffix in _SUFFIXES:
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).unlink()


def _last_line(db: Database) -> int:
    return int(scalar(db, "select max(n) from events", default=0))


def _lines(db: Database, *, since: int) -> tuple[tuple[str, str, str], ...]:
    found = rows(db, "select kind, subject, text from events where n > ? order by n", [since])
    return tuple((line["kind"], line["subject"], line["text"]) for line in found)
