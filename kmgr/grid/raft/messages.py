"""What raft servers say to each other: frozen records, and their one spelling in bytes.

A frame is four bytes of length, a JSON object (the word and its numbers), then
raw bytes. Every field is checked while reading, so nothing of a wrong kind
reaches the log, and nothing is ever unpickled.

Pure.
"""

import json
import struct
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeAlias

from kmgr.grid.raft.records import Entry

_SIZE = struct.Struct("<I")
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
    """A follower's answer: its log equals the leader's before `wanted` (`matches`), or it lacks them from there."""

    term: int
    wanted: int
    matches: bool
    round: int = 0


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


Message: TypeAlias = (
    Append | Taken | AskVote | Vote | AskSupport | Support | Stale | TakeOver | Piece | NextPiece | Propose | NotTaken
    | AskIndex | IndexIs
)  # fmt: skip

_KINDS: dict[str, type[Any]] = {
    "append": Append, "taken": Taken, "ask-vote": AskVote, "vote": Vote, "ask-support": AskSupport,
    "support": Support, "stale": Stale, "take-over": TakeOver, "piece": Piece, "next-piece": NextPiece,
    "propose": Propose, "not-taken": NotTaken, "ask-index": AskIndex, "index-is": IndexIs,
}  # fmt: skip
_WORDS = {kind: word for word, kind in _KINDS.items()}


def encode(message: Message) -> bytes:
    """Spell a message."""
    blob = b""
    if isinstance(message, Append):
        head = {name: getattr(message, name) for name in ("term", "commit", "previous", "previous_term", "round")}
        head["entries"] = [[e.index, e.term, len(e.command)] for e in message.entries]
        blob = b"".join(entry.command for entry in message.entries)
    else:
        head = asdict(message)
        blob = head.pop("data", b"")
    text = json.dumps({"word": _WORDS[type(message)], **head}, separators=(",", ":")).encode()
    return _SIZE.pack(len(text)) + text + blob


def decode(frame: bytes) -> Message:
    """Read a message; raise `ValueError` if it is none."""
    try:
        size = _SIZE.unpack_from(frame)[0]
        head = json.loads(frame[_SIZE.size : _SIZE.size + size])
        kind = _KINDS[head["word"]]
        blob = frame[_SIZE.size + size :]
        values = {field.name: _value(field.name, field.type, head, blob) for field in fields(kind)}
        message: Message = kind(**values)
    except (struct.error, KeyError, TypeError) as error:
        raise ValueError(f"a frame is not a message of the log: {error!r}") from error
    return message


def _value(name: str, kind: object, head: dict[str, Any], blob: bytes) -> Any:
    if kind is bytes:
        return blob
    if name == "entries":
        return _entries(head["entries"], head["previous"], blob)
    value = head[name]
    if type(value) is not kind or (kind is int and not 0 <= value < _MOST):
        raise ValueError(f"{head['word']}: {name} is {value!r}")
    return value


def _entries(rows: Any, previous: Any, blob: bytes) -> tuple[Entry, ...]:
    entries = []
    offset = 0
    for number, (index, term, size) in enumerate(rows, 1):
        if index != previous + number or type(term) is not int or not 0 < size <= len(blob) - offset:
            raise ValueError("append: its entries do not follow each other")
        entries.append(Entry(blob[offset : offset + size], index, term))
        offset += size
    if offset != len(blob):
        raise ValueError("append: there are bytes that belong to no entry")
    return tuple(entries)
