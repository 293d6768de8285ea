"""Desktops as records, and the words for their states.

Pure: no I/O, no clock.
"""

from dataclasses import dataclass
from enum import StrEnum

from kmgr.ids import AccountName, DesktopId, ServerId, TemplateId, VersionId
from kmgr.provision.causes import Trouble
from kmgr.templates.model import Kind


class DesktopState(StrEnum):
    """The life of a desktop; `provision/lifecycle.py` has the table of legal changes."""

    PLACED = "placed"  # a server was chosen; nothing exists yet
    BUILDING = "building"  # its linked clone and domain are being made, the guest boots
    READY = "ready"  # the guest agent answers; nobody has claimed it: a standby
    IN_USE = "in_use"  # claimed by a user
    BROKEN = "broken"  # a step failed; cause and step say which and why
    RETIRED = "retired"  # to be removed from its server; the row goes when that is done


class Purpose(StrEnum):
    """What a desktop is for."""

    USE = "use"  # somebody works on it, or may claim it
    EDIT = "edit"  # an administrator changes it, to make a version of its disk
    TEST = "test"  # an administrator looks at a version that is not published


class Origin(StrEnum):
    """How a desktop came to be ready."""

    COLD = "cold"  # its guest booted
    WARM = "warm"  # its memory was restored from a guest that had booted before


@dataclass(frozen=True, slots=True)
class Desktop:
    """One virtual machine for one user at a time.

    `generation` counts rebuilds and fences stale owners. `user` is empty for a
    standby. `step` and `cause` say what failed last (empty: nothing), `trouble`
    what that is a case of. One whose `purpose` is not use belongs to no pool and to the administrator
    who asked for it. `moving_to` is the server that it is on its way to. `connected_at` and
    `disconnected_at` say when its user's display was opened and closed last.
    Stamps are ms since 1970.
    """

    id: DesktopId
    name: str
    template: TemplateId
    version: VersionId
    server: ServerId
    state: DesktopState
    generation: int
    vcpus: int
    memory_mib: int
    user: AccountName | None
    claimed_at: int | None
    step: str
    cause: str
    created_at: int
    changed_at: int
    ready_at: int | None
    kind: Kind = Kind.POOLED
    moving_to: ServerId | None = None
    connected_at: int | None = None
    disconnected_at: int | None = None
    origin: Origin = Origin.COLD
    trouble: Trouble | None = None
    purpose: Purpose = Purpose.USE
    outfit: str = ""

    @property
    def personal(self) -> bool:
        """True for one that is, or will be, kept for its user: it runs only under a lease."""
        return self.kind is Kind.PERSONAL

    @property
    def is_open(self) -> bool:
        """True while the log knows its user's screen as open."""
        return self.connected_at is not None and self.disconnected_at is None

    @property
    def owned(self) -> bool:
        """True once a personal desktop is somebody's: its disk is theirs and never thrown away by itself."""
        return self.personal and self.user is not None and self.state is not DesktopState.RETIRED


@dataclass(frozen=True, slots=True)
class Leaving:
    """A desktop that cannot be moved from its draining server: `until` then (ms since 1970) its user works on."""

    desktop: DesktopId
    generation: int
    server: ServerId
    until: int


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a desktop's life: since `at` it was in a state, on a server, somebody's.

    It lasted until the next stage began. `step` and `cause` say what failed.
    """

    n: int
    at: int
    state: DesktopState
    generation: int
    server: ServerId
    user: AccountName | None
    step: str
    cause: str


class CopyState(StrEnum):
    """What a server has of a personal desktop that does not run there."""

    WANTED = "wanted"  # it is to hold the safe copy; no complete one is there yet
    READY = "ready"  # a complete safe copy, as of some moment
    STARTING = "starting"  # its server was lost: the copy becomes the desktop's disk
    SUPERSEDED = "superseded"  # the desktop goes on elsewhere; its former disk is kept for the administrator
    LEFT = "left"  # the desktop moved away with all of it; kept until another safe copy is complete
    DROPPING = "dropping"  # to be deleted; the row goes when that is done


@dataclass(frozen=True, slots=True)
class Copy:
    """A disk of a personal desktop on a server that does not run it.

    `generation` is the desktop's when that disk was its own or was copied. Of a
    copy, all that the guest had saved before `as_of` (ms) is in it; None: not known.
    """

    desktop: DesktopId
    server: ServerId
    generation: int
    state: CopyState
    as_of: int | None
    bytes: int
    changed_at: int


@dataclass(frozen=True, slots=True)
class TakeOver:
    """A personal desktop that was started from its safe copy: what its last one left out.

    The work between `as_of` (None: not known yet) and the loss is not in it; the
    grid had last heard from the server at about `heard_at`. Stamps are ms since 1970.
    """

    desktop: DesktopId
    generation: int
    source: ServerId
    target: ServerId
    heard_at: int
    at: int
    as_of: int | None


@dataclass(frozen=True, slots=True)
class Move:
    """A desktop's way to another server while it runs, or the last one that failed: `failures` in a row, and why."""

    desktop: DesktopId
    generation: int
    source: ServerId
    target: ServerId
    why: str
    begun_at: int
    failures: int
    cause: str


@dataclass(frozen=True, slots=True)
class Ask:
    """Somebody waits for a desktop of a template since `since`, and said so again at `at`."""

    template: TemplateId
    user: AccountName
    since: int
    at: int


@dataclass(frozen=True, slots=True)
class Failure:
    """How often in a row desktops of one template and version failed, and the last step and cause."""

    template: TemplateId
    version: VersionId
    n: int
    step: str
    cause: str
    at: int
