"""Decide what happens to personal desktops and their safe copies: who holds them, and who goes on from them.

A personal desktop goes on from its copy when its server is lost or removed, that
loss was waited out (`View.fenced`), and the copy's server can start it, which takes
what its machine needs. While `calm` is kept after an election nothing does. A copy
that its server knows to be bad comes after all others.

Pure.
"""

from collections import Counter
from collections.abc import Iterator, Mapping

from kmgr.balancer.model import Assign, DropCopy, ForgetCopy, GoOn, PutAside, View
from kmgr.balancer.place import disk_reserve_mib, lacking, machine_of, machines
from kmgr.grid.model import PLACEABLE, RUNNING, Server, ServerState, Vitals
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.model import Copy, CopyState, Desktop
from kmgr.replica import protect as copies
from kmgr.templates.machine import Machine

_LIVE = (CopyState.WANTED, CopyState.READY)


def protect(view: View, *, calm: bool = False) -> tuple[Assign | GoOn | PutAside | DropCopy | ForgetCopy, ...]:
    """Return what to do, in this order."""
    return (*_forgotten(view), *([] if calm else _going_on(view)), *_useless(view), *_assigned(view))


def safe_copies(view: View) -> Mapping[DesktopId, tuple[Copy, ...]]:
    """Return the complete copies that a desktop could be started from, the newest first, those known to be bad last.

    From a bad one it is started only by a person's word (`good_copies` has the others).
    """
    bad = _bad(view)
    servers = {server.id: server for server in view.servers}
    generation = {desktop.id: desktop.generation for desktop in view.desktops}
    found: dict[DesktopId, list[Copy]] = {}
    for copy in view.copies:
        there = servers.get(copy.server)
        gone = there is None or there.state is ServerState.REMOVED
        if copy.state is CopyState.READY and copy.generation == generation.get(copy.desktop) and not gone:
            found.setdefault(copy.desktop, []).append(copy)

    def order(copy: Copy) -> tuple[bool, int, ServerId]:
        return copy.desktop in bad.get(copy.server, ()), -(copy.as_of or 0), copy.server

    return {desktop: tuple(sorted(held, key=order)) for desktop, held in found.items()}


def good_copies(view: View) -> Mapping[DesktopId, tuple[Copy, ...]]:
    """Return the same without those of which their servers say that they are bad; no desktop has none of them."""
    bad = _bad(view)
    good = {d: tuple(c for c in held if d not in bad.get(c.server, ())) for d, held in safe_copies(view).items()}
    return {desktop: held for desktop, held in good.items() if held}


def _bad(view: View) -> Mapping[ServerId, frozenset[DesktopId]]:
    return {server: bad_on(vitals) for server, vitals in view.vitals.items()}


def bad_on(vitals: Vitals | None) -> frozenset[DesktopId]:
    """Return whose safe copies on its disk a server knows to be bad, by its last word."""
    told = vitals.extra.get(copies.BAD_COPIES) if vitals is not None else None
    return frozenset(DesktopId(str(one)) for one in told) if isinstance(told, list | tuple) else frozenset()


def former_disks(view: View) -> frozenset[DesktopId]:
    """Return the desktops of which a superseded disk, or the one left by a move, is kept on a server of the grid."""
    gone = {server.id for server in view.servers if server.state is ServerState.REMOVED}
    kept = (CopyState.SUPERSEDED, CopyState.LEFT, CopyState.STARTING)
    return frozenset(copy.desktop for copy in view.copies if copy.state in kept and copy.server not in gone)


def _going_on(view: View) -> Iterator[GoOn | PutAside]:
    servers = {server.id: server for server in view.servers}
    safe = safe_copies(view)
    for desktop in sorted(view.desktops, key=lambda d: d.id):
        source = servers.get(desktop.server)
        if not desktop.owned or source is None or source.id not in view.fenced or source.state in RUNNING:
            continue
        if desktop.id in view.put_backs:
            yield PutAside(desktop, source.changed_at)
            continue
        machine = machine_of(desktop, view)
        able = (c.server for c in safe.get(desktop.id, ()) if _can_start(view, servers[c.server], machine))
        target = next(able, None)
        if target is not None:
            yield GoOn(desktop, target, source.changed_at)


def _can_start(view: View, server: Server, machine: Machine) -> bool:
    vitals = view.vitals.get(server.id)
    if server.state not in PLACEABLE or vitals is None or not vitals.can_run_desktops:
        return False
    return lacking(machine, machines(vitals)) is None


def unable(view: View, machine: Machine) -> frozenset[ServerId]:
    """Return the servers that say that they cannot make such a machine; of a silent one that is not known."""
    if not machine.needs:
        return frozenset()
    return frozenset(s for s, vitals in view.vitals.items() if lacking(machine, machines(vitals)) is not None)


def _assigned(view: View) -> Iterator[Assign]:
    desktops = {d.id: d for d in view.desktops if d.owned and d.id not in view.put_backs and _lives(view, d.server)}
    size = _sizes(view)
    machine = {d.id: machine_of(d, view) for d in desktops.values()}
    cannot = {one: unable(view, one) for one in set(machine.values())}
    disks = [
        copies.Disk(d.id, d.server, d.version, size.get(d.id, 0), cannot[machine[d.id]]) for d in desktops.values()
    ]
    held: dict[DesktopId, list[ServerId]] = {}
    for copy in view.copies:
        desktop = desktops.get(copy.desktop)
        if desktop is not None and copy.state in _LIVE and copy.generation == desktop.generation:
            held.setdefault(copy.desktop, []).append(copy.server)
    promised = _promised(view, size)
    for chosen, server in copies.holders(disks, [_shelf(view, s, promised[s.id]) for s in view.servers], held):
        if server not in held.get(chosen, ()):
            yield Assign(desktops[chosen], server)


def _shelf(view: View, server: Server, promised_mib: int) -> copies.Shelf:
    vitals = view.vitals.get(server.id)
    takes = server.state in PLACEABLE and vitals is not None and not server.is_witness
    # A lost one is waited for, until it has been lost for good.
    keeps = server.state is ServerState.UP or (server.state is ServerState.LOST and server.id not in view.given_up)
    return copies.Shelf(
        server.id,
        keeps=keeps and not server.is_witness,
        takes=takes,
        free_mib=vitals.disk_free_mib - disk_reserve_mib(vitals) - promised_mib if vitals else 0,
        versions=frozenset(version for version, held in view.holders.items() if server.id in held),
    )


def _promised(view: View, size: Mapping[DesktopId, int]) -> Counter[ServerId]:
    """Count the room that is given away and not taken yet: copies that are wanted, and not complete so far."""
    promised: Counter[ServerId] = Counter()
    for copy in view.copies:
        if copy.state is CopyState.WANTED:
            promised[copy.server] += size.get(copy.desktop, 0) or copies.UNKNOWN_MIB
    return promised


def _useless(view: View) -> Iterator[DropCopy]:
    """Copies of another generation than the desktop's, or of a desktop that is nobody's any more."""
    desktops: Mapping[DesktopId, Desktop] = {d.id: d for d in view.desktops}
    for copy in view.copies:
        desktop = desktops.get(copy.desktop)
        if copy.state in _LIVE and (
            desktop is None
            or not desktop.owned
            or desktop.generation != copy.generation
            or desktop.server == copy.server
        ):
            yield DropCopy(copy)


def _forgotten(view: View) -> Iterator[ForgetCopy]:
    states = {server.id: server.state for server in view.servers}
    for copy in view.copies:
        if states.get(copy.server, ServerState.REMOVED) is ServerState.REMOVED:
            yield ForgetCopy(copy)


def _lives(view: View, server: ServerId) -> bool:
    return any(s.id == server and s.state in RUNNING for s in view.servers)


def _sizes(view: View) -> Mapping[DesktopId, int]:
    return {copy.desktop: -(-copy.bytes >> 20) for copy in view.copies if copy.bytes}
