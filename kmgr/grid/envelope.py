"""A change that every server will make: its record, and its one spelling in bytes.

Rule 1: the proposer chooses everything uncertain (id, time, names, keys).
Rule 2: the bytes are canonical JSON, so equal commands are equal bytes.
Rule 3: an envelope of a newer format stops the server instead of being skipped.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from kmgr.errors import InvariantBroken
from kmgr.ids import CommandId

FORMAT = 1
# Largest command in bytes. pysyncobj sends larger ones through a path that fragments; half of its batch size is safe.
MAX_BYTES = 256 * 1024
# Of a log's index; more entries than that would take a thousand changes a second for thirty years.
_DIGITS = 12

Body: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Command:
    """One change as proposed: `at` is the proposer's wall clock in ms, `by` a person or a server."""

    type: str
    id: CommandId
    at: int
    by: str
    body: Body


@dataclass(frozen=True, slots=True)
class Applied:
    """The change was made; `values` is what the proposer wants to know about it, JSON only."""

    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rejected:
    """The change was refused and nothing was written. `code` is stable, `detail` is for people."""

    code: str
    detail: str


Outcome: TypeAlias = Applied | Rejected


def asked_at(word: str, applied: int) -> CommandId:
    """Return a command id that says how far the log was when the change was first asked for.

    It begins with that as well, so that ids of about the same time lie together in the table of outcomes, which is
    kept in their order: ids that begin by chance made SQLite write a page for each change
    (docs/decisions/0020-what-a-change-writes.md).
    """
    return CommandId(f"{applied:0{_DIGITS}}-{word}@{applied}")


def first_asked(id: CommandId) -> int | None:
    """Return what `asked_at` noted; None in ids of other kinds."""
    _, mark, applied = id.rpartition("@")
    return int(applied) if mark and applied.isascii() and applied.isdecimal() else None


def encode(command: Command) -> bytes:
    """Spell a command in canonical JSON."""
    return _canonical(
        {
            "v": FORMAT,
            "type": command.type,
            "id": command.id,
            "at": command.at,
            "by": command.by,
            "body": dict(command.body),
        }
    )


def decode(data: bytes) -> Command:
    """Read a command back; raise `InvariantBroken` if this version cannot know what it means."""
    try:
        raw = json.loads(data)
        version = raw["v"]
        if version != FORMAT:
            raise InvariantBroken(
                f"the log holds a command of format {version}, this version knows {FORMAT}: install a newer kmgr"
            )
        return Command(raw["type"], CommandId(raw["id"]), int(raw["at"]), raw["by"], raw["body"])
    except (ValueError, KeyError, TypeError) as error:
        raise InvariantBroken(f"the log holds an entry that is not a command: {error}") from error


def encode_outcome(outcome: Outcome) -> str:
    """Spell an outcome for the table of outcomes."""
    match outcome:
        case Applied(values):
            return _canonical({"ok": dict(values)}).decode()
        case Rejected(code, detail):
            return _canonical({"no": [code, detail]}).decode()


def decode_outcome(text: str) -> Outcome:
    """Read an outcome back from the table of outcomes."""
    raw = json.loads(text)
    return Applied(raw["ok"]) if "ok" in raw else Rejected(*raw["no"])


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
