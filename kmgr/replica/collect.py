"""Decide which versions nobody needs any more, and say of each of the others why it stays.

A version stays if

* a template makes desktops from it, a desktop was made from it, or something else names it (`Uses`);
* no template uses its image at all: what is to become of that, a person says;
* it is a *draft*: newer than every version that a template of its image has published;
* it is in the *rollback window* of a published version: among the last
  `keep_versions` before it, or followed by a newer one for less than `keep_days`.

The clock that `now_ms` comes from may be wrong: then `keep_versions` alone protects.

Pure.
"""

from collections.abc import Mapping, Sequence

from kmgr.ids import VersionId
from kmgr.replica.model import Uses, Version

_DAY_MS = 86_400_000


def needed(version: VersionId, uses: Uses) -> str:
    """Return who uses a version now, as the end of a sentence ("it is used by …"); empty if nobody does."""
    found = []
    if templates := uses.published.get(version, ()):
        found.append(f"the {'template' if len(templates) == 1 else 'templates'} {', '.join(templates)}")
    if count := sum(uses.desktops.get(version, {}).values()):
        found.append("one desktop" if count == 1 else f"{count} desktops")
    found += uses.others.get(version, ())
    return " and ".join(found)


def reasons(
    versions: Sequence[Version], uses: Uses, *, keep_versions: int, keep_days: int, now_ms: int
) -> Mapping[VersionId, str]:
    """Return why a version stays, for each that does, as a sentence's end ("it stays because …")."""
    found: dict[VersionId, str] = {}
    for image in sorted({one.image for one in versions}):
        own = sorted((one for one in versions if one.image == image), key=lambda one: one.number)
        published = [one.number for one in own if one.id in uses.published]
        for one, after in zip(own, [*own[1:], None], strict=True):
            since_ms = None if after is None else now_ms - after.created_at
            why = _used(one, uses) or _awaited(one, published)
            why = why or _window(one, own, published, keep_versions, keep_days, since_ms)
            if why:
                found[one.id] = why
    return found


def collect(
    versions: Sequence[Version], uses: Uses, *, keep_versions: int, keep_days: int, now_ms: int
) -> tuple[VersionId, ...]:
    """Return the versions that may go, oldest first."""
    kept = reasons(versions, uses, keep_versions=keep_versions, keep_days=keep_days, now_ms=now_ms)
    going = [one for one in versions if one.id not in kept]
    return tuple(one.id for one in sorted(going, key=lambda one: (one.created_at, one.image, one.number)))


def _used(version: Version, uses: Uses) -> str:
    users = needed(version.id, uses)
    return f"it is used by {users}" if users else ""


def _awaited(version: Version, published: Sequence[int]) -> str:
    if not published:
        return "no template uses its image yet"
    return "it is newer than what templates use" if version.number > max(published) else ""


def _window(
    version: Version,
    own: Sequence[Version],
    published: Sequence[int],
    keep_versions: int,
    keep_days: int,
    since_ms: int | None,
) -> str:
    for later in published:
        between = sum(version.number < one.number < later for one in own)
        if version.number < later and between < keep_versions:
            return f"it is among the last {keep_versions} before a version in use"
    if since_ms is None or since_ms < keep_days * _DAY_MS:
        return f"a newer one has existed for less than {keep_days} days"
    return ""
