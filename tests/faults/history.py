"""What clients did and saw: one record per operation, kept in memory and in a file of JSON lines."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path


class Kind(StrEnum):
    """What a client asked for."""

    PUT = "put"
    # Put, if the key has an expected value.
    SWAP = "swap"
    # A current read: behind a read barrier.
    READ = "read"
    # A plain read of one server's state, which may lag behind.
    PEEK = "peek"


class Result(StrEnum):
    """How it ended."""

    DONE = "done"
    # A swap that found another value.
    REJECTED = "rejected"
    # The grid said that nothing happened.
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of one client, from the moment it was asked for until its answer.

    `id` names the change and is the value that it writes; `expected` belongs to a
    swap; `seen` is what a read found, and `position` how far that state was.
    """

    client: str
    kind: Kind
    key: str
    called: float
    returned: float
    result: Result
    id: str = ""
    expected: str | None = None
    seen: str | None = None
    position: int = 0
    # Which life of which server answered.
    at: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """One change that a server's state contains."""

    id: str
    key: str


class History:
    """All operations of a run; every one is in the file as soon as it has ended."""

    def __init__(self, path: Path) -> None:
        self.operations: list[Operation] = []
        self._file = path.open("w", encoding="utf-8")

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.operations)

    def add(self, operation: Operation) -> None:
        """Record an operation that has ended."""
        self.operations.append(operation)
        self._file.write(json.dumps(asdict(operation)) + "\n")

    def close(self) -> None:
        """Write everything out."""
        self._file.close()


def read(lines: Iterable[str]) -> list[Operation]:
    """Return the operations of a history file."""
    found = []
    for line in lines:
        values = json.loads(line)
        found.append(Operation(**{**values, "kind": Kind(values["kind"]), "result": Result(values["result"])}))
    return found
