"""Decide which desktops leave because of their server: it is lost, it drains, or it was removed.

A pooled desktop is not carried to another server: it is retired here, a new one
is made elsewhere (`pool`), its user claims that one. A lost server removes the
retired ones when it returns. On a draining server what nobody uses goes at
once, since nobody can claim it there; what is in use stays until its user is done.

A personal desktop that is somebody's is never retired because of its server: it
goes on from its safe copy (`protection`), or waits for its server. Only with a
server that was removed it is forgotten, if neither a copy nor a former disk of it is there.

Pure.
"""

from collections.abc import Iterator

from kmgr.balancer.model import Forget, Retire, View, Why
from kmgr.balancer.protection import former_disks, safe_copies
from kmgr.grid.model import ServerState
from kmgr.provision.model import DesktopState

# Draining waits for these; everything else leaves.
_STAYS = (DesktopState.IN_USE, DesktopState.RETIRED)


def evacuate(view: View, *, calm: bool = False) -> Iterator[Forget | Retire]:
    """Yield what leaves, by desktop id. While `calm` is kept after an election, nothing leaves because of a loss."""
    states = {server.id: server.state for server in view.servers}
    kept = former_disks(view).union(safe_copies(view))
    for desktop in sorted(view.desktops, key=lambda d: d.id):
        if desktop.owned:
            if states.get(desktop.server, ServerState.REMOVED) is ServerState.REMOVED and desktop.id not in kept:
                yield Forget(desktop.id)
            continue
        match states.get(desktop.server, ServerState.REMOVED):
            case ServerState.REMOVED:
                yield Forget(desktop.id)
            case ServerState.LOST if not calm and desktop.state is not DesktopState.RETIRED:
                yield Retire(desktop, Why.LOST)
            case ServerState.DRAINING if desktop.state not in _STAYS:
                yield Retire(desktop, Why.DRAINING)
            case _:
                continue
