"""Templates as records: what a desktop is made from.

Pure: no I/O, no clock.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from kmgr.ids import ImageId, TemplateId, VersionId
from kmgr.templates.policy import USUAL, Policy
from kmgr.templates.policy import Refresh as Refresh

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


class Kind(StrEnum):
    """Whose a desktop is: made anew after use, or kept for the one user who got it first."""

    POOLED = "pooled"
    PERSONAL = "personal"


class ImageKind(StrEnum):
    """What the versions of an image are."""

    DISK = "disk"  # golden images: what desktops are made from
    ISO = "iso"  # installers: what an administrator's desktop boots from beside an empty disk
    DRIVERS = "drivers"  # CDs from which nothing boots: what lies beside an installer
    BLANK = "blank"  # empty disks: what an installation begins with


@dataclass(frozen=True, slots=True)
class Template:
    """Golden image version + shape + policy + how many.

    `version` is the version that new desktops get; publishing moves it.
    `standby` desktops are kept ready and unclaimed, never more than `maximum`
    exist in all. `name` is also the stem of desktop names, so it is a host name.
    `broken_cause` is set when refilling was stopped after repeated failures.
    `kind` never changes: what its desktops are to their users must not change under them.
    `refresh` is the policy's own, always. `parent` is the template that it was derived from.
    """

    id: TemplateId
    name: str
    notes: str
    image: ImageId
    version: VersionId
    vcpus: int
    memory_mib: int
    standby: int
    maximum: int
    refresh: Refresh
    enabled: bool
    broken_cause: str
    created_at: int
    changed_at: int
    kind: Kind = Kind.POOLED
    policy: Policy = USUAL
    parent: TemplateId | None = None


def name_problem(name: object) -> str:
    """Say why a template cannot have this name, empty if it can."""
    if isinstance(name, str) and _NAME.fullmatch(name):
        return ""
    return (
        f"{name!r} cannot be a template's name: desktops are named after it, so it is a host name of 1 to 40 small "
        "letters, digits and inner hyphens"
    )
