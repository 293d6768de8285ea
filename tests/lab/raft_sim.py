"""A grid of `Core`s on one thread, a clock of its own and disks that forget: every run is decided by its seed.

The code under test is the real one (pysyncobj included); only the clock, the
link and the journal's file are the simulation's. Servers are killed in the
middle of any write, lose what was not synced, are cut off, added and removed,
and the log is compacted every few entries.

After each step: a committed entry is the same on every server for ever, and a
term has one leader. At the end: all agree, and every acknowledged change is there once.
"""

import random
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kmgr.errors import Unavailable
from kmgr.grid.envelope import Applied, Command, encode
from kmgr.grid.raft import opening
from kmgr.grid.raft.barriers import Barrier
from kmgr.grid.raft.core import Core
from kmgr.grid.raft.library import Timing
from kmgr.grid.raft.proposals import Proposal
from kmgr.grid.rows import rows
from kmgr.grid.schema import SCHEMA
from kmgr.grid.store import Store
from kmgr.ids import CommandId, ServerId
from tests.lab.sim_copies import older_copy
from tests.lab.sim_parts import NOTES, Faults, Killed, Later, Promise, Sick, SimFile, SimLink, Simulated, add_note

TIMING = Timing(
    election_min_s=0.5, election_max_s=1.0, beat_s=0.1, fallback_s=0.75, compact_entries=15, compact_most=0
)


class Broken(AssertionError):
    """A promise of the log was broken; the message says which, with the seed."""


@dataclass
class Sim:
    """The whole grid and its fate."""

    folder: Path
    seed: int
    faults: Faults
    size: int = 3
    now: float = 1000.0
    acknowledged: set[int] = field(default_factory=set)
    count: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        SimFile.sim = self
        random.seed(self.seed)
        self.dice = random.Random(self.seed)  # noqa: S311 - decides a run, protects nothing
        self.files: dict[Path, SimFile] = {}
        self.connected: set[frozenset[ServerId]] = set()
        self.queues: dict[tuple[ServerId, ServerId], deque[bytes]] = defaultdict(deque)
        self.committed: dict[int, tuple[bytes, int]] = {}
        self.leaders: dict[int, ServerId] = {}
        self.blocked: set[frozenset[ServerId]] = set()
        self.lives: int | None = None
        # No disk is sick meanwhile.
        self.well = True
        self.said = 0
        self.servers: dict[ServerId, Simulated] = {}
        self.fed: set[ServerId] = set()
        self.promises: dict[ServerId, Promise] = defaultdict(Promise)
        self.votes: dict[ServerId, ServerId | None] = {}
        # Copies of whole folders; who was put back to one and is not whole yet; whether that is about to happen.
        self.copies, self.soon = dict[ServerId, Path](), False
        self.put_back: ServerId | None = None
        self.waiting_room = [ServerId(f"srv-{n}") for n in range(self.size, self.size + 40)]
        for n in range(self.size):
            server = ServerId(f"srv-{n}")
            self.servers[server] = Simulated(server)
            self.begin(server, founder=n == 0)

    def tick(self) -> float:
        """The clock, which moves a little at every look."""
        self.now += 2e-5
        return self.now

    def breath(self) -> None:
        """A point where the running process may end."""
        if self.lives is not None:
            self.lives -= 1
            if self.lives <= 0:
                self.lives = None
                raise Killed

    # Servers.

    def begin(self, id: ServerId, *, founder: bool = False) -> None:
        """Start a server from its folder."""
        server = self.servers[id]
        home = self.folder / id
        home.mkdir(exist_ok=True)
        store = Store(home / "state.sqlite", (SCHEMA, NOTES))
        try:
            opened = opening.open_folder(home / "raft", store, id, founder=founder)
            store.guard()
            server.core = Core(
                id,
                opened=opened,
                folder=home / "raft",
                store=store,
                appliers={"note.add": add_note},
                link=SimLink(self, id),
                timing=TIMING,
                background=Later(self.dice),
            )
        except (Killed, Sick):
            store.close()
            self.count["killed at start"] += 1
            return
        server.store = store
        for other in self.servers:
            self.connect(id, other)

    def kill(self, id: ServerId, *, power: float = 0.7) -> None:
        """End a server, perhaps together with its power."""
        server = self.servers[id]
        if server.core is None or server.store is None:
            return
        for other in self.servers:
            # What it said last may still arrive.
            if self.dice.random() < 0.5 and frozenset({id, other}) not in self.blocked:
                self.hear_out(id, other)
            self.disconnect(id, other)
        core, server.core = server.core, None
        core.abandon()
        server.store.close()
        home = self.folder / id
        self.count["kills"] += 1
        if self.faults.power_cuts and self.dice.random() < power:
            self.files[home / "raft" / "journal"].lose_power(self.dice)
        if self.dice.random() < 0.3:
            for file in home.glob("state.sqlite*"):
                file.unlink()

    def connect(self, a: ServerId, b: ServerId) -> None:
        """Connect two living servers."""
        pair = frozenset({a, b})
        if a == b or pair in self.connected or pair in self.blocked:
            return
        cores = self.servers[a].core, self.servers[b].core
        if None in cores:
            return
        self.connected.add(pair)
        for core, other in zip(cores, (b, a), strict=True):
            assert core is not None
            core.up(other)

    def disconnect(self, a: ServerId, b: ServerId) -> None:
        """Break a connection; what was on the way is lost."""
        pair = frozenset({a, b})
        if pair not in self.connected:
            return
        self.connected.discard(pair)
        for here, there in ((a, b), (b, a)):
            self.queues[here, there].clear()
            core = self.servers[here].core
            if core is not None:
                core.down(there)

    # Steps.

    def run(self, steps: int) -> None:
        """Grow the grid, disturb it, heal it, and look."""
        self.calm(lambda: self.leader() is not None)
        for server in list(self.servers)[1:]:
            self.ask_for_voter(server)
        for _ in range(self.faults.learners):
            self.newcomer()
        self.well = False
        for _ in range(steps):
            self.step()
        self.blocked.clear()
        self.lives, self.well = None, True
        self.calm(self.level)
        self.judge()

    def step(self) -> None:
        """Do one thing that the dice choose."""
        self.now += self.dice.random() * 0.006
        chance = self.dice.random()
        if chance < 0.50:
            self.deliver()
        elif chance < 0.80:
            self.round(self.any_alive())
        elif chance < 0.89:
            self.propose()
        elif chance < 0.90:
            self.read(self.any_alive())
        elif chance < 0.925:
            self.disturb()
        elif chance < 0.94 and self.faults.older:
            older_copy(self)
        leading = [server for server in self.servers.values() if server.core and server.core._library.leads]
        if len(leading) > 1 and self.dice.random() < 0.3:
            self.read(self.dice.choice(leading))
        self.check()

    def calm(self, until: Callable[[], bool]) -> None:
        """Let time pass without faults until something is so."""
        for turn in range(60_000):
            if turn % 200 == 0:
                self.mend_all()
            self.check()
            if turn % 200 == 199 and until():
                return
            self.now += 0.002
            if self.dice.random() < 0.6:
                self.deliver()
            else:
                self.round(self.any_alive())
        raise Broken(f"seed {self.seed}: the grid does not come to rest: {self.describe()}")

    def mend_all(self) -> None:
        """Start everybody and connect everybody."""
        for a in self.servers:
            if self.servers[a].core is None:
                self.begin(a)
            for b in self.servers:
                self.connect(a, b)

    def act(self, server: Simulated, action: Callable[[Core], object]) -> None:
        """Let a server do something; it may be killed over it."""
        if server.core is None:
            return
        try:
            action(server.core)
        except Killed:
            self.kill(server.id)
            return
        except Sick:
            self.count["sick disks"] += 1
            self.kill(server.id, power=0.1)
            return
        vote = server.core._journal.vote
        if (
            self.faults.kills
            and vote not in {None, server.id, self.votes.get(server.id)}
            and self.dice.random() < 0.15
        ):
            # Whoever has just voted may forget it only if it never told anybody.
            self.kill(server.id)
            self.begin(server.id)
        self.votes[server.id] = vote

    def any_alive(self) -> Simulated:
        """Choose a server."""
        return self.dice.choice([s for s in self.servers.values() if s.core is not None] or [self.servers_first()])

    def servers_first(self) -> Simulated:
        """Return any server when none is alive."""
        return next(iter(self.servers.values()))

    def round(self, server: Simulated) -> None:
        """Let a server do a round; a leader is told now and then whom to send the log."""
        if self.dice.random() < 0.05:
            self.act(server, lambda core: core.feed(frozenset(self.fed)))
        self.act(server, lambda core: core.step())

    def deliver(self) -> None:
        """Deliver one frame."""
        # Sorted, because pysyncobj sends in the order of a set, which is another one in each process.
        ways = sorted(way for way, queue in self.queues.items() if queue and frozenset(way) not in self.blocked)
        if ways:
            source, target = self.dice.choice(ways)
            frame = self.queues[source, target].popleft()
            self.act(self.servers[target], lambda core: core.receive(source, frame))

    def hear_out(self, source: ServerId, target: ServerId) -> None:
        """Deliver all that is on the way from one server to another."""
        queue, core = self.queues[source, target], self.servers[target].core
        lives, self.lives, well, self.well = self.lives, None, self.well, True
        while queue and core is not None:
            core.receive(source, queue.popleft())
        self.lives, self.well = lives, well

    def propose(self) -> None:
        """Propose a change somewhere."""
        server = self.any_alive()
        if server.core is None:
            return
        self.said += 1
        number = self.said
        command = Command("note.add", CommandId(f"cmd-{number}"), 0, "sim", {"n": number})

        def answer(found: object) -> None:
            if isinstance(found, Applied):
                self.acknowledged.add(number)

        server.core.proposals.add(Proposal(command.id, encode(command), answer, self.now))

    def read(self, server: Simulated) -> None:
        """Ask a server for all that is acknowledged by now, and look when it says that it has it."""
        if server.core is None or server.store is None:
            return
        store, known = server.store, set(self.acknowledged)

        def passed(refused: object) -> None:
            if refused is not None:
                return
            with store.view() as db:
                missing = known - {row["n"] for row in rows(db, "select n from notes order by n")}
            if missing:
                raise Broken(f"seed {self.seed}: a current read of {server.id} lacks {sorted(missing)[:10]}")
            self.count["reads"] += 1

        server.core.barriers.add(Barrier(passed))

    def newcomer(self) -> ServerId:
        """Start another server, which learns the log without a vote."""
        newcomer = self.waiting_room.pop()
        self.servers[newcomer] = Simulated(newcomer)
        self.begin(newcomer)
        self.fed.add(newcomer)
        return newcomer

    def disturb(self) -> None:
        """Let something go wrong, or be mended."""
        names = list(self.servers)
        a, b = self.dice.sample(names, 2) if len(names) > 1 else (names[0], names[0])
        chance = self.dice.random()
        if chance < 0.1:
            self.disconnect(a, b)
        elif chance < 0.3:
            for one in names:
                self.connect(a, one)
        elif chance < 0.4:
            self.isolate(a)
        elif chance < 0.6:
            if self.faults.kills:
                self.kill_some(a)
        elif chance < 0.8:
            for one in names:
                if self.servers[one].core is None and self.dice.random() < 0.6:
                    self.begin(one)
        elif chance < 0.9:
            if self.faults.voters and self.put_back is None:
                self.change_voters()
        else:
            self.now += self.dice.random() * 0.8

    def isolate(self, one: ServerId) -> None:
        """Let nothing from or to a server through for a while, with or without anybody noticing."""
        if self.blocked:
            self.blocked.clear()
            return
        if (leader := self.leader()) is not None and self.dice.random() < 0.5:
            one = leader.id
        if self.dice.random() < 0.4:
            self.blocked = {frozenset({one, self.dice.choice([other for other in self.servers if other != one])})}
            return
        self.blocked = {frozenset({one, other}) for other in self.servers if other != one}
        if self.dice.random() < 0.5:
            for other in self.servers:
                self.disconnect(one, other)

    def kill_some(self, one: ServerId) -> None:
        """Kill a server now, in the middle of a write soon, or all of them."""
        chance = self.dice.random()
        if chance < 0.6:
            self.lives = self.dice.randrange(1, 12)
        elif chance < 0.95:
            self.kill(one)
        else:
            for server in list(self.servers):
                self.kill(server)

    def change_voters(self) -> None:
        """Ask the leader to add a newcomer or to remove somebody, sometimes twice at once."""
        if self.dice.random() < 0.3:
            self.change_voters()
        leader = self.leader()
        if leader is None or leader.core is None:
            return
        voters = leader.core.shown.voters
        learners = sorted(self.fed - set(voters))
        if len(voters) < 5 and learners and self.dice.random() < 0.4:
            promoted = self.dice.choice(learners)
            self.ask(lambda core: core.add_voter(promoted))
        elif len(voters) < 5 and self.waiting_room and not self.faults.learners and self.dice.random() < 0.6:
            newcomer = self.newcomer()
            self.ask(lambda core: core.add_voter(newcomer))
        elif len(voters) > 2:
            going = self.dice.choice(voters)
            if going == leader.id:
                self.ask(lambda core: core.hand_over(self.dice.choice(voters)))
            else:
                self.ask(lambda core: core.remove_voter(going))
                if not self.faults.learners:
                    self.fed.discard(going)

    def ask_for_voter(self, server: ServerId) -> None:
        """Make a server a voter, without faults."""
        for _ in range(50):
            self.ask(lambda core: core.add_voter(server))
            self.calm(lambda: self.leader() is not None)
            leader = self.leader()
            if leader is not None and leader.core is not None and server in leader.core.shown.voters:
                return
            self.calm(self.level)
        raise Broken(f"seed {self.seed}: {server} did not become a voter: {self.describe()}")

    def ask(self, what: Callable[[Core], object]) -> None:
        """Ask the leader, who may refuse."""
        leader = self.leader()
        if leader is None:
            return

        def bold(core: Core) -> None:
            try:
                if what(core):
                    self.count["changes of voters"] += 1
            except Unavailable:
                self.count["refused changes of voters"] += 1

        self.act(leader, bold)

    # What must hold.

    def leader(self) -> Simulated | None:
        """Return the leader of the newest term, if it says so itself."""
        leading = [s for s in self.servers.values() if s.core is not None and s.core.shown.leader == s.id]
        return max(leading, key=lambda s: s.core.shown.term if s.core else 0, default=None)

    def taking_part(self) -> list[Simulated]:
        """Return the servers that vote or learn according to the leader."""
        leader = self.leader()
        if leader is None or leader.core is None:
            return []
        return [self.servers[one] for one in sorted({*leader.core.shown.voters, *self.fed})]

    def level(self) -> bool:
        """Whether all voters and learners have applied the same entries."""
        shown = [server.core.shown if server.core else None for server in self.taking_part()]
        return bool(shown) and None not in shown and len({s.applied for s in shown if s}) == 1

    def check(self) -> None:
        """Compare everything committed anywhere, and the leaders of each term."""
        for server in self.servers.values():
            if server.core is None:
                continue
            journal, library = server.core._journal, server.core._library
            promise = self.promises[server.id]
            said = (promise.term, promise.vote, promise.index)
            seen = (server.core, journal.term, journal.vote, journal.last, library.committed, library.leads, said)
            if seen == server.seen:
                continue
            server.seen = seen
            if (broken := promise.broken(journal)) is not None:
                raise Broken(f"seed {self.seed}: {server.id} {broken}")
            if sum(index > max(self.committed, default=0) for index, *_ in journal._changes) > 1:
                raise Broken(f"seed {self.seed}: two changes of voters at once on {server.id}")
            if library.leads and self.leaders.setdefault(library.term, server.id) != server.id:
                raise Broken(f"seed {self.seed}: term {library.term} has two leaders: {self.describe()}")
            for index in range(max(server.checked + 1, journal.first.index), library.committed + 1):
                entry = journal.at(index)
                if entry is None:
                    raise Broken(f"seed {self.seed}: {server.id} lacks its committed entry {index}")
                same = self.committed.setdefault(index, (entry.command, entry.term))
                if same != (entry.command, entry.term):
                    raise Broken(f"seed {self.seed}: entry {index} differs on {server.id}: {self.describe()}")
            server.checked = max(server.checked, library.committed)

    def judge(self) -> None:
        """Compare the states of all voters and learners with each other and with what was acknowledged."""
        held = []
        for server in self.taking_part():
            assert server.store is not None
            with server.store.view() as db:
                held.append([row["n"] for row in rows(db, "select n from notes order by at")])
        if any(one != held[0] for one in held):
            raise Broken(f"seed {self.seed}: the states differ: {self.describe()}")
        lost = sorted(self.acknowledged - set(held[0]))
        if lost:
            raise Broken(f"seed {self.seed}: acknowledged changes are lost: {lost[:10]} of {len(lost)}")
        if len(held[0]) != len(set(held[0])):
            raise Broken(f"seed {self.seed}: a change was made twice")

    def describe(self) -> str:
        """Say what every server believes."""
        return "; ".join(f"{s.id}: {s.core.shown if s.core else 'dead'}" for s in self.servers.values())

    def close(self) -> None:
        """End all servers."""
        self.lives = None
        for server in self.servers.values():
            if server.core is not None and server.store is not None:
                server.core.abandon()
                server.store.close()
                server.core = None
