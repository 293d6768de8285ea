"""Decide which server a new desktop gets, and say why if none.

What counts: the server is up and was heard from, its hypervisor answers, it has
the golden image and what its kind of machine needs, memory and disk are left beyond a reserve, and it is not yet
starting as many desktops as it can (a storm of boots makes all of them late).
Among those the one with the fewest waiting desktops of the template wins, so
that losing one server takes as few standbys as possible; then the one with most
memory left; ties are broken by id. Each choice is booked at once.

Pure.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache

from kmgr.balancer.model import View
from kmgr.grid.model import MACHINES, PLACEABLE, RUNNING, ServerState, Vitals
from kmgr.ids import DesktopId, ServerId, TemplateId, VersionId
from kmgr.provision.model import Desktop, DesktopState
from kmgr.provision.outfit import machine_in
from kmgr.templates.machine import Machine
from kmgr.templates.model import Template
from kmgr.templates.policy import USUAL

COMING = (DesktopState.PLACED, DesktopState.BUILDING)
WAITING = (*COMING, DesktopState.READY)

# As long as a server does not say how many it makes at once.
COMING_PER_CPU = 2
# So that the next one lies there when one of those is ready.
COMING_PER_BUILD = 2
# QEMU's own memory beside the guest's.
OVERHEAD_MIB = 64
# What an overlay may grow by before the next heartbeats tell how full the disk is.
GROWTH_MIB = 256


class Unfit(StrEnum):
    """Why a server gets no desktop now; the value follows the server's name."""

    NOT_UP = "is not up"
    SILENT = "has not reported for some seconds"
    NO_HYPERVISOR = "cannot run desktops, see its problems"
    NO_IMAGE = "does not have the golden image"
    NO_FIRMWARE = "has no UEFI firmware for it (apt-get install ovmf)"
    NO_TPM = "has no TPM emulator for it (apt-get install swtpm swtpm-tools)"
    NO_MEMORY = "has too little memory left"
    NO_DISK = "has too little disk left"
    BUSY = "is starting as many desktops as it can at once"


@dataclass(slots=True)
class Room:
    """What is left on one server while a plan is being made. `closed` is set if it takes nothing at all."""

    server: ServerId
    name: str
    closed: Unfit | None
    memory_mib: int = 0
    disk_mib: int = 0
    slots: int = 0
    waiting: Counter[TemplateId] = field(default_factory=Counter)
    machines: frozenset[str] = frozenset()

    def book(self, template: Template) -> None:
        """Count a desktop that was given to this server."""
        self.memory_mib -= template.memory_mib + OVERHEAD_MIB
        self.disk_mib -= GROWTH_MIB
        self.slots -= 1
        self.waiting[template.id] += 1


def able(view: View, server: ServerId) -> bool:
    """Tell whether a server's last word was that it can run desktops, or nothing was heard that says otherwise."""
    vitals = view.vitals.get(server)
    return vitals is None or vitals.can_run_desktops


def memory_reserve_mib(vitals: Vitals) -> int:
    """Return the memory that stays with the server itself: a sixteenth, at least 256 MiB, at most 2 GiB."""
    return min(2048, max(256, vitals.memory_mib // 16))


def disk_reserve_mib(vitals: Vitals) -> int:
    """Return the disk that stays free: a fiftieth, at least 512 MiB, at most 4 GiB."""
    return min(4096, max(512, vitals.disk_mib // 50))


def rooms(view: View, going: Collection[DesktopId] = ()) -> tuple[Room, ...]:
    """Return what is left on each server, by id; `going` desktops are about to be retired.

    Memory is what is left of both accounts: of what was promised to the
    desktops there (a retired one keeps its share until it is removed), and of
    what is free now, less what those still starting will take.
    """
    found = []
    on_each = by_server(view.desktops)
    arrivals = [d for d in view.desktops if d.moving_to is not None]
    for server in sorted(view.servers, key=lambda s: s.id):
        if server.state is ServerState.REMOVED or server.is_witness:
            continue
        vitals = view.vitals.get(server.id)
        closed = _closed(server.state, vitals)
        if vitals is None:
            found.append(Room(server.id, server.name, closed))
            continue
        here = on_each.get(server.id, ())
        coming = [d for d in here if d.state in COMING and d.id not in going]
        arriving = [d for d in arrivals if d.moving_to == server.id]
        promised = vitals.memory_mib - sum(d.memory_mib + OVERHEAD_MIB for d in (*here, *arriving))
        measured = vitals.memory_free_mib - sum(d.memory_mib + OVERHEAD_MIB for d in (*coming, *arriving))
        found.append(
            Room(
                server.id,
                server.name,
                closed,
                memory_mib=min(promised, measured) - memory_reserve_mib(vitals),
                disk_mib=vitals.disk_free_mib - GROWTH_MIB * len([*coming, *arriving]) - disk_reserve_mib(vitals),
                slots=_most_coming(vitals) - len(coming),
                waiting=Counter(d.template for d in here if d.state in WAITING and d.id not in going),
                machines=machines(vitals),
            )
        )
    return tuple(found)


def _most_coming(vitals: Vitals) -> int:
    """Return how many desktops a server should have on their way: what it measured itself, else by its processors."""
    told = vitals.extra.get("builds")
    limit = told.get("limit") if isinstance(told, Mapping) else None
    if isinstance(limit, int) and limit > 0:
        return COMING_PER_BUILD * limit
    return COMING_PER_CPU * max(1, vitals.cpus)


def machines(vitals: Vitals) -> frozenset[str]:
    """Return what a server says that it can make machines of; an older kmgr says nothing and makes usual ones."""
    told = vitals.extra.get(MACHINES)
    return frozenset(str(one) for one in told) if isinstance(told, list | tuple) else frozenset()


def by_server(desktops: Iterable[Desktop]) -> Mapping[ServerId, Sequence[Desktop]]:
    """Return the desktops of each server that has any, in their order."""
    found: dict[ServerId, list[Desktop]] = {}
    for desktop in desktops:
        found.setdefault(desktop.server, []).append(desktop)
    return found


def choose(template: Template, rooms: Collection[Room], view: View, *, holders_only: bool = False) -> Room | None:
    """Return the room that a new desktop of a template should have, or None.

    A server that is still waiting for the golden image is chosen only if every
    server that has it is out of the question for longer than a few boots.
    """
    holders = view.holders.get(template.version, frozenset())
    need_mib = template.memory_mib + OVERHEAD_MIB
    needs = template.policy.machine.needs
    # Asked once for each desktop that is placed: spelled out, it takes a tenth of what `unfit` of each room does.
    fitting = [
        (room.waiting.get(template.id, 0), -room.memory_mib, room.server, room)
        for room in rooms
        if room.slots > 0
        and room.memory_mib >= need_mib
        and room.disk_mib >= GROWTH_MIB
        and needs <= room.machines
        and room.closed is None
        and room.server in holders
    ]
    if fitting:
        return min(fitting)[3]
    if holders_only or not _held_by_a_running_server(template.version, view):
        return None
    verdicts = [(unfit(template, room, view), room) for room in rooms]
    if any(verdict is Unfit.BUSY for verdict, _ in verdicts):
        return None
    without = [
        (room.waiting.get(template.id, 0), -room.memory_mib, room.server, room)
        for verdict, room in verdicts
        if verdict is Unfit.NO_IMAGE
        and lacking(template.policy.machine, room.machines) is None
        and _shortage(template, room) is None
    ]
    return min(without)[3] if without else None


def unfit(template: Template, room: Room, view: View) -> Unfit | None:
    """Return why a server is not given a desktop of a template, None if it may be."""
    if room.closed is not None:
        return room.closed
    if room.server not in view.holders.get(template.version, frozenset()):
        return Unfit.NO_IMAGE
    return lacking(template.policy.machine, room.machines) or _shortage(template, room)


def refusal(template: Template, rooms: Collection[Room], view: View) -> str:
    """Say why no server can be given a desktop of a template, server by server."""
    if not _held_by_a_running_server(template.version, view):
        return "no server that is up has its golden image yet: it starts as soon as one has"
    told = [f"{room.name} {unfit(template, room, view)}" for room in sorted(rooms, key=lambda r: (r.name, r.server))]
    return f"no server can take it: {'; '.join(told)}"


def blocked_by(template: Template, rooms: Collection[Room], view: View) -> Mapping[ServerId, Unfit]:
    """Return the servers that have the golden image and lack nothing but memory or disk."""
    found = {room.server: unfit(template, room, view) for room in rooms}
    return {s: verdict for s, verdict in found.items() if verdict in (Unfit.NO_MEMORY, Unfit.NO_DISK)}


def _closed(state: ServerState, vitals: Vitals | None) -> Unfit | None:
    if state not in PLACEABLE:
        return Unfit.NOT_UP
    if vitals is None:
        return Unfit.SILENT
    return None if vitals.can_run_desktops else Unfit.NO_HYPERVISOR


def lacking(machine: Machine, has: Collection[str]) -> Unfit | None:
    """Return what a server that `has` this lacks to make such a machine, None if nothing."""
    missing = machine.needs.difference(has)
    if not missing:
        return None
    return Unfit.NO_TPM if missing == {"tpm"} else Unfit.NO_FIRMWARE


def machine_of(desktop: Desktop, view: View) -> Machine:
    """Return the machine that a desktop was made with, and keeps wherever it goes on."""
    if desktop.outfit:
        return _kept(desktop.outfit)
    return next((one.policy.machine for one in view.templates if one.id == desktop.template), USUAL.machine)


@lru_cache(maxsize=256)
def _kept(outfit: str) -> Machine:
    return machine_in(outfit, USUAL)


def _shortage(template: Template, room: Room) -> Unfit | None:
    if room.memory_mib < template.memory_mib + OVERHEAD_MIB:
        return Unfit.NO_MEMORY
    if room.disk_mib < GROWTH_MIB:
        return Unfit.NO_DISK
    return Unfit.BUSY if room.slots <= 0 else None


def _held_by_a_running_server(version: VersionId, view: View) -> bool:
    running = {server.id for server in view.servers if server.state in RUNNING}
    return bool(running & view.holders.get(version, frozenset()))
