"""How the grid takes over what a server did by itself while it was cut off: facts, rules, one command.

A *fact* is a command that was applied on the island, the lines that it wrote into
the history there, and the *record* of how the thing it is about stood afterwards.
Facts are always accepted as history. Records are settled by the rule of the
package that owns the command: it sees the grid's state, which may have moved on
meanwhile, and must be deterministic, total and the same when it is done twice.

A server may be cut off while it hands over. Facts are numbered, so what was
settled already is passed over.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sqlite_utils import Database

from kmgr.errors import InvariantBroken
from kmgr.grid.commands import server_up
from kmgr.grid.envelope import Applied, Command, Outcome, Rejected, encode_outcome
from kmgr.grid.fsm import Applier
from kmgr.grid.history import note
from kmgr.grid.model import ServerState
from kmgr.grid.rows import one, scalar
from kmgr.ids import CommandId, ServerId

SETTLE = "island.settle"


@dataclass(frozen=True, slots=True)
class Record:
    """How a thing stood after a command. The last record `about` a thing counts, earlier ones are history."""

    about: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that was done on an island. `lines` are (kind, subject, text) of the history."""

    command: Command
    outcome: Applied
    lines: tuple[tuple[str, str, str], ...]
    record: Record | None
    n: int = 0


@dataclass(frozen=True, slots=True)
class Told:
    """Who hands over, and which desktops are looked at there at this moment."""

    server: ServerId
    connected: frozenset[str] = field(default_factory=frozenset)


def _anything(_: Database, __: Command, ___: ServerId) -> str:
    return ""


def _nothing(_: Database, __: Command, ___: Applied) -> Record | None:
    return None


def _history_only(_: Database, __: Command, ___: Mapping[str, Any], ____: Told) -> None:
    return


@dataclass(frozen=True, slots=True)
class IslandRule:
    """What one type of command may do on an island, and how it is settled afterwards.

    refuse: why this server must not do it now, empty if it may
    record: what the others need to know once it is done, None if nothing
    settle: make the grid's state agree with a record; `command` is the one that settles
    apply:  another applier than the grid's, where an island has narrower limits
    """

    refuse: Callable[[Database, Command, ServerId], str] = _anything
    record: Callable[[Database, Command, Applied], Record | None] = _nothing
    settle: Callable[[Database, Command, Mapping[str, Any], Told], None] = _history_only
    apply: Applier | None = None


IslandRules: TypeAlias = Mapping[str, IslandRule]


def spelled(fact: Fact) -> dict[str, Any]:
    """Return a fact as JSON."""
    command = fact.command
    return {
        "n": fact.n,
        "type": command.type,
        "id": command.id,
        "at": command.at,
        "by": command.by,
        "body": dict(command.body),
        "made": dict(fact.outcome.values),
        "lines": [list(line) for line in fact.lines],
        "about": fact.record.about if fact.record else "",
        "values": dict(fact.record.values) if fact.record else None,
    }


def read(raw: Mapping[str, Any]) -> Fact:
    """Read a fact back."""
    command = Command(str(raw["type"]), CommandId(raw["id"]), int(raw["at"]), str(raw["by"]), raw["body"])
    lines = tuple((str(kind), str(subject), str(text)) for kind, subject, text in raw["lines"])
    record = None if raw["values"] is None else Record(str(raw["about"]), raw["values"])
    return Fact(command, Applied(raw["made"]), lines, record, int(raw["n"]))


def settled(db: Database, outbox: str) -> int:
    """Return the number of the last fact of an outbox that the state knows."""
    return int(scalar(db, "select n from settled where outbox = ?", [outbox], default=0))


def settling(rules: IslandRules) -> Applier:
    """Return the applier of `island.settle`.

    body: server, outbox, facts, connected, and over (the number of changes) with the last of them
    """

    def settle(db: Database, command: Command) -> Outcome:
        body = command.body
        server = one(db, "select id, name, state from servers where id = ?", [body["server"]])
        if server is None or server["state"] == ServerState.REMOVED:
            return Rejected("not_allowed", "this server is no server of the grid any more")
        if server["state"] == ServerState.LOST:
            # It speaks, and knows the log up to here: what it has in use must not be given up with a lost server.
            server_up(db, Command("server.up", command.id, command.at, command.by, {"server": server["id"]}))
        told = Told(ServerId(server["id"]), frozenset(str(desktop) for desktop in body["connected"]))
        known = settled(db, str(body["outbox"]))
        for fact in map(read, body["facts"]):
            if fact.n <= known:
                continue
            known = fact.n
            _take_over(db, command, fact, told, name=str(server["name"]))
        db.execute(
            "insert into settled (outbox, server, n) values (?, ?, ?)"
            " on conflict (outbox) do update set n = excluded.n",
            [body["outbox"], server["id"], known],
        )
        if body["over"] is not None:
            text = f"{server['name']} is no longer cut off; what it did by itself is settled ({body['over']} changes)"
            note(db, command, "server", server["id"], text)
        return Applied({"n": known})

    def _take_over(db: Database, command: Command, fact: Fact, told: Told, *, name: str) -> None:
        rule = rules.get(fact.command.type)
        if rule is None:
            raise InvariantBroken(
                f"{name} did a {fact.command.type!r} by itself, which this version does not know: install a newer one"
            )
        # Sent once more, perhaps to another server, it is answered and not done again.
        db.execute(
            "insert or ignore into outcomes (id, idx, outcome)"
            " values (?, (select coalesce(max(idx), 0) + 1 from outcomes), ?)",
            [fact.command.id, encode_outcome(fact.outcome)],
        )
        for kind, subject, text in fact.lines:
            note(db, fact.command, kind, subject, f"{text} ({name} was cut off)")
        if fact.record is not None:
            rule.settle(db, command, fact.record.values, told)

    return settle
