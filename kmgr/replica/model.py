"""Golden images as records: an image, its versions, and which server holds which version.

Pure: no I/O, no clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from kmgr.ids import ImageId, ServerId, VersionId

LONGEST_NAME = 63
# How many servers keep a version: all of them, or so many. One would make every loss of a server a loss of the image.
ALL_SERVERS = 0
FEWEST_COPIES = 2
MOST_COPIES = 1000


def name_problem(name: str) -> str:
    """Return why an image cannot have this name, or an empty text if it can."""
    if name.strip() and name == name.strip() and len(name) <= LONGEST_NAME and name.isprintable():
        return ""
    return f"{name!r} is not a name for an image: use 1 to {LONGEST_NAME} printable characters, no spaces around them"


class VersionState(StrEnum):
    """A version is `ready` once one server holds all of it, verified."""

    READY = "ready"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class Image:
    """A golden image: a name for a line of versions. `copies` servers keep each of them; 0 is all servers."""

    id: ImageId
    name: str
    notes: str
    created_at: int
    created_by: str
    copies: int = ALL_SERVERS


@dataclass(frozen=True, slots=True)
class Version:
    """One read-only state of a golden image. `size_bytes` is what the guest sees; the file is sparse."""

    id: VersionId
    image: ImageId
    number: int
    size_bytes: int
    used_bytes: int
    block_bytes: int
    manifest_hash: str
    state: VersionState
    notes: str
    created_at: int
    created_by: str


@dataclass(frozen=True, slots=True)
class Holding:
    """A server has all blocks of a version, verified, on its own disks since `at` (ms).

    `damaged` of them have gone bad since, and no other server could give the right ones.
    """

    version: VersionId
    server: ServerId
    at: int
    damaged: int = 0


@dataclass(frozen=True, slots=True)
class Uses:
    """Who needs versions: the names of templates that publish it, where how many desktops of it are, and what else.

    Desktops count until they are removed from their server: their disks are overlays on the version's file.
    `others` are words for a person ("a copy of desktop …"). `at_work` are the servers at whose desktops somebody is.
    """

    published: Mapping[VersionId, tuple[str, ...]] = field(default_factory=dict)
    desktops: Mapping[VersionId, Mapping[ServerId, int]] = field(default_factory=dict)
    others: Mapping[VersionId, tuple[str, ...]] = field(default_factory=dict)
    at_work: frozenset[ServerId] = frozenset()
