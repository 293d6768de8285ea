"""What to do next so that this server has the desktops it should have. Pure.

Level-triggered: wanted and observed go in, actions come out, nothing is
remembered. Removals come first, so that their memory is free for the rest.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from kmgr.ids import DesktopId, VersionId
from kmgr.provision.hypervisor import DomainState, DomainStatus
from kmgr.provision.model import Desktop, DesktopState


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove a desktop's domain and overlay. `retired` is the record to report as removed, if it is that."""

    desktop: DesktopId
    why: str
    retired: Desktop | None = None


@dataclass(frozen=True, slots=True)
class RemoveStray:
    """Remove a domain that no record explains, once the log itself has confirmed that there is none."""

    desktop: DesktopId


@dataclass(frozen=True, slots=True)
class Build:
    """Make the linked clone and its domain, start it, wait for the guest; goes on wherever it was cut off."""

    desktop: Desktop


@dataclass(frozen=True, slots=True)
class Restart:
    """Power a desktop in use on again (this machine was restarted, the guest shut down); let a halted one go on."""

    desktop: Desktop


@dataclass(frozen=True, slots=True)
class Wake:
    """Let a standby go on that slept until it was claimed, or that is not to sleep any more."""

    desktop: Desktop


@dataclass(frozen=True, slots=True)
class Sleep:
    """Have a standby sleep until it is claimed: its memory stays, it takes no processor."""

    desktop: Desktop


@dataclass(frozen=True, slots=True)
class Revive:
    """Define a personal desktop's domain on the disk that it has, or on its safe copy, and power it on."""

    desktop: Desktop


@dataclass(frozen=True, slots=True)
class BootAgain:
    """Report that a standby is off and has to boot: nobody is given it until its guest answers; a `Build` follows."""

    desktop: Desktop


@dataclass(frozen=True, slots=True)
class Quiet:
    """Halt the domain of a broken desktop, as it is: it can be looked at and takes nothing from the others."""

    desktop: Desktop


@dataclass(frozen=True, slots=True)
class Fail:
    """Report a desktop that cannot be brought back."""

    desktop: Desktop
    step: str
    cause: str


Action: TypeAlias = Remove | RemoveStray | Build | Restart | Wake | Sleep | Revive | BootAgain | Quiet | Fail

_BEING_MADE = (DesktopState.PLACED, DesktopState.BUILDING)
_RUNNING = (DesktopState.READY, DesktopState.IN_USE)

# A desktop that goes off so often within POWER_OFF_WINDOW_S is not put on again.
MOST_POWER_OFFS = 3
POWER_OFF_WINDOW_S = 300.0


def being_made(wanted: Sequence[Desktop]) -> tuple[Desktop, ...]:
    """Return the desktops that are to be built, those that wait longest first."""
    return tuple(sorted((d for d in wanted if d.state in _BEING_MADE), key=lambda d: (d.created_at, d.id)))


def reconcile(
    wanted: Sequence[Desktop],
    observed: Sequence[DomainStatus],
    *,
    busy: Collection[DesktopId] = (),
    room: int = 1,
    absent: Collection[VersionId] = (),
    power_offs: Mapping[DesktopId, int] | None = None,
    unruly: Mapping[DesktopId, str] | None = None,
    leased: bool = True,
    held: Collection[DesktopId] = (),
    sleepers: Collection[DesktopId] = (),
) -> Iterator[Action]:
    """Yield what to do.

    `busy` desktops are being worked on, at most `room` more may begin to be
    built. Desktops of `absent` versions wait for their golden image and take no
    room. `power_offs` counts how often desktops went off by themselves of late,
    `unruly` says of which the guest may not go on like that, and why.
    Unless this server is `leased`, nothing is done for personal desktops but removals.
    `held` desktops wait for a memory to be restored from, `sleepers` are standbys that sleep.
    """
    records = {d.id: d for d in wanted}
    domains = {d.desktop: d for d in observed}
    yield from _removals(records, domains, busy)
    if not leased:
        wanted = [record for record in wanted if not record.personal]
    unruly = unruly or {}
    for record in being_made(wanted):
        if record.id in unruly and record.id not in busy and not _another(record, domains):
            yield Fail(record, "guest", unruly[record.id])
            continue
        waits = record.id in busy or record.id in held or record.version in absent
        if waits or _another(record, domains) or room <= 0:
            continue
        room -= 1
        yield Build(record)
    for record in sorted(wanted, key=lambda d: (d.created_at, d.id)):
        if record.id in busy or _another(record, domains):
            continue
        domain = domains.get(record.id)
        if record.state is DesktopState.BROKEN:
            if domain is not None and domain.state is DomainState.RUNNING:
                yield Quiet(record)
        elif record.state in _RUNNING and record.id in unruly:
            yield Fail(record, "run", unruly[record.id])
        elif record.state in _RUNNING:
            sleeps = record.id in sleepers
            yield from _kept_running(record, domains.get(record.id), (power_offs or {}).get(record.id, 0), sleeps)


def _kept_running(record: Desktop, domain: DomainStatus | None, power_offs: int, sleeps: bool) -> Iterator[Action]:
    if domain is None and record.owned:
        yield Revive(record)
    elif domain is None:
        yield Fail(record, "run", "its domain is gone from the hypervisor: somebody removed it by hand")
    elif domain.state is DomainState.PAUSED:
        if not sleeps:
            yield Wake(record)
    elif domain.state is DomainState.RUNNING:
        if sleeps:
            yield Sleep(record)
    elif domain.state is DomainState.OFF:
        if power_offs >= MOST_POWER_OFFS:
            minutes = round(POWER_OFF_WINDOW_S / 60)
            yield Fail(record, "run", f"it went off by itself {power_offs} times within {minutes} minutes")
        elif record.state is DesktopState.READY:
            yield BootAgain(record)
        else:
            yield Restart(record)


def _another(record: Desktop, domains: Mapping[DesktopId, DomainStatus]) -> bool:
    # An older generation is removed first and built in the next round; a newer one: the state here is behind.
    domain = domains.get(record.id)
    return domain is not None and domain.generation != record.generation


def _removals(
    records: Mapping[DesktopId, Desktop], domains: Mapping[DesktopId, DomainStatus], busy: Collection[DesktopId]
) -> Iterator[Remove | RemoveStray]:
    for desktop in sorted({*records, *domains} - set(busy)):
        record, domain = records.get(desktop), domains.get(desktop)
        if record is None:
            yield RemoveStray(desktop)
        elif record.state is DesktopState.RETIRED:
            yield Remove(desktop, "it is retired", record)
        elif domain is not None and domain.generation < record.generation:
            yield Remove(desktop, "it was made anew under a newer generation")
