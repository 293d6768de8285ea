"""Decide what happens to personal desktops and their safe copies: who holds them, and who goes on from them.

A personal desktop goes on from its copy when its server is lost or removed, that
loss was waited out (`View.fenced`), and the copy's server can start it. While
`calm` is kept after an election nothing does.

Pure.
"""

from collections import Counter
from collections.abc import Iterator, Mapping

from kmgr.balancer.model import Assign, DropCopy, ForgetCopy, GoOn, PutAside, View
from kmgr.balancer.place import disk_reserve_mib
from kmgr.grid.model import PLACEABLE, RUNNING, Server, ServerState
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.model import Copy, CopyState, Desktop
from kmgr.replica import protect as copies

_LIVE = (CopyState.WANTED, CopyState.READY)


def protect(view: View, *, calm: bool = False) -> tuple[Assign | GoOn | PutAside | DropCopy | ForgetCopy, ...]:
    """Return what to do, in this order."""
    return (*_forgotten(view), *([] if calm else _going_on(view)), *_useless(view), *_assigned(view))


def safe_copies(view: View) -> Mapping[DesktopId, tuple[Copy, ...]]:
    """Return the complete copies that a desktop could be started from, the newest first."""
    servers = {server.id: server for server in view.servers}
    generation = {desktop.id: desktop.generation for desktop in view.desktops}
    found: dict[DesktopId, list[Copy]] = {}
    for copy in view.copies:
        there = servers.get(copy.server)
        gone = there is None or there.state is ServerState.REMOVED
        if copy.state is CopyState.READY and copy.generation == generation.get(copy.desktop) and not gone:
            found.setdefault(copy.desktop, []).append(copy)
    return {d: tuple(sorted(held, key=lambda c: (-(c.as_of or 0), c.server))) for d, held in found.items()}


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
        target = next((c.server for c in safe.get(desktop.id, ()) if _can_start(view, servers[c.server])), None)
        if target is not None:
            yield GoOn(desktop, target, source.changed_at)


def _can_start(view: View, server: Server) -> bool:
    vitals = view.vitals.get(server.id)
    return server.state in PLACEABLE and vitals is not None and vitals.can_run_desktops


def _assigned(view: View) -> Iterator[Assign]:
    desktops = {d.id: d for d in view.desktops if d.owned and d.id not in view.put_backs and _lives(view, d.server)}
    size = _sizes(view)
    disks = [copies.Disk(d.id, d.server, d.version, size.get(d.id, 0)) for d in desktops.values()]
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
