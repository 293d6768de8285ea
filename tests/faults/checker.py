"""Judges a history: nothing acknowledged is lost, nothing is made twice, and every key behaves like one register.

Linearizability is searched for as Wing and Gong did, with Lowe's memory of states
that were tried before, key by key. What became of a change whose outcome the
client never learned is known from the state at the end: if it is not there, it
never happened; if it is, it may have happened at any time after it was asked for.

Many of those beside each other make the search long; a key that is not decided
after `MOST_STEPS` is left and named.

A server may end by itself only over a fault that was made, and must say so.

Pure.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.faults.history import Held, Kind, Operation, Result

WRITES = frozenset({Kind.PUT, Kind.SWAP})
NEVER = float("inf")
MOST_STEPS = 300_000
# A run of which more keys than this part are not decided has not shown that they are linearizable.
MOST_UNDECIDED = 0.1


@dataclass(frozen=True, slots=True)
class Verdict:
    """Everything that must not be, in words, and the keys whose histories were too long to be judged."""

    violations: list[str]
    undecided: list[str]
    judged: int = 0


# So late a server may end whose disk was full or failed: it may have waited for a processor.
LATE_S = 5.0
OF_THE_DISK = ("No space left on device", "database or disk is full", "disk I/O error", "Input/output error")


@dataclass(frozen=True, slots=True)
class End:
    """A server ended by itself: `how` (refused to start, fatal, crashed) and `why`, in its own words."""

    how: str
    why: str
    at: float


def unexplained(end: End, *, ailed: Sequence[tuple[float, float]], refusable: bool) -> bool:
    """Whether nothing that was done explains an end: its disk `ailed` then, or it was `refusable` at a start."""
    match end.how:
        case "refused":
            return not refusable
        case "fatal":
            said = any(words in end.why for words in OF_THE_DISK)
            return not said or not any(began <= end.at <= mended + LATE_S for began, mended in ailed)
    return True


def judge(operations: Sequence[Operation], held: Sequence[Held], most: int = MOST_STEPS) -> Verdict:
    """Judge a history; `held` is the state at the end, in order."""
    keys = _by_key(operations, held)
    verdicts = {key: linearizable(ops, most) for key, ops in keys.items()}
    wrong = [
        *_lost(operations, held),
        *_twice(held),
        *_ghosts(operations, held),
        *_backwards(operations),
        *(f"not linearizable: {key}: {_told(keys[key])}" for key, fits in verdicts.items() if fits is False),
    ]
    undecided = [key for key, fits in verdicts.items() if fits is None]
    return Verdict(wrong, undecided, len(verdicts) - len(undecided))


def thin(verdict: Verdict) -> list[str]:
    """Say that a verdict is none, because too few keys were judged."""
    keys = verdict.judged + len(verdict.undecided)
    if verdict.judged and len(verdict.undecided) <= MOST_UNDECIDED * keys:
        return []
    return [f"too little was judged: {verdict.judged} of {keys} keys"]


def _lost(operations: Sequence[Operation], held: Sequence[Held]) -> list[str]:
    there = {one.id for one in held}
    lost = [op for op in operations if op.kind in WRITES and op.result is Result.DONE and op.id not in there]
    return [f"lost: {op.id} of {op.key} was acknowledged at {op.returned:.3f} by {op.at}" for op in lost]


def _twice(held: Sequence[Held]) -> list[str]:
    return [f"made twice: {one} is there {count} times" for one, count in _counted(held).items() if count > 1]


def _counted(held: Sequence[Held]) -> Counter[str]:
    return Counter(one.id for one in held)


def _ghosts(operations: Sequence[Operation], held: Sequence[Held]) -> list[str]:
    asked = {op.id: op for op in operations if op.kind in WRITES}
    found = []
    for one in held:
        op = asked.get(one.id)
        if op is None or op.key != one.key:
            found.append(f"nobody asked for {one.id} of {one.key}")
        elif op.result in {Result.REFUSED, Result.REJECTED}:
            found.append(f"{op.result}, yet there: {op.id} of {op.key}, answered at {op.returned:.3f} by {op.at}")
    return found


def _backwards(operations: Sequence[Operation]) -> list[str]:
    """Plain reads of one life of a server, one after the other, never go back in time."""
    found = []
    seen: dict[tuple[str, str, str], Operation] = {}
    for op in sorted((op for op in operations if op.kind is Kind.PEEK), key=lambda op: op.called):
        place = (op.client, op.at, op.key)
        before = seen.get(place)
        if before is not None and before.returned < op.called and op.position < before.position:
            found.append(f"{op.at} went back: {op.key} at {op.position} after {before.position}")
        seen[place] = op
    return found


def _by_key(operations: Sequence[Operation], held: Sequence[Held]) -> dict[str, list[Operation]]:
    there = {one.id for one in held}
    keys: dict[str, list[Operation]] = defaultdict(list)
    for op in operations:
        if _counts(op, there):
            keys[op.key].append(op)
    return dict(sorted(keys.items()))


def _counts(op: Operation, there: set[str]) -> bool:
    match op.kind, op.result:
        case ((Kind.PUT | Kind.SWAP), (Result.DONE | Result.REJECTED)):
            return True
        case ((Kind.PUT | Kind.SWAP), Result.UNKNOWN):
            return op.id in there
        case Kind.READ, Result.DONE:
            return True
    return False


def _told(ops: Iterable[Operation]) -> str:
    return "; ".join(
        f"{op.called:.3f}-{op.returned:.3f} {op.client} {op.kind} {op.id or op.seen}"
        + (f" for {op.expected}" if op.kind is Kind.SWAP else "")
        + f" {op.result}"
        for op in sorted(ops, key=lambda op: op.called)[-12:]
    )


@dataclass(slots=True, eq=False)
class _Event:
    """The call or the return of an operation, in a list from which both are lifted and put back."""

    number: int
    returns: "_Event | None" = None
    before: "_Event | None" = None
    after: "_Event | None" = None


def linearizable(operations: Sequence[Operation], most: int = MOST_STEPS) -> bool | None:
    """Tell whether one register could have answered so, each operation at one moment between call and return.

    None after `most` steps without a verdict.
    """
    ops = list(operations)
    head = _events(ops)
    value: str | None = None
    done = 0
    tried: set[tuple[int, str | None]] = set()
    taken: list[tuple[_Event, str | None]] = []
    event = head.after
    steps = 0
    while head.after is not None:
        steps += 1
        if steps > most:
            return None
        if event is not None and event.returns is not None:
            fits, then = _step(ops[event.number], value)
            if fits and (state := (done | 1 << event.number, then)) not in tried:
                tried.add(state)
                taken.append((event, value))
                done, value = state
                _lift(event)
                event = head.after
            else:
                event = event.after
            continue
        # A return whose call has not been taken (or nothing more to try): the last choice was wrong.
        if not taken:
            return False
        last, value = taken.pop()
        done &= ~(1 << last.number)
        _put_back(last)
        event = last.after
    return True


def _step(op: Operation, value: str | None) -> tuple[bool, str | None]:
    match op.kind:
        case Kind.PUT:
            return True, op.id
        case Kind.SWAP if op.result is Result.REJECTED:
            return value != op.expected, value
        case Kind.SWAP:
            return value == op.expected, op.id
    return op.seen == value, value


def _events(ops: Sequence[Operation]) -> _Event:
    points: list[tuple[float, int, _Event]] = []
    for number, op in enumerate(ops):
        returns = _Event(number)
        points.append((op.called, 0, _Event(number, returns)))
        points.append((NEVER if op.result is Result.UNKNOWN else op.returned, 1, returns))
    points.sort(key=lambda point: point[:2])
    head = last = _Event(-1)
    for _, _, event in points:
        last.after, event.before = event, last
        last = event
    return head


def _lift(event: _Event) -> None:
    for one in (event, event.returns):
        assert one is not None
        assert one.before is not None
        one.before.after = one.after
        if one.after is not None:
            one.after.before = one.before


def _put_back(event: _Event) -> None:
    for one in (event.returns, event):
        assert one is not None
        assert one.before is not None
        one.before.after = one
        if one.after is not None:
            one.after.before = one
