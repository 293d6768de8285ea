"""Which desktops are restored from a saved memory instead of booting, and when one is saved. Pure.

A *warm memory* is that of a guest that was booted to ready once, with the disk as
it was at that moment. It fits only a domain of the same version and hardware on
the same kind of server: its `key` is a hash of all that, so that whatever changes
makes another key and the old memory is never used again.

While a server has none for a key, the first desktop boots by itself, so that
nobody waits longer than before; the others wait for the memory, which is ready
hardly later and gives each of them a desktop in a second. For a memory whose last
making failed nobody waits.
"""

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeAlias

from kmgr.ids import DesktopId, VersionId
from kmgr.provision import domainxml
from kmgr.provision.hypervisor import DomainSpec
from kmgr.provision.lifecycle import LIVING
from kmgr.provision.model import Desktop, DesktopState, Origin, Purpose
from kmgr.templates.model import Kind, Template
from kmgr.templates.policy import Clones, Seed

Key: TypeAlias = str

# The id of what is booted only to save its memory begins like this: it is nobody's desktop.
BUILDER = "warm-"
# A standby that has just booted still finishes starting; it is not put to sleep before.
CALM_S = 60.0
# Something that did not work is tried again after this, then after twice as long, and so often at all. A new version
# or new hardware is another key at once.
AGAIN_S = 900.0
MOST_TRIES = 4


class Standing(StrEnum):
    """How it is with the memory of a key on this server."""

    MISSING = "missing"
    MAKING = "making"
    READY = "ready"
    UNABLE = "unable"


@dataclass(frozen=True, slots=True)
class Warm:
    """A saved memory that is whole. `samples` are the random numbers that the first ones restored from it drew."""

    key: Key
    version: VersionId
    vcpus: int
    memory_mib: int
    bytes: int = 0
    samples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """`held` desktops wait for a memory; one is to be saved next for those like `make`."""

    held: frozenset[DesktopId]
    make: Desktop | None


def why_boots(template: Template | None) -> str:
    """Say why the desktops of a template always boot by themselves; empty if they need not."""
    if template is None:
        return "its template is gone"
    if template.policy.instant_clone is Clones.NEVER:
        return "its template says that every desktop boots by itself"
    if template.kind is Kind.PERSONAL:
        return "personal desktops are kept for years and boot by themselves"
    if template.policy.seed is not Seed.NONE:
        return "its first-boot program has to run in every desktop"
    if template.policy.devices.clipboard:
        return "QEMU cannot save a desktop that shares its clipboard"
    if template.policy.machine.needs:
        return "one that starts by UEFI, or has a TPM, has variables of its own there"
    return ""


def key(spec: DomainSpec, version: VersionId, hardware: str) -> Key:
    """Return what a saved memory must have been made for to fit this domain."""
    text = f"{version}\n{hardware}\n{domainxml.render(nobody(spec))}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def nobody(spec: DomainSpec) -> DomainSpec:
    """Return the spec without what makes it one desktop's."""
    none = DesktopId(f"{BUILDER}nobody")
    return replace(
        spec, desktop=none, generation=0, name="", grid="", template="", disk="", display="", log="", ram=""
    )


def is_builder(desktop: DesktopId) -> bool:
    """Tell whether a domain was started only to save its memory, or to try one."""
    return desktop.startswith(BUILDER)


def again_s(failures: int) -> float:
    """Return how long what failed so often in a row is left alone; for ever after `MOST_TRIES`."""
    return math.inf if failures >= MOST_TRIES else AGAIN_S * 2.0 ** (failures - 1)


def choose(
    wanted: Sequence[Desktop],
    keys: Mapping[DesktopId, Key],
    standing: Mapping[Key, Standing],
    *,
    room: int,
    doubted: Collection[Key] = (),
) -> Choice:
    """Say which desktops wait for a memory, and for whose like one is saved next.

    `wanted` are this server's desktops; those without a key boot by themselves. `room` more may begin to be built:
    who boots by themselves first, then the memory. Nobody waits for a `doubted` one, which failed the last time.
    """
    served = {keys[d.id] for d in wanted if d.id in keys and d.state in (DesktopState.BUILDING, DesktopState.READY)}
    held: set[DesktopId] = set()
    alone = 0
    for desktop in _oldest_first(d for d in wanted if d.state is DesktopState.PLACED):
        own = keys.get(desktop.id)
        now = Standing.UNABLE if own is None else standing.get(own, Standing.MISSING)
        if own is None or own in doubted or now in (Standing.READY, Standing.UNABLE):
            alone += 1
        elif own in served or now is Standing.MAKING:
            held.add(desktop.id)
        else:
            served.add(own)
            alone += 1
    busy = any(one is Standing.MAKING for one in standing.values())
    make = None if busy or room <= alone else _to_make(wanted, keys, standing)
    return Choice(frozenset(held), make)


def _to_make(
    wanted: Sequence[Desktop], keys: Mapping[DesktopId, Key], standing: Mapping[Key, Standing]
) -> Desktop | None:
    # For those who wait first, then for the next ones to come.
    for states in ((DesktopState.PLACED, DesktopState.BUILDING), LIVING):
        for desktop in _oldest_first(wanted):
            own = keys.get(desktop.id)
            missing = own is not None and standing.get(own, Standing.MISSING) is Standing.MISSING
            if desktop.state in states and missing:
                return desktop
    return None


def useless(
    kept: Iterable[Warm], keys: Collection[Key], templates: Iterable[Template], *, using: Collection[Key] = ()
) -> tuple[Key, ...]:
    """Return the memories that no desktop of this server and no published version can use any more.

    `keys` are those of this server's living desktops. One that a template publishes with this shape is kept although
    none of its desktops is here now, unless those that are here need another one (the hardware changed).
    """
    published = {(t.version, t.vcpus, t.memory_mib) for t in templates if t.enabled and not why_boots(t)}
    held = list(kept)
    renewed = {(w.version, w.vcpus, w.memory_mib) for w in held if w.key in keys}
    return tuple(
        sorted(
            w.key
            for w in held
            if w.key not in keys
            and w.key not in using
            and ((w.version, w.vcpus, w.memory_mib) not in published or (w.version, w.vcpus, w.memory_mib) in renewed)
        )
    )


def sleepers(wanted: Sequence[Desktop], templates: Iterable[Template], *, now_ms: int) -> frozenset[DesktopId]:
    """Return the standbys that are to sleep until they are claimed, by their template's policy."""
    asked = {t.id for t in templates if t.policy.suspend_standby}
    return frozenset(
        d.id
        for d in wanted
        if d.state is DesktopState.READY
        and d.template in asked
        and d.purpose is Purpose.USE
        and not d.personal
        and (d.origin is Origin.WARM or now_ms - d.changed_at >= CALM_S * 1000)
    )


def _oldest_first(wanted: Iterable[Desktop]) -> list[Desktop]:
    return sorted(wanted, key=lambda d: (d.created_at, d.id))
