"""The grid's records: servers, events, what a server knows about the grid right now.

Pure: no I/O, no clock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from kmgr.ids import ServerId


class ServerState(StrEnum):
    """How the grid sees a server; the values are what API and pages show."""

    JOINING = "joining"
    UP = "up"
    DRAINING = "draining"
    LOST = "lost"
    REMOVED = "removed"


class ServerRole(StrEnum):
    """What a member of the grid is for: a server runs desktops, a witness only keeps the log and votes."""

    SERVER = "server"
    WITNESS = "witness"


# Servers that may be given new desktops, and servers whose desktops are believed to run.
PLACEABLE = (ServerState.UP,)
RUNNING = (ServerState.UP, ServerState.DRAINING)


@dataclass(frozen=True, slots=True)
class Server:
    """One KVM machine running one kmgr. Addresses are `host:port`; stamps are ms since 1970."""

    id: ServerId
    name: str
    grid_address: str
    web_address: str
    state: ServerState
    version: str
    fingerprint: str
    joined_at: int
    changed_at: int
    role: ServerRole = ServerRole.SERVER

    @property
    def is_witness(self) -> bool:
        """True for a member that keeps the log and votes, but never runs desktops or holds images."""
        return self.role is ServerRole.WITNESS


@dataclass(frozen=True, slots=True)
class GridInfo:
    """The grid itself. `ca_key_sealed` is encrypted with the grid secret, which is never state."""

    id: str
    name: str
    ca_cert_pem: str
    ca_key_sealed: str
    created_at: int


NEW_INVITATION = "make a new one on a server of the grid (console: Servers, Add a server; or `kmgr invite`)"


class InvitationState(StrEnum):
    """An invitation is `open` until one of the others happens to it, or its time is over."""

    OPEN = "open"
    USED = "used"
    LOCKED = "locked"
    REPLACED = "replaced"

    @property
    def why_not(self) -> str:
        """Return why nobody can join with it; empty while it is open."""
        return {
            InvitationState.OPEN: "",
            InvitationState.USED: "this invitation was used already",
            InvitationState.LOCKED: "wrong phrases were tried too often, so this invitation is locked",
            InvitationState.REPLACED: "this invitation was replaced by a newer one",
        }[self]


@dataclass(frozen=True, slots=True)
class StoredInvitation:
    """A one-time permission to join. While it is open, what its phrase becomes is here, sealed by the grid secret."""

    id: str
    sealed: str = field(repr=False)
    state: InvitationState
    created_by: str
    created_at: int
    expires_at: int
    tries_left: int
    used_by: ServerId | None


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the grid's history: who did what to which thing, in words."""

    n: int
    at: int
    by: str
    kind: str
    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class GridStatus:
    """What this server knows about the log at this instant.

    On an island (`island`, since `island_since` in ms) it leads itself and counts its own changes on.
    """

    server: ServerId
    leader: ServerId | None
    term: int
    applied: int
    majority: bool
    voters: tuple[ServerId, ...]
    island: bool = False
    island_since: int | None = None

    @property
    def is_leader(self) -> bool:
        """True while this server orders the log (by its own knowledge)."""
        return self.leader == self.server


# Among a server's `extra` vitals: what it can make machines of besides the usual ones (`Machine.needs`).
MACHINES = "machines"
# Among a server's `extra` vitals: its data is older than it was, and no majority has it until that is mended.
DOUBTED = "doubted"


@dataclass(frozen=True, slots=True)
class Processor:
    """What a guest sees of a server's processors under KVM: who made them, which kind they are, what they can do."""

    vendor: str
    kind: str
    features: frozenset[str]

    def to_json(self) -> Mapping[str, Any]:
        """Return it as other servers are told."""
        return {"vendor": self.vendor, "kind": self.kind, "features": sorted(self.features)}


@dataclass(frozen=True, slots=True)
class Vitals:
    """A server's last heartbeat: load, room, accelerator, progress of copies. Memory only, never in the log.

    `heard_at` is this server's monotonic clock when it arrived. `images` maps a
    version id to (blocks here, blocks in all). `problems` are sentences for the
    console ("libvirt is not answering: …"); an empty tuple means all is well. `processor`: None if it is not known.
    """

    server: ServerId
    heard_at: float
    cpus: int = 0
    load_percent: int = 0
    memory_mib: int = 0
    memory_free_mib: int = 0
    disk_mib: int = 0
    disk_free_mib: int = 0
    accelerator: str = ""
    can_run_desktops: bool = False
    processor: Processor | None = None
    problems: Sequence[str] = ()
    images: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
