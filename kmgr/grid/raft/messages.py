"""What raft servers say to each other: frozen records, and their one spelling in bytes.

A frame is one byte for the kind, the record's numbers in the order of its fields
(eight bytes each, one for a truth), then raw bytes. Entries follow each other, so
each is spelled as its term and its length only. Every field is checked while
reading, so nothing of a wrong kind reaches the log, and nothing is ever unpickled.

Pure.
"""

import struct
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from kmgr.grid.raft.records import Entry

_MOST = 1 << 62


@dataclass(frozen=True, slots=True)
class Append:
    """The leader's entries behind `previous`; without entries a sign of life. `round` numbers its questions."""

    term: int
    commit: int
    previous: int
    previous_term: int
    entries: tuple[Entry, ...]
    round: int = 0


@dataclass(frozen=True, slots=True)
class Taken:
    """A follower's answer: its log equals the leader's before `wanted` (`matches`), or it lacks them from there.

    Without `counts` it is on the disk, but no majority may have it.
    """

    term: int
    wanted: int
    matches: bool
    round: int = 0
    counts: bool = True


@dataclass(frozen=True, slots=True)
class AskVote:
    """A candidate asks for a vote; `handed_over` says that the leader told it to."""

    term: int
    last_index: int
    last_term: int
    handed_over: bool


@dataclass(frozen=True, slots=True)
class Vote:
    """A vote for the candidate of this term."""

    term: int


@dataclass(frozen=True, slots=True)
class AskSupport:
    """Would you vote for me in this term? Asked before anything changes."""

    term: int
    last_index: int
    last_term: int


@dataclass(frozen=True, slots=True)
class Support:
    """Yes, I would."""

    term: int


@dataclass(frozen=True, slots=True)
class Stale:
    """Your term is over; this is the present one."""

    term: int


@dataclass(frozen=True, slots=True)
class TakeOver:
    """The leader asks a voter to become the leader now."""

    term: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the snapshot that ends at log entry `index` of term `index_term`; `size` is all of it."""

    term: int
    index: int
    index_term: int
    offset: int
    size: int
    data: bytes


@dataclass(frozen=True, slots=True)
class NextPiece:
    """A follower wants the snapshot `index` from `offset` on."""

    term: int
    index: int
    offset: int


@dataclass(frozen=True, slots=True)
class Propose:
    """Please put this envelope into the log; `attempt` is the asker's own number for it."""

    attempt: int
    data: bytes


@dataclass(frozen=True, slots=True)
class NotTaken:
    """The proposal was not put into the log and will not be."""

    attempt: int


@dataclass(frozen=True, slots=True)
class AskIndex:
    """Up to which entry must I apply to know all that is acknowledged by now? `attempt` is the asker's own number."""

    attempt: int


@dataclass(frozen=True, slots=True)
class IndexIs:
    """Up to this one."""

    attempt: int
    index: int


@dataclass(frozen=True, slots=True)
class Remembered:
    """The most that you ever promised me: in `term` to have entry `index`, in term `vote` your vote; or zeros.

    And what the sender has: the term that it is `now` in, and its last entry, or zeros if it cannot lead with it.
    """

    term: int
    index: int
    index_term: int
    vote: int
    now: int = 0
    last_index: int = 0
    last_term: int = 0


@dataclass(frozen=True, slots=True)
class Known:
    """In `term` I have the log up to this entry, which is committed."""

    term: int
    index: int
    index_term: int


@dataclass(frozen=True, slots=True)
class AskTrust:
    """My data is older than what I promised: make an entry after which I may count again."""

    attempt: int
    term: int


@dataclass(frozen=True, slots=True)
class Trusted:
    """You may, as soon as you have this entry of this term: a majority without you has it."""

    attempt: int
    term: int
    index: int


Message: TypeAlias = (
    Append | Taken | AskVote | Vote | AskSupport | Support | Stale | TakeOver | Piece | NextPiece | Propose | NotTaken
    | AskIndex | IndexIs | Remembered | Known | AskTrust | Trusted
)  # fmt: skip

# The place of a kind is its byte in every frame.
_KINDS: tuple[type[Any], ...] = (
    Append, Taken, AskVote, Vote, AskSupport, Support, Stale, TakeOver, Piece, NextPiece, Propose, NotTaken,
    AskIndex, IndexIs, Remembered, Known, AskTrust, Trusted,
)  # fmt: skip
_NUMBERS = {kind: {f.name: f.type for f in fields(kind) if f.type in {int, bool}} for kind in _KINDS}
_FORMS = {
    kind: struct.Struct("<B" + "".join("B" if of is bool else "Q" for of in numbers.values()))
    for kind, numbers in _NUMBERS.items()
}
_HEADS = {kind: (number, _FORMS[kind], tuple(_NUMBERS[kind])) for number, kind in enumerate(_KINDS)}
_COUNT = struct.Struct("<I")
_ENTRY = struct.Struct("<QI")


def encode(message: Message) -> bytes:
    """Spell a message."""
    number, form, names = _HEADS[type(message)]
    head = form.pack(number, *[getattr(message, name) for name in names])
    if isinstance(message, Append):
        sizes = (_ENTRY.pack(entry.term, len(entry.command)) for entry in message.entries)
        return b"".join(
            (head, _COUNT.pack(len(message.entries)), *sizes, *(entry.command for entry in message.entries))
        )
    return head + message.data if isinstance(message, Piece | Propose) else head


def decode(frame: bytes) -> Message:
    """Read a message; raise `ValueError` if it is none."""
    try:
        kind = _KINDS[frame[0]]
        form = _FORMS[kind]
        values = {
            name: _value(name, of, number)
            for (name, of), number in zip(_NUMBERS[kind].items(), form.unpack_from(frame)[1:], strict=True)
        }
        more: dict[str, Any] = {}
        if kind is Append:
            more["entries"] = _entries(frame, form.size, values["previous"])
        elif kind in {Piece, Propose}:
            more["data"] = frame[form.size :]
        elif len(frame) != form.size:
            raise ValueError("a frame is not a message of the log: it is too long")
        message: Message = kind(**values, **more)
    except (struct.error, IndexError) as error:
        raise ValueError(f"a frame is not a message of the log: {error!r}") from error
    return message


def _value(name: str, of: object, number: int) -> int:
    if number >= (2 if of is bool else _MOST):
        raise ValueError(f"a frame is not a message of the log: {name} is {number}")
    return bool(number) if of is bool else number


def _entries(frame: bytes, offset: int, previous: int) -> tuple[Entry, ...]:
    count = _COUNT.unpack_from(frame, offset)[0]
    offset += _COUNT.size
    commands = offset + count * _ENTRY.size
    entries = []
    for number in range(1, count + 1):
        term, size = _ENTRY.unpack_from(frame, offset)
        offset += _ENTRY.size
        if not 0 < size <= len(frame) - commands or term >= _MOST:
            raise ValueError("an entry of a message is empty, ends too late, or is of no term")
        entries.append(Entry(frame[commands : commands + size], previous + number, term))
        commands += size
    if commands != len(frame):
        raise ValueError("a message has bytes that belong to no entry")
    return tuple(entries)
