"""A school day in virtual time: the real rules and plans, servers and people played.

What decides is kmgr's own: every change goes through the real appliers, every plan is
the balancer's, a claim is the applier's choice. What is played: servers that boot and
remove desktops and report how full they are, people who log in and out, a clock.

The day: standbys ramp up from 07:00, people come at 08:00, a version is published at
10:00, two servers lose their power (one returns), one drains at 17:00, people go home.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from kmgr.balancer.fencing import Fencing
from kmgr.balancer.model import Action, Assign, DropCopy, Forget, ForgetCopy, GoOn, Place, Relocate, Retire, View
from kmgr.balancer.plan import plan
from kmgr.balancer.redundancy import can_lose_one
from kmgr.grid.envelope import Applied, Outcome
from kmgr.grid.model import ServerState
from kmgr.grid.queries import servers as read_servers
from kmgr.ids import DesktopId, ServerId, TemplateId, VersionId
from kmgr.provision.lease import TAKE_OVER_S
from kmgr.provision.lifecycle import LIVING
from kmgr.provision.model import Desktop, DesktopState
from kmgr.provision.move_rows import moves
from kmgr.provision.queries import asks, copies
from kmgr.provision.queries import desktop as read_desktop
from kmgr.replica.protect import LOST_FOR_GOOD_S
from kmgr.templates.queries import templates
from tests.lab.school_report import Report
from tests.lab.state import State

MEMORY_MIB, OVERHEAD_MIB = 1024, 64
LOST_AFTER_S = 8
BOOT_S = 12.0
REMOVE_S = 1.0
START_S = 5.0
MOVE_S = 20.0
COPY_S = 60.0
ASK_AGAIN_S = 2.0
VOTERS = 5


def clock(hour: float) -> float:
    """Return the second of the day."""
    return hour * 3600.0


@dataclass(slots=True)
class Box:
    """A server that is played: its processors, and what it works on."""

    id: ServerId
    cpus: int
    memory_mib: int
    power: bool = True
    here: set[DesktopId] = field(default_factory=set)
    working: int = 0


class SchoolDay:
    """The day of a grid of `servers` servers for `people`; `run()` plays it and returns what it saw."""

    def __init__(self, *, servers: int, people: int, personal: int = 0, seed: int = 1) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - the same day for the same seed
        self.state = State()
        self.now = clock(6.9)
        self.report = Report(servers=servers, people=people)
        self.desktops: dict[DesktopId, Desktop] = {}
        self.boxes: dict[ServerId, Box] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._round_at = -1.0
        self._fencing = Fencing(TAKE_OVER_S)
        self._living: Counter[str] = Counter()
        self._held: dict[tuple[str, str], DesktopId] = {}
        self._booting: set[tuple[DesktopId, int]] = set()
        self.people = people
        # A template has at most a thousand desktops.
        self._found(servers, max(4, -(-people // 900)), personal)

    # -- the grid ------------------------------------------------------------------------------------------------

    def _found(self, servers: int, pooled: int, personal: int) -> None:
        each = -(-self.people // servers)
        # Room for a server's share, for that of two lost ones among the others, and for former versions meanwhile.
        memory = round((each * 1.35 + 12) * (MEMORY_MIB + OVERHEAD_MIB)) + 2048
        for number in range(servers):
            server = self.state.server(f"{number:03d}")
            self.boxes[server] = Box(server, cpus=32, memory_mib=memory)
            self._hear(server)
        for version in ("ver-1", "ver-2"):
            self.state.version(version, self.boxes)
        self.pools = [f"tpl-class{n}" for n in range(pooled)]
        share = -(-(self.people - personal) // pooled)
        for template in self.pools:
            self.state.template(
                template[4:], standby=max(2, share // 10), maximum=share + share // 10, memory_mib=MEMORY_MIB
            )
        self.own = ""
        if personal:
            self.own = self.state.template(
                "staff", standby=max(2, personal // 10), maximum=personal + 10, memory_mib=MEMORY_MIB, kind="personal"
            )
        self.staff = personal
        self.share = share
        self.victims = self.chance.sample(sorted(self.boxes), 3)

    def run(self) -> Report:
        """Play the day to its end."""
        self._plan_the_day()
        while self._events:
            at, _, what = heapq.heappop(self._events)
            self.now = max(self.now, at)
            what()
        self.report.end(self)
        return self.report

    def _plan_the_day(self) -> None:
        ramp = max(2, round(self.share * 0.9))
        self._at(clock(7.0), lambda: self._standby(ramp))
        self._at(clock(9.0), lambda: self._standby(max(2, self.share // 20)))
        self._at(clock(10.0), self._publish)
        self._at(clock(11.33), lambda: self._power_cut(self.victims[0]))
        self._at(clock(12.5), lambda: self._power_on(self.victims[0]))
        self._at(clock(13.75), lambda: self._power_cut(self.victims[1]))
        self._at(clock(17.0), lambda: self._drain(self.victims[2]))
        for minute in range(7 * 60, 18 * 60 + 30, 10):
            self._at(minute * 60.0, self._check_redundancy)
        for quarter in range(4 * 450, 4 * 597):
            self._at(quarter * 15.0, self._check_spread)
        for number in range(self.people):
            # Most come within ten minutes; the last ones later.
            self._at(clock(8.0) + min(5400.0, self.chance.expovariate(1 / 300)), partial(self._come, number))
        self._soon()

    def _standby(self, each: int) -> None:
        for template in self.pools:
            self._must(self.state.do("template.update", template=template, standby=each))
        self._soon()

    def _publish(self) -> None:
        before = {d.id for d in self.desktops.values() if d.state is DesktopState.IN_USE}
        for template in self.pools:
            self._must(self.state.do("template.publish", template=template, version="ver-2", notes=""))
        after = {d.id for d in self.desktops.values() if d.state is DesktopState.IN_USE}
        assert before == after, "a publication cut a session"
        self._soon()

    # -- servers -------------------------------------------------------------------------------------------------

    def _power_cut(self, server: ServerId) -> None:
        box = self.boxes[server]
        box.power = False
        victims = [self.desktops[d] for d in sorted(box.here) if self.desktops[d].state is DesktopState.IN_USE]
        self.report.cut(self.now, server, len(victims))
        self._at(self.now + LOST_AFTER_S, lambda: self._lost(server))
        for desktop in victims:
            # Whoever was thrown out looks at the portal again a few seconds later.
            user, template, since = str(desktop.user), desktop.template, self.now
            again = self.now + 2 + self.chance.random() * 8
            self._at(again, partial(self._want, user, template, since, back=True))

    def _lost(self, server: ServerId) -> None:
        self._must(self.state.do("server.lost", server=server))
        self.state.silence(server)
        self._at(self.now + TAKE_OVER_S + 1, self._soon)
        self._soon()

    def _power_on(self, server: ServerId) -> None:
        box = self.boxes[server]
        box.power = True
        self._must(self.state.do("server.up", server=server))
        self._hear(server)
        for desktop in sorted(box.here):
            self._look_after(desktop)
        self._soon()

    def _drain(self, server: ServerId) -> None:
        used = sum(self.desktops[d].state is DesktopState.IN_USE for d in self.boxes[server].here)
        self._must(self.state.do("server.drain", server=server))
        self.report.drain(self.now, server, used)
        self._soon()

    def _hear(self, server: ServerId) -> None:
        box = self.boxes[server]
        if not box.power:
            return
        taken = sum(MEMORY_MIB + OVERHEAD_MIB for d in box.here if self.desktops[d].state is not DesktopState.PLACED)
        free = box.memory_mib - 1024 - taken
        self.state.hear(server, cpus=box.cpus, memory_mib=box.memory_mib, memory_free_mib=max(0, free))

    def _look_after(self, desktop: DesktopId) -> None:
        """What a server's agent would do about one of its desktops now."""
        now = self.desktops.get(desktop)
        if now is None or not self.boxes[now.server].power:
            return
        report = {"desktop": now.id, "generation": now.generation, "server": now.server}
        box = self.boxes[now.server]
        if now.moving_to is not None:
            self._at(self.now + MOVE_S, lambda: self._moved(now))
        elif now.state is DesktopState.PLACED:
            self._do("desktop.building", now.id, **report)
        elif now.state is DesktopState.BUILDING and (now.id, now.generation) not in self._booting:
            self._booting.add((now.id, now.generation))
            box.working += 1
            took = BOOT_S * max(1.0, box.working / box.cpus) * (0.8 + 0.4 * self.chance.random())
            self._at(self.now + took, lambda: self._booted(now, box))
        elif now.state is DesktopState.RETIRED:
            self._at(self.now + REMOVE_S, lambda: self._removed(now))

    def _booted(self, desktop: Desktop, box: Box) -> None:
        box.working -= 1
        self._booting.discard((desktop.id, desktop.generation))
        now = self.desktops.get(desktop.id)
        if box.power and now is not None and now.state is DesktopState.BUILDING and now.server == box.id:
            self._do(
                "desktop.ready", desktop.id, desktop=desktop.id, generation=desktop.generation, server=desktop.server
            )

    def _removed(self, desktop: Desktop) -> None:
        now = self.desktops.get(desktop.id)
        if now is not None and now.state is DesktopState.RETIRED and self.boxes[now.server].power:
            report = {"desktop": now.id, "generation": now.generation, "server": now.server}
            self._do("desktop.removed", desktop.id, **report)

    def _moved(self, desktop: Desktop) -> None:
        now = self.desktops.get(desktop.id)
        if now is None or now.moving_to is None or not self.boxes[now.server].power:
            return
        report = {"desktop": now.id, "generation": now.generation, "server": now.server}
        if self.boxes[now.moving_to].power and now.state is DesktopState.IN_USE:
            self._do("desktop.moved", now.id, **report, target=now.moving_to)
            self.report.moved += 1
        else:
            self._do("desktop.move_failed", now.id, **report, cause="the other server is gone")

    # -- people --------------------------------------------------------------------------------------------------

    def _come(self, number: int) -> None:
        template = self.own if number < self.staff else self.pools[number % len(self.pools)]
        self._want(f"user{number}", TemplateId(template), self.now, back=False)

    def _want(self, user: str, template: TemplateId, since: float, *, back: bool) -> None:
        # Who asked for theirs meanwhile, elsewhere, has it.
        outcome = self.state.do("desktop.claim", user=user, template=template)
        if isinstance(outcome, Applied):
            desktop = DesktopId(str(outcome.values["desktop"]))
            self._read(desktop)
            self._check_claim(user, template, desktop)
            self.report.waited(self.now - since, back=back)
            self._soon()
            self._go_home(user, template, desktop)
            return
        if outcome.code == "none_ready":
            self.state.do("desktop.ask", user=user, template=template)
        self._soon()
        self._at(self.now + ASK_AGAIN_S, lambda: self._want(user, template, since, back=back))

    def _go_home(self, user: str, template: TemplateId, desktop: DesktopId) -> None:
        if template == self.own:
            return
        leaves = clock(15) + self.chance.random() * clock(3)
        if self.chance.random() < 0.3 and self.now < clock(12):
            leaves = clock(12) + self.chance.random() * 1800
            self._at(leaves + 3600, lambda: self._want(user, template, self.now, back=False))
        self._at(max(leaves, self.now + 60), lambda: self._leave(user, desktop))

    def _leave(self, user: str, desktop: DesktopId) -> None:
        now = self.desktops.get(desktop)
        if now is None or now.user != user or now.state is not DesktopState.IN_USE:
            return
        if self.boxes[now.server].power:
            self._do("desktop.release", desktop, desktop=desktop, user=user)
            self._soon()

    # -- the balancer --------------------------------------------------------------------------------------------

    def _soon(self) -> None:
        """A round follows a change within a second; where there are many desktops, one in five seconds."""
        gap = 1.0 if len(self.desktops) < 1000 else 5.0
        at = max(self.now + 0.5, self._last_round + gap)
        if self._round_at < self.now or self._round_at > at:
            self._round_at = at
            self._at(at, self._round)

    _last_round = -1e9

    def view(self) -> View:
        """Return what the balancer sees; the records are the appliers' own, read again only where they changed."""
        db = self.state.db
        servers = read_servers(db, removed=True)
        held = frozenset(self.boxes)
        return View(
            servers=servers,
            templates=templates(db),
            desktops=tuple(self.desktops.values()),
            holders=dict.fromkeys((VersionId("ver-1"), VersionId("ver-2")), held),
            vitals=dict(self.state.vitals),
            asks=Counter(ask.template for ask in asks(db)),
            copies=copies(db),
            fenced=self._fencing.fenced(servers, self.now),
            given_up=frozenset(s.id for s in servers if self._fencing.lost_for(s, self.now) >= LOST_FOR_GOOD_S),
            moves={move.desktop: move for move in moves(db)},
        )

    def _round(self) -> None:
        if self._round_at != self.now:
            return  # another one was called for sooner
        self._last_round, self._round_at = self.now, -1.0
        for server in self.boxes:
            self._hear(server)
        view = self.view()
        decided = plan(view)
        self.report.rounds += 1
        states = {server.id: server.state for server in view.servers}
        for action in decided.actions:
            self._carry_out(action, states)
        if decided.actions or view.asks:
            self._soon()

    def _carry_out(self, action: Action, states: dict[ServerId, ServerState]) -> None:
        match action:
            case Place(template, version, server):
                made = DesktopId(f"dsk-{next(self._number):06d}")
                self._do("desktop.place", made, desktop=made, template=template, version=version, server=server)
            case Retire(desktop, why):
                if desktop.state is DesktopState.IN_USE:
                    assert states[desktop.server] is ServerState.LOST, f"{why} cut the session of {desktop.user}"
                believed = {
                    "generation": desktop.generation,
                    "state": desktop.state,
                    "server_state": states[desktop.server],
                }
                self._do("desktop.retire", desktop.id, desktop=desktop.id, why=why, **believed)
            case Relocate(desktop, target, why):
                where = {"server": desktop.server, "target": target, "why": why}
                self._do("desktop.move", desktop.id, desktop=desktop.id, generation=desktop.generation, **where)
            case Forget(desktop):
                self._do("desktop.forget", desktop, desktop=desktop)
            case Assign(desktop, server):
                self._must(
                    self.state.do("copy.assign", desktop=desktop.id, generation=desktop.generation, server=server)
                )
                self._at(self.now + COPY_S, partial(self._copied, desktop, server))
            case GoOn(desktop, target, lost_at):
                body = {"desktop": desktop.id, "generation": desktop.generation, "server": desktop.server}
                self._do("desktop.take_over", desktop.id, **body, lost_at=lost_at, target=target)
                self.report.taken_over += 1
                self._at(self.now + START_S, partial(self._promoted, desktop.id, desktop.generation + 1, target))
            case DropCopy(copy):
                self.state.do("copy.drop", desktop=copy.desktop, server=copy.server, generation=copy.generation)
                self.state.do("copy.dropped", desktop=copy.desktop, server=copy.server, generation=copy.generation)
            case ForgetCopy():
                pass

    def _promoted(self, desktop: DesktopId, generation: int, server: ServerId) -> None:
        now = self.desktops.get(desktop)
        if now is not None and (now.server, now.generation) == (server, generation) and self.boxes[server].power:
            body = {"desktop": desktop, "generation": generation, "server": server, "as_of": round(self.now * 1000)}
            self._must(self._do("copy.promoted", desktop, **body))
            self._soon()

    def _copied(self, desktop: Desktop, server: ServerId) -> None:
        now = self.desktops.get(desktop.id)
        if now is None or now.generation != desktop.generation or not self.boxes[now.server].power:
            return
        point = {"desktop": now.id, "generation": now.generation, "server": server}
        at = round(self.now * 1000)
        self.state.do("copy.points", server=now.server, points=[{**point, "as_of": at, "bytes": 1 << 20}])

    # -- rules that hold at every moment ---------------------------------------------------------------------------

    def _do(self, command: str, which: DesktopId, **body: object) -> Outcome:
        self.state.at = max(self.state.at, round(self.now * 1000))
        outcome = self.state.do(command, **body)
        self.report.commands += 1
        self._read(which)
        self._look_after(which)
        return outcome

    def _read(self, desktop: DesktopId) -> None:
        """Read one record again and check what must hold of it."""
        old, new = self.desktops.pop(desktop, None), read_desktop(self.state.db, desktop)
        for record, step in ((old, -1), (new, 1)):
            if record is None:
                continue
            here = self.boxes[record.server].here
            (here.add if step > 0 else here.discard)(desktop)
            if record.state in LIVING:
                self._living[record.template] += step
            key = (record.template, str(record.user))
            if record.state is DesktopState.IN_USE and step < 0 and self._held.get(key) == desktop:
                del self._held[key]
        if new is None:
            return
        self.desktops[desktop] = new
        most = self.maximum(new.template)
        assert self._living[new.template] <= most, f"{new.template} has more than its maximum of {most}"
        if new.state is DesktopState.IN_USE:
            key = (new.template, str(new.user))
            other = self.desktops.get(self._held.get(key, DesktopId("")))
            assert other is None or other.id == desktop or not self.boxes[other.server].power, (
                f"{key} has two desktops"
            )
            self._held[key] = desktop

    def maximum(self, template: str) -> int:
        """Return a template's maximum, which the day never changes."""
        return self.staff + 10 if template == self.own else self.share + self.share // 10

    def _check_claim(self, user: str, template: TemplateId, desktop: DesktopId) -> None:
        now = self.desktops[desktop]
        assert (now.user, now.template, now.state) == (user, template, DesktopState.IN_USE)

    def _check_redundancy(self) -> None:
        """N+1 is kept, or it is told that it is not: reckoned here by other means than the balancer's."""
        view = self.view()
        told = can_lose_one(view, frozenset(sorted(self.boxes)[:VOTERS]))
        up = [box for box in self.boxes.values() if box.id in view.vitals]
        free = {box.id: box.memory_mib - len(box.here) * (MEMORY_MIB + OVERHEAD_MIB) for box in up}
        spare = sum(max(0, mib) for mib in free.values())
        for box in up:
            if spare - max(0, free[box.id]) < len(box.here) * MEMORY_MIB:
                assert not told.ok, f"nobody is told that {box.id} may not be lost"
        for box in up:
            assert free[box.id] >= 0, f"more memory is promised on {box.id} than it has"
        self.report.redundancy(self.now, told)
        if self.now < clock(18):
            self._soon()

    def _check_spread(self) -> None:
        """Where the standbys are: in the storm, and after it."""
        up = sum(box.id in self.state.vitals for box in self.boxes.values())
        ready: dict[str, list[ServerId]] = {pool: [] for pool in self.pools}
        for desktop in self.desktops.values():
            if desktop.state is DesktopState.READY and desktop.template in ready:
                ready[desktop.template].append(desktop.server)
        storm = clock(8) <= self.now < clock(8.5)
        phase = "in the storm" if storm else "before it" if self.now < clock(8) else "after it"
        for pool, where in ready.items():
            self.report.spread.look(pool, where, servers=up, now=self.now, phase=phase)

    def _at(self, at: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at, next(self._number), what))

    def _must(self, outcome: Outcome) -> None:
        assert isinstance(outcome, Applied), outcome
        self.report.commands += 1
