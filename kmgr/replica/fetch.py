"""Decide which piece of a version to ask whom for.

* A piece is asked of one source at a time. It is asked again only if its
  source failed, or kept it waiting for `patience_s` while another had nothing to do.
* What a source gave to other receivers is not asked of it before everything else: they will
  give it on. So a single source sends each piece about once. The rest is *insisted* on:
  what others have too, and what none of them got within `wait_s`.
* Rarest first: what few have comes before what many have, so that the few are soon free to go.
  Among equals the disk's order counts, beginning at `start`; where the way is barred by what others
  took, the next place is a leap away, so that two receivers don't go on side by side.
* A source that lied or broke is dropped; what it owed is asked of the others.

Sets of pieces are whole numbers, bit k for piece k: a hundred thousand pieces
are compared in microseconds. Pure: no I/O, the time is an argument.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from kmgr.ids import ServerId
from kmgr.replica.manifest import PIECE_BYTES

# Bytes that one source is asked for at a time: enough to keep a wire busy, few enough to take back.
# With few sources each must fill the wire alone; with many, what is queued at each delays the end.
IN_FLIGHT = 4 * PIECE_BYTES
IN_FLIGHT_OF_MANY = 2 * PIECE_BYTES
MANY = 3
MOST_ASKS = 48
PATIENCE_S = 5.0
WAIT_S = 2.0

_LEVELS = 4
# So many members are put into a set, or taken out, byte by byte: one at a time each costs as much as the set is long.
_FEW = 64
_BITS = tuple(tuple(bit for bit in range(8) if byte >> bit & 1) for byte in range(256))
# The golden section: leaps of it fall into the largest gaps left by the leaps before.
_LEAP = 0.6180339887498949


def all_pieces(count: int) -> int:
    """Return the set of all of `count` pieces."""
    return (1 << count) - 1


def pieces_of(pieces: Iterable[int]) -> int:
    """Return some pieces as a set."""
    members = list(pieces)
    if len(members) < _FEW:
        found = 0
        for piece in members:
            found |= 1 << piece
        return found
    bits = bytearray(max(members) // 8 + 1)
    for piece in members:
        bits[piece >> 3] |= 1 << (piece & 7)
    return int.from_bytes(bits, "little")


def listed(pieces: int) -> list[int]:
    """Return the members of a set of pieces, ascending."""
    if pieces.bit_count() >= _FEW:
        spelled = pieces.to_bytes(-(-pieces.bit_length() // 8), "little")
        return [8 * at + bit for at, byte in enumerate(spelled) if byte for bit in _BITS[byte]]
    found = []
    while pieces:
        lowest = pieces & -pieces
        found.append(lowest.bit_length() - 1)
        pieces ^= lowest
    return found


@dataclass(frozen=True, slots=True)
class Ask:
    """A piece to ask a source for; `insist`ed on although it gave it to another receiver."""

    piece: int
    insist: bool = False


@dataclass(slots=True)
class _Source:
    """What a source has, what of it went to others (and since when), and what it owes: since when, how many bytes.

    What it owes for longest comes first.
    """

    has: int
    given: int = 0
    late: int = 0
    news: list[tuple[float, int]] = field(default_factory=list)
    owes: dict[int, tuple[float, int]] = field(default_factory=dict)
    weight: int = 0


def _whole(_piece: int) -> int:
    return PIECE_BYTES


class Fetch:
    """One version's way to this server: what is missing, who has it, who is asked for it."""

    def __init__(
        self,
        count: int,
        *,
        have: int = 0,
        start: int = 0,
        cost: Callable[[int], int] = _whole,
        patience_s: float = PATIENCE_S,
        wait_s: float = WAIT_S,
    ) -> None:
        self._count = count
        self._all = all_pieces(count)
        self._have = have & self._all
        self._asked = 0
        self._at = start % count if count else 0
        self._cost = cost
        self._patience_s = patience_s
        self._wait_s = wait_s
        self._sources: dict[ServerId, _Source] = {}
        self._levels: list[int] = []

    @property
    def have(self) -> int:
        """The set of pieces that are here."""
        return self._have

    @property
    def done(self) -> bool:
        """True once every piece is here."""
        return self._have == self._all

    @property
    def reachable(self) -> bool:
        """True while every missing piece is had by some source."""
        reach = 0
        for source in self._sources.values():
            reach |= source.has
        return not self._all & ~self._have & ~reach

    @property
    def sources(self) -> tuple[ServerId, ...]:
        """The servers that are being asked, in id order."""
        return tuple(sorted(self._sources))

    def useful(self, server: ServerId) -> bool:
        """Tell whether a source has anything that is missing here."""
        source = self._sources.get(server)
        return source is not None and bool(source.has & ~self._have)

    def offer(self, server: ServerId, has: int) -> None:
        """Take a server as a source, or learn all that it has by now."""
        source = self._sources.setdefault(server, _Source(0))
        source.has = has & self._all
        self._levels = []

    def gained(self, server: ServerId, pieces: int) -> None:
        """Learn what a source has got since."""
        source = self._sources.get(server)
        if source is not None:
            source.has |= pieces & self._all
            self._levels = []

    def given(self, server: ServerId, pieces: int, *, now: float) -> None:
        """Learn what a source gave to other receivers."""
        source = self._sources.get(server)
        if source is not None:
            source.given |= pieces & self._all
            source.news.append((now, pieces & self._all))
            self._late(source, now)  # or all that was ever told would be kept, each time a set as long as the version

    def drop(self, server: ServerId) -> None:
        """Ask this server for nothing more; what it owed is missing again."""
        source = self._sources.pop(server, None)
        if source is not None:
            self._levels = []
            self._asked = pieces_of(piece for other in self._sources.values() for piece in other.owes)

    def next(self, server: ServerId, *, now: float) -> Ask | None:
        """Return the piece to ask this source for now, or None if there is nothing (yet) to ask it for."""
        source = self._sources.get(server)
        if source is None or not self._room(source):
            return None
        free = source.has & ~self._have & ~self._asked
        fresh = free & ~source.given
        if fresh:
            return self._ask(source, Ask(self._rarest(fresh)), now)
        again = free & (self._elsewhere(source) | self._late(source, now)) if free else 0
        if again:
            return self._ask(source, Ask(self._rarest(again), insist=True), now)
        overdue = self._overdue(source, now)
        return None if overdue is None else self._ask(source, Ask(overdue, insist=True), now)

    def arrived(self, server: ServerId, piece: int) -> bool:
        """Note that a piece came from a source, was right, and is kept; False if it was here already."""
        self._forget(server, piece)
        fresh = not self._have >> piece & 1
        self._have |= 1 << piece
        return fresh

    def lacking(self, server: ServerId, piece: int) -> None:
        """Note that a source doesn't have a piece after all."""
        self._forget(server, piece)
        source = self._sources.get(server)
        if source is not None:
            source.has &= ~(1 << piece)
            self._levels = []

    def declined(self, server: ServerId, piece: int, *, now: float) -> None:
        """Note that a source gave the piece to another receiver and wants to give others first."""
        self._forget(server, piece)
        self.given(server, 1 << piece, now=now)

    def _room(self, source: _Source) -> bool:
        limit = IN_FLIGHT if len(self._sources) < MANY else IN_FLIGHT_OF_MANY
        return source.weight < limit and len(source.owes) < MOST_ASKS

    def _ask(self, source: _Source, ask: Ask, now: float) -> Ask:
        cost = self._cost(ask.piece)
        source.owes[ask.piece] = now, cost
        source.weight += cost
        self._asked |= 1 << ask.piece
        return ask

    def _elsewhere(self, source: _Source) -> int:
        """Return what other sources have, too."""
        found = 0
        for other in self._sources.values():
            if other is not source:
                found |= other.has
        return found

    def _late(self, source: _Source, now: float) -> int:
        """Return what a source gave to others so long ago that one of them should have told of it."""
        while source.news and now - source.news[0][0] >= self._wait_s:
            source.late |= source.news.pop(0)[1]
        return source.late

    def _rarest(self, free: int) -> int:
        for level in self._rarity():
            if rare := free & level:
                return self._along(rare)
        return self._along(free)

    def _along(self, free: int) -> int:
        """Return the piece at which this receiver is, or the first one after its next leap."""
        if not free >> self._at & 1:
            self._at = int(self._at + self._count * _LEAP) % self._count
            self._at = _lowest(free >> self._at << self._at or free)
        piece = self._at
        self._at = (piece + 1) % self._count
        return piece

    def _rarity(self) -> list[int]:
        """Return the pieces that 0, 1, 2, 3 and more sources have, apart from those sources that have all."""
        if not self._levels:
            at_least = [self._all] + [0] * _LEVELS
            for source in self._sources.values():
                if source.has != self._all:
                    for times in range(_LEVELS, 0, -1):
                        at_least[times] |= at_least[times - 1] & source.has
            self._levels = [at_least[n] & ~at_least[n + 1] for n in range(_LEVELS)] + [at_least[_LEVELS]]
        return self._levels

    def _overdue(self, source: _Source, now: float) -> int | None:
        """Return the longest awaited piece of another source, if it is late and this one has it."""
        if not self._kept_waiting(now):
            return None
        late = [
            (since, piece)
            for other in self._sources.values()
            if other is not source
            for piece, (since, _) in other.owes.items()
            if now - since >= self._patience_s and source.has >> piece & 1 and not self._have >> piece & 1
        ]
        fresh = [found for found in late if found[1] not in source.owes and not self._retried(found[1], now)]
        return min(fresh)[1] if fresh else None

    def _kept_waiting(self, now: float) -> bool:
        """Tell whether any source keeps us waiting for long; this is asked far more often than it is so."""
        oldest = (next(iter(other.owes.values()))[0] for other in self._sources.values() if other.owes)
        return any(now - since >= self._patience_s for since in oldest)

    def _retried(self, piece: int, now: float) -> bool:
        """Tell whether some source was asked for the piece recently."""
        return any(
            now - other.owes[piece][0] < self._patience_s for other in self._sources.values() if piece in other.owes
        )

    def _forget(self, server: ServerId, piece: int) -> None:
        source = self._sources.get(server)
        if source is not None and (owed := source.owes.pop(piece, None)) is not None:
            source.weight -= owed[1]
            if not any(piece in other.owes for other in self._sources.values()):
                self._asked &= ~(1 << piece)


def _lowest(pieces: int) -> int:
    return (pieces & -pieces).bit_length() - 1
