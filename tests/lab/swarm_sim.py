"""A grid that copies an image, simulated: kmgr's own decisions (`fetch`, `deal`, `choose`), links of arithmetic.

A server's uplink carries one piece at a time, in turn for each of its receivers; its downlink likewise. A piece
passes both at once, but no quicker than either. Small messages take the latency and no room. What decides is the
product's; what is here stands for `pull` (`Receiver`), `transfer` (`Serving`) and the wires (`Swarm`).
"""

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from kmgr.ids import ServerId
from kmgr.replica import choose
from kmgr.replica.choose import SERVED
from kmgr.replica.deal import Deal
from kmgr.replica.fetch import Ask, Fetch, all_pieces, listed
from kmgr.replica.manifest import PIECE_BYTES
from kmgr.replica.pace import PACE
from kmgr.replica.transfer import NEWS_S

LOOK_S = PACE.look_s
RATE = 25e6  # 200 Mbit/s


@dataclass(slots=True, eq=False)
class Serving:
    """One receiver at a source: what it asked for, and what it should hear."""

    source: "Server"
    receiver: "Server"
    whole: bool
    asked: deque[Ask] = field(default_factory=deque)
    open: bool = True
    gained: int = 0
    resting: bool = False


@dataclass(slots=True, eq=False)
class Server:
    """A server: its links, its pieces, whom it draws from and whom it serves."""

    name: ServerId
    up: float
    down: float
    have: int
    fetch: Fetch | None = None
    begins: float = 0.0
    dead: bool = False
    silent: bool = False
    liar: bool = False
    up_busy: bool = False
    down_free: float = 0.0
    done_at: float | None = None
    sent: int = 0
    wasted: int = 0
    deal: Deal = field(default_factory=Deal)
    servings: deque[Serving] = field(default_factory=deque)
    lanes: dict[ServerId, Serving | None] = field(default_factory=dict)
    paused: dict[ServerId, float] = field(default_factory=dict)
    tries: dict[ServerId, int] = field(default_factory=dict)
    accused: set[ServerId] = field(default_factory=set)
    heard: dict[ServerId, float] = field(default_factory=dict)


class Swarm:
    """Server 0 has all pieces; the others want them."""

    def __init__(self, count: int, pieces: int, *, seed: int, latency_s: float = 0.0005, jitter: float = 0.1) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - the same run for the same seed
        self.pieces = pieces
        self.now = 0.0
        self._latency_s = latency_s
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self.servers: list[Server] = []
        for number in range(count):
            pace = 1 - jitter * self.chance.random()
            have = all_pieces(pieces) if number == 0 else 0
            self.servers.append(Server(ServerId(f"srv-{number:03}"), RATE * pace, RATE * pace, have))
        self._by_name = {server.name: server for server in self.servers}

    @property
    def floor_s(self) -> float:
        """What the slowest way from the source to a receiver takes for the image alone."""
        slowest = min(*(s.down for s in self.servers[1:] if not s.dead), self.servers[0].up)
        return self.pieces * PIECE_BYTES / slowest

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Do something at a time."""
        self._number += 1
        heapq.heappush(self._events, (when, self._number, what))

    def run(self, *, until: float = 3600.0) -> None:
        """Begin all copies, and go on until all that can end have ended."""
        for place, server in enumerate(self.servers):
            if server.have != all_pieces(self.pieces):
                self.at(server.begins, partial(self._begin, server, place))
        while self._events and self.waiting():
            self.now, _, what = heapq.heappop(self._events)
            if self.now > until:
                return
            what()

    def waiting(self) -> list[Server]:
        """Return the living servers that lack something."""
        return [s for s in self.servers if not s.dead and not s.silent and s.have != all_pieces(self.pieces)]

    def kill(self, server: Server) -> None:
        """End a server; its connections break."""
        server.dead = True
        for serving in list(server.servings):
            self._later(partial(self._broke, serving.receiver, server, PACE.pause_s))
        for other in self.servers:
            for serving in [one for one in other.servings if one.receiver is server]:
                self._close(serving)

    def fall_silent(self, server: Server) -> None:
        """Cut a server off: nothing it says arrives any more, and nobody is told."""
        server.silent = True

    # What `pull` does.

    def _begin(self, server: Server, place: int) -> None:
        server.fetch = Fetch(self.pieces, have=server.have, start=place * self.pieces // len(self.servers))
        self._look(server)
        self._tick(server)

    def _tick(self, server: Server) -> None:
        if server.fetch is not None and not server.fetch.done and not server.dead:
            self._ask_all(server)
            self.at(self.now + LOOK_S, lambda: self._tick(server))

    def _look(self, server: Server) -> None:
        fetch = server.fetch
        if fetch is None or fetch.done or server.dead:
            return
        server.paused = {name: until for name, until in server.paused.items() if until > self.now}
        holders = [s.name for s in self.servers if s.have == all_pieces(self.pieces)]
        others = [s.name for s in self.servers if s.name not in holders]
        able = [n for n in (*holders, *others) if n != server.name and n not in server.accused | server.paused.keys()]
        useless = [name for name in server.lanes if not fetch.useful(name)]
        for name in choose.to_leave(able, server.lanes, useless):
            if server.lanes[name] is not None:
                self._leave(server, self._by_name[name])
        for name in choose.to_open(server.name, able, server.lanes):
            server.lanes[name] = None
            self._later(partial(self._opened, server, self._by_name[name]))
        until = min([self.now + LOOK_S, *server.paused.values()])
        self.at(max(self.now + LOOK_S / 20, until), lambda: self._look(server))

    def _ask_all(self, server: Server) -> None:
        fetch = server.fetch
        if fetch is None or server.dead or fetch.done:
            return
        for name, serving in list(server.lanes.items()):
            if serving is None:
                continue
            source = self._by_name[name]
            if source.silent and self.now - server.heard.get(name, self.now) > PACE.silence_s:
                self._broke(server, source, PACE.pause_s)
                continue
            while (ask := fetch.next(name, now=self.now)) is not None:
                server.heard.setdefault(name, self.now)
                self._later(partial(self._asked, serving, ask))

    def _broke(self, server: Server, source: Server, pause_s: float) -> None:
        serving = server.lanes.pop(source.name, None)
        server.paused[source.name] = self.now + pause_s
        if server.fetch is not None:
            server.fetch.drop(source.name)
            if serving is not None:
                self._close(serving)
            self._ask_all(server)

    def _leave(self, server: Server, source: Server) -> None:
        self._broke(server, source, PACE.pause_s)

    def _retry_soon(self, server: Server, source: Server) -> None:
        tries = server.tries.get(source.name, 0)
        server.tries[source.name] = tries + 1
        server.lanes.pop(source.name, None)
        server.paused[source.name] = self.now + min(LOOK_S, LOOK_S / 20 * 2.0 ** min(tries, 10))

    def _opened(self, server: Server, source: Server) -> None:
        if source.dead or source.silent:
            self._broke(server, source, PACE.pause_s)
            return
        everything = source.have == all_pieces(self.pieces)
        if (source.fetch is None and not everything) or len(source.servings) >= SERVED:
            self._retry_soon(server, source)
            return
        serving = Serving(source, server, everything)
        source.servings.append(serving)
        server.lanes[source.name] = serving
        server.heard.pop(source.name, None)
        if everything:
            source.deal.joins(server.name)
        if server.fetch is not None:
            server.fetch.offer(source.name, source.have)
            self._ask_all(server)

    def _came(self, serving: Serving, piece: int) -> None:
        server, source = serving.receiver, serving.source
        if server.dead or not serving.open or server.fetch is None or source.silent:
            return
        server.heard[source.name] = self.now
        if source.liar:
            server.wasted += 1
            server.accused.add(source.name)
            self._broke(server, source, 0.0)
            return
        if not server.fetch.arrived(source.name, piece):
            server.wasted += 1
        elif server.have >> piece & 1:
            raise AssertionError(f"piece {piece} was kept twice at {server.name}")
        else:
            server.have |= 1 << piece
            self._tell(server, piece)
        if server.fetch.done:
            server.done_at = self.now
            for name in list(server.lanes):
                if (lane := server.lanes.pop(name)) is not None:
                    self._close(lane)
            return
        self._ask_all(server)

    # What `transfer` does.

    def _close(self, serving: Serving) -> None:
        serving.open = False
        if serving in serving.source.servings:
            serving.source.servings.remove(serving)
        serving.source.deal.leaves(serving.receiver.name)

    def _tell(self, server: Server, piece: int) -> None:
        for serving in server.servings:
            if not serving.whole:
                serving.gained |= 1 << piece
                self._news(serving)

    def _news(self, serving: Serving, *, beside_an_answer: bool = False) -> None:
        """Say what there is to say, unless the last news were said a moment ago."""
        source, server = serving.source, serving.receiver
        if not serving.open or (serving.resting and not beside_an_answer):
            return
        gained, serving.gained = serving.gained, 0
        if gained:
            self._hear(serving, lambda fetch: fetch.gained(source.name, gained))
        given = source.deal.news(server.name) if serving.whole else 0
        if given:
            self._hear(serving, lambda fetch: fetch.given(source.name, given, now=self.now))
        if (gained or given) and not beside_an_answer:
            serving.resting = True
            self.at(self.now + NEWS_S, lambda: self._rested(serving))

    def _rested(self, serving: Serving) -> None:
        serving.resting = False
        self._news(serving)

    def _hear(self, serving: Serving, what: Callable[[Fetch], object]) -> None:
        def heard() -> None:
            fetch = serving.receiver.fetch
            if serving.open and fetch is not None and not serving.source.silent and not serving.source.dead:
                what(fetch)
                self._ask_all(serving.receiver)

        self._later(heard)

    def _asked(self, serving: Serving, ask: Ask) -> None:
        if serving.open:
            serving.asked.append(ask)
            self._serve(serving.source)

    def _serve(self, source: Server) -> None:
        """Send the next piece whose turn it is."""
        while not source.up_busy and not source.dead and not source.silent:
            serving = next((one for one in source.servings if one.asked), None)
            if serving is None:
                return
            source.servings.remove(serving)
            source.servings.append(serving)  # whoever was served waits until the others were
            self._answer(serving, serving.asked.popleft())

    def _answer(self, serving: Serving, ask: Ask) -> None:
        source, server = serving.source, serving.receiver
        self._news(serving, beside_an_answer=True)
        if not serving.whole and source.have == all_pieces(self.pieces):
            serving.whole = True
            source.deal.joins(server.name)
        if serving.whole:
            if not source.deal.asked(server.name, ask.piece, insist=ask.insist):
                self._hear(serving, lambda fetch: fetch.declined(source.name, ask.piece, now=self.now))
                return
            for other in source.servings:
                if other is not serving:
                    self._news(other)
        source.sent += 1
        source.up_busy = True
        sent_at = self.now + PIECE_BYTES / source.up
        begins = max(self.now + self._latency_s, server.down_free)
        arrives = max(begins + PIECE_BYTES / server.down, sent_at + self._latency_s)
        server.down_free = arrives
        self.at(sent_at, lambda: self._sent(source))
        self.at(arrives, lambda: self._came(serving, ask.piece))

    def _sent(self, source: Server) -> None:
        source.up_busy = False
        self._serve(source)

    def _later(self, what: Callable[[], None]) -> None:
        self.at(self.now + self._latency_s * (1 + self.chance.random()), what)


def described(swarm: Swarm) -> str:
    """Return how far everybody is, for a test that failed."""
    return "; ".join(
        f"{s.name}: {'done' if s.done_at else len(listed(s.have))} at {s.done_at or swarm.now:.1f} s, sent {s.sent}"
        for s in swarm.servers
    )
