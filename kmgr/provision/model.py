"""Desktops as records, and the words for their states.

Pure: no I/O, no clock.
"""

from dataclasses import dataclass
from enum import StrEnum

from kmgr.ids import AccountName, DesktopId, ServerId, TemplateId, VersionId


class DesktopState(StrEnum):
    """The life of a desktop; `provision/lifecycle.py` has the table of legal changes."""

    PLACED = "placed"  # a server was chosen; nothing exists yet
    BUILDING = "building"  # its linked clone and domain are being made, the guest boots
    READY = "ready"  # the guest agent answers; nobody has claimed it: a standby
    IN_USE = "in_use"  # claimed by a user
    BROKEN = "broken"  # a step failed; cause and step say which and why
    RETIRED = "retired"  # to be removed from its server; the row goes when that is done


@dataclass(frozen=True, slots=True)
class Desktop:
    """One virtual machine for one user at a time.

    `generation` counts rebuilds and fences stale owners. `user` is empty for a
    standby. `step` and `cause` say what failed last (empty: nothing).
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
