"""What the balancer looks at and what it decides, as records.

Pure: no I/O, no clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from kmgr.grid.model import Server, Vitals
from kmgr.ids import DesktopId, ServerId, TemplateId, VersionId
from kmgr.provision.model import Copy, Desktop, Move
from kmgr.templates.model import Template
from kmgr.templates.versions import Rollout


class Why(StrEnum):
    """Why a desktop goes: the values are what the administrator reads after "desktop … is removed:"."""

    LOST = "its server is lost"
    DRAINING = "its server drains"
    BALANCE = "its server is much fuller than another one"
    SWITCHED_OFF = "its template is switched off"
    NO_TEMPLATE = "its template was deleted"
    NOT_STARTED = "its template has a newer version"
    REPLACED = "a newer version has taken its place"
    MAKES_ROOM = "it makes room for the newer version"
    WITHDRAWN = "its version was withdrawn"
    STUCK = "its server cannot make it now and another one can"
    TOO_MANY = "more stand by than the template asks for"
    ABOVE_MAXIMUM = "the template's maximum is smaller now"
    UNEVEN = "another server has fewer standbys of its template"
    OLD_BREAKAGE = "newer broken desktops of the template are kept to look at"


@dataclass(frozen=True, slots=True)
class View:
    """One reading of the grid.

    `servers` includes removed ones; `vitals` has fresh heartbeats only. `asks` counts the users who wait
    for a desktop of a template. `fenced` are the servers whose loss was waited out: none of them runs a
    personal desktop any more; `given_up` were lost so long ago that their copies are made anew elsewhere.
    `rollouts` say of which templates a canary goes on, and which of their versions nobody is given any more.
    `moves` are the live moves that go on, and the last one of each desktop that failed.
    `damaged` versions are whole on no server that is up; `holders` of them are those that have them all the same.
    `put_backs` are the desktops of which a superseded disk is being put back, `captured` those of which a version is
    being made.
    `keep_for_loss`: what stands by stops where the loss of a server would need the memory. `owed` counts the
    standbys of a template that made room and whose place is not taken again: each may be placed all the same.
    """

    servers: tuple[Server, ...]
    templates: tuple[Template, ...]
    desktops: tuple[Desktop, ...]
    holders: Mapping[VersionId, frozenset[ServerId]]
    vitals: Mapping[ServerId, Vitals]
    asks: Mapping[TemplateId, int]
    copies: tuple[Copy, ...] = ()
    fenced: frozenset[ServerId] = frozenset()
    given_up: frozenset[ServerId] = frozenset()
    rollouts: Mapping[TemplateId, Rollout] = field(default_factory=dict)
    moves: Mapping[DesktopId, Move] = field(default_factory=dict)
    put_backs: frozenset[DesktopId] = frozenset()
    captured: frozenset[DesktopId] = frozenset()
    damaged: frozenset[VersionId] = frozenset()
    keep_for_loss: bool = True
    owed: Mapping[TemplateId, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """Make a new desktop of a template's version on a server."""

    template: TemplateId
    version: VersionId
    server: ServerId


@dataclass(frozen=True, slots=True)
class Retire:
    """Have a desktop removed; what was believed about it and its server is checked again when it is applied."""

    desktop: Desktop
    why: Why


@dataclass(frozen=True, slots=True)
class Relocate:
    """Let a desktop that somebody uses go on on another server."""

    desktop: Desktop
    target: ServerId
    why: Why


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop the record of a desktop whose server is no server of the grid any more."""

    desktop: DesktopId


@dataclass(frozen=True, slots=True)
class Assign:
    """Let a server hold a personal desktop's safe copy."""

    desktop: Desktop
    server: ServerId


@dataclass(frozen=True, slots=True)
class GoOn:
    """Start a lost server's personal desktop from its safe copy; all that was believed is checked when applied."""

    desktop: Desktop
    target: ServerId
    lost_at: int


@dataclass(frozen=True, slots=True)
class PutAside:
    """Let a lost server's desktop go on from the superseded disk that is being put back; checked when applied."""

    desktop: Desktop
    lost_at: int


@dataclass(frozen=True, slots=True)
class DropCopy:
    """Have a copy deleted that protects nothing any more."""

    copy: Copy


@dataclass(frozen=True, slots=True)
class ForgetCopy:
    """Drop the record of a disk on a server that is no server of the grid any more."""

    copy: Copy


Action: TypeAlias = Forget | Retire | Place | Relocate | Assign | GoOn | PutAside | DropCopy | ForgetCopy


@dataclass(frozen=True, slots=True)
class Shortage:
    """A template that has fewer desktops than it should, and what would help, in words."""

    template: TemplateId
    missing: int
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in this order, and what cannot be done now."""

    actions: tuple[Action, ...]
    short: tuple[Shortage, ...] = ()
