"""The versions of a template that were published, and how they stand.

New desktops are made from one of them, the *default* (`Template.version`); the
*head* is the one published last. While a *canary* goes on, a few desktops are
made from another one, and watched (`templates.canary`).

Pure: no I/O, no clock.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from kmgr.ids import TemplateId, VersionId

# Tags that follow from what is published; nobody sets them by hand.
HEAD, DEFAULT = "head", "default"
_TAG = re.compile(r"[a-z0-9]([a-z0-9._-]{0,30}[a-z0-9])?")


class Stand(StrEnum):
    """How a template's version stands; the values are what API and pages show."""

    CANARY = "canary"  # a few desktops of it are watched; nobody else is given one
    PUBLISHED = "published"  # it is, was or may become what new desktops are made from
    STOPPED = "stopped"  # its canary failed, or somebody stopped it
    WITHDRAWN = "withdrawn"  # somebody went back to an earlier one
    EXPIRED = "expired"  # no new desktops; those there are go on
    ENDED = "ended"  # its desktops go: standbys at once, others when their users log out


# Nobody is given a desktop of these any more.
OVER = (Stand.STOPPED, Stand.WITHDRAWN, Stand.ENDED)


@dataclass(frozen=True, slots=True)
class TemplateVersion:
    """A version that a template published. `default_at`: when it became what new desktops are made from.

    `number` is the golden image version's. `step` and `cause` say why it was
    stopped. `soft_at`, `hard_at`: from when on there are no new desktops of it, and
    none at all. Stamps are ms since 1970.
    """

    template: TemplateId
    version: VersionId
    number: int
    notes: str
    author: str
    at: int
    stand: Stand
    step: str = ""
    cause: str = ""
    default_at: int | None = None
    soft_at: int | None = None
    hard_at: int | None = None


@dataclass(frozen=True, slots=True)
class Canary:
    """A few desktops of a new version that are watched before others get it.

    `size` desktops must have been ready for `watch_s`, all of them within `patience_s`.
    `failed` of them broke so far, the last one at `step` because of `cause`.
    """

    template: TemplateId
    version: VersionId
    size: int
    watch_s: int
    patience_s: int
    at: int
    by: str
    failed: int = 0
    step: str = ""
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Rollout:
    """What the balancer has to know of a template's versions: the canary, and which nobody is given any more."""

    canary: Canary | None = None
    over: frozenset[VersionId] = field(default_factory=frozenset)


NO_ROLLOUT = Rollout()


def tag_problem(tag: object) -> str:
    """Say why a word cannot be a tag, empty if it can."""
    if tag in (HEAD, DEFAULT):
        return f"the tag {tag} follows what is published: publish the version, or go back to it"
    if not isinstance(tag, str) or not _TAG.fullmatch(tag):
        return f"{tag!r} cannot be a tag: choose 1 to 32 small letters, digits, dots and hyphens"
    return ""


def head(versions: Sequence[TemplateVersion]) -> TemplateVersion | None:
    """Return the version that was published last."""
    return max(versions, key=lambda one: (one.at, one.number), default=None)


def before(versions: Sequence[TemplateVersion], default: VersionId) -> TemplateVersion | None:
    """Return the version to go back to: the one that was the default before the present one."""
    former = [one for one in versions if one.version != default and one.stand is Stand.PUBLISHED]
    was = [one for one in former if one.default_at is not None]
    return max(was, key=lambda one: (one.default_at or 0, one.number), default=None)


def tags_of(
    versions: Sequence[TemplateVersion], default: VersionId, named: Mapping[str, VersionId]
) -> Mapping[VersionId, tuple[str, ...]]:
    """Return the tags of each version: `default`, `head`, then the named ones by name."""
    found: dict[VersionId, list[str]] = {default: [DEFAULT]}
    newest = head(versions)
    if newest is not None:
        found.setdefault(newest.version, []).append(HEAD)
    for tag, version in sorted(named.items()):
        found.setdefault(version, []).append(tag)
    return {version: tuple(tags) for version, tags in found.items()}
