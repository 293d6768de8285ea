"""What was done on an island is taken over whatever the majority did meanwhile, in any pieces, any number of times.

An island and a majority begin from one state and go their ways, decided by chance;
then the island's facts are settled. Nothing may raise, nobody may be lost, and
cutting the hand-over anywhere, or repeating a part of it, must change nothing.
"""

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlite_utils import Database

from kmgr.grid.envelope import Applied, Command, Outcome
from kmgr.grid.rows import one, rows, scalar
from kmgr.grid.settle import SETTLE, Fact, settled, spelled
from kmgr.ids import CommandId, ServerId
from kmgr.registry import APPLIERS, ISLAND
from tests.lab.state import State

A, B, C = (ServerId(f"srv-{letter}") for letter in "abc")
USERS = ("anna", "berta", "carl")
OUTBOX = "out-1"

Step = tuple[str, int, int]
steps = st.lists(st.tuples(st.sampled_from("abcdefghijkl"), st.integers(0, 5), st.integers(0, 5)), max_size=12)


class Side:
    """One of the two truths; the island's notes its facts."""

    def __init__(self, db: Database, *, island: bool) -> None:
        self.db = db
        self.island = island
        self.facts: list[Fact] = []
        self._count = 0

    def do(self, type: str, **body: Any) -> Outcome | None:
        """Apply a command as the state machine and the scratch do."""
        self._count += 1
        word = "i" if self.island else "m"
        command = Command(type, CommandId(f"{word}-{self._count}"), 5_000 + self._count, "test", body)
        rule = ISLAND.get(type)
        if self.island and (rule is None or rule.refuse(self.db, command, C)):
            return None
        applier = (rule.apply if self.island and rule else None) or APPLIERS[type]
        last = scalar(self.db, "select coalesce(max(n), 0) from events")
        self.db.conn.execute("savepoint entry")
        outcome = applier(self.db, command)
        if not isinstance(outcome, Applied):
            self.db.conn.execute("rollback to entry")
        self.db.conn.execute("release entry")
        if self.island and rule is not None and isinstance(outcome, Applied):
            lines = rows(self.db, "select kind, subject, text from events where n > ? order by n", [last])
            told = tuple((line["kind"], line["subject"], line["text"]) for line in lines)
            self.facts.append(
                Fact(command, outcome, told, rule.record(self.db, command, outcome), len(self.facts) + 1)
            )
        return outcome

    def step(self, step: Step) -> None:
        """Do something that may happen on this side."""
        what, first, second = step
        mine = [d for d in rows(self.db, "select * from desktops order by id") if (d["server"] == C) == self.island]
        desktop = mine[first % len(mine)] if mine else None
        user, server = USERS[second % len(USERS)], C if self.island else (A, B)[second % 2]
        body = {"desktop": desktop["id"], "generation": desktop["generation"], "server": server} if desktop else {}
        match what:
            case "a" | "b":
                self.do("desktop.claim", user=user, template=f"tpl-{'xy'[first % 2]}")
            case "c":
                new = f"dsk-{'i' if self.island else 'm'}{len(mine)}{self._count}"
                self.do("desktop.place", desktop=new, template="tpl-x", version="ver-1", server=server)
            case "d" if desktop:
                self.do("desktop.building", **body)
            case "e" if desktop:
                self.do("desktop.ready", **body)
            case "f" if desktop:
                self.do("desktop.failed", **body, step="run", cause="chance")
            case "g" if desktop and desktop["user"]:
                self.do("desktop.release", desktop=desktop["id"], user=desktop["user"])
            case "h" if desktop and desktop["state"] == "retired":
                self.do("desktop.removed", **body)
            case "i":
                self.do("session.open", hash=f"h{first}", name=user, display_name=user, groups=[], role="user",
                        source="built-in", address="", server=server, expires_at=10**12)  # fmt: skip
            case "j":
                self.do("session.close" if second % 2 else "session.close_all", hash=f"h{first}", name=user)
            case _:
                return

    def meddle(self, which: int, user: str) -> None:
        """The majority decides about the server that it does not hear: all of it, or parts."""
        far = rows(self.db, "select * from desktops where server = ? order by id", [C])
        match which:
            case 0:
                self.do("server.lost", server=C)
                for desktop in far:
                    self.do("desktop.retire", desktop=desktop["id"], why="its server is lost")
            case 1:
                self.do("template.delete", template="tpl-x")
            case 2:
                self.do("account.update", name=user, disabled=True)
            case 3:
                self.do("account.password", name=user, password_hash="another")
            case 4:
                for desktop in far:
                    self.do("desktop.retry", desktop=desktop["id"])
            case _:
                self.do("server.drain", server=C)


def begun() -> State:
    """Return a grid of three servers with a standby on each and one desktop in use on each."""
    state = State()
    for name in "abc":
        state.server(name)
    state.version("ver-1", (A, B, C))
    for name in "xy":
        state.template(name)
        for server in (A, B, C):
            state.desktop(f"tpl-{name}", server)
    state.desktop("tpl-x", C, "in_use", user="anna")
    state.desktop("tpl-x", A, "in_use", user="berta")
    state.desktop("tpl-x", C, "broken")
    state.desktop("tpl-x", C, "retired")
    for user in ("root", *USERS):
        plain = {"display_name": user, "groups": [], "password_hash": "secret"}
        state.do("account.create", name=user, role="admin" if user == "root" else "user", **plain)
    return state


def copied(db: Database) -> Database:
    copy = Database(memory=True)
    copy.conn.isolation_level = None
    copy.conn.deserialize(db.conn.serialize())
    return copy


def settle(db: Database, facts: list[Fact], connected: list[str], at: int) -> None:
    body = {"server": C, "outbox": OUTBOX, "facts": [spelled(f) for f in facts], "connected": connected, "over": None}
    outcome = APPLIERS[SETTLE](db, Command(SETTLE, CommandId(f"s-{at}"), 9_000, C, body))
    assert isinstance(outcome, Applied)


def shown(db: Database) -> dict[str, list[Any]]:
    tables = ("desktops", "sessions", "templates", "servers", "events", "outcomes", "settled")
    return {table: sorted(map(str, db[table].rows)) for table in tables}


@given(
    alone=steps,
    together=steps,
    decided=st.sets(st.integers(0, 5), max_size=3),
    cuts=st.lists(st.integers(0, 12), max_size=4),
    looked=st.integers(0, 2),
)
@settings(max_examples=150, deadline=None)
def test_settling_in_any_pieces_and_again_is_settling_once(
    alone: list[Step], together: list[Step], decided: set[int], cuts: list[int], looked: int
) -> None:
    state = begun()
    island, majority = Side(copied(state.db), island=True), Side(state.db, island=False)
    island.db.execute("update servers set state = 'lost' where id <> ?", [C])
    for step in alone:
        island.step(step)
    for step in together:
        majority.step(step)
    for which in sorted(decided):
        majority.meddle(which, USERS[which % len(USERS)])
    used = [d["id"] for d in rows(island.db, "select id from desktops where state = 'in_use' order by id")]
    connected = used[:looked]
    whole, pieces = copied(majority.db), copied(majority.db)
    settle(whole, island.facts, connected, 0)
    begin = 0
    for number, cut in enumerate(sorted(min(cut, len(island.facts)) for cut in cuts)):
        settle(pieces, island.facts[begin:cut], connected, number)
        # The answer was lost: it is told once more, from where the island believes that it is.
        settle(pieces, island.facts[begin : cut + 1], connected, number)
        begin = cut
    settle(pieces, island.facts[begin:], connected, 99)
    settle(pieces, island.facts, connected, 100)
    assert shown(pieces) == shown(whole)
    assert settled(whole, OUTBOX) == len(island.facts)
    hold(whole, island, majority)


def hold(db: Database, island: Side, majority: Side) -> None:
    """Hold what must be so whatever happened."""
    desktops = rows(db, "select * from desktops order by id")
    # History is complete.
    told = Counter(row["text"] for row in rows(db, "select text from events order by n"))
    for fact in island.facts:
        for _, _, text in fact.lines:
            assert told[f"{text} (c was cut off)"], text
    # Later desktops find a free name.
    for template in rows(db, "select * from templates order by id"):
        assert f"{template['name']}-{template['next_number']}" not in {d["name"] for d in desktops}
    # Nobody has two desktops of a template on servers that run.
    running = {row["id"] for row in rows(db, "select id from servers where state in ('up', 'draining') order by id")}
    before = Counter(
        (d["user"], d["template"])
        for d in rows(majority.db, "select * from desktops where state = 'in_use' order by id")
    )
    now = Counter((d["user"], d["template"]) for d in desktops if d["state"] == "in_use" and d["server"] in running)
    assert all(count <= max(1, before[who]) for who, count in now.items()), now
    # Whoever was given a desktop on the island has it, or another one of the template.
    by_id = {d["id"]: d for d in desktops}
    for mine in rows(island.db, "select * from desktops where server = ? and state = 'in_use' order by id", [C]):
        given_there = any(f.record and f.record.about == f"desktop:{mine['id']}" for f in island.facts)
        known = by_id.get(mine["id"])
        remade = known is not None and known["generation"] > mine["generation"]
        if given_there and not remade:
            assert now[(mine["user"], mine["template"])] >= 1, mine
    # Sessions of closed accounts, or of another password, are gone.
    for session in rows(db, "select * from sessions order by hash"):
        account = one(db, "select * from accounts where name = ?", [session["name"]])
        assert account is not None
        assert not account["disabled"]
