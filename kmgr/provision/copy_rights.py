"""Whose points a safe copy takes: the server's that may run the desktop now, and nobody else's.

Rule 1: the desktop is on that server, in that generation: a former owner counts for nothing.
Rule 2: that server may run personal desktops: one that the grid counts as lost has no lease.
Rule 3: the log wants a copy here, and it is not becoming the desktop's disk.
"""

from sqlite_utils import Database

from kmgr.grid.model import RUNNING
from kmgr.grid.queries import server
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.model import CopyState
from kmgr.provision.queries import copies
from kmgr.provision.queries import desktop as find_desktop


def may_send(db: Database, sender: ServerId, desktop: DesktopId, generation: int, *, to: ServerId) -> bool:
    """Tell whether a server may bring another one's copy of a desktop up to date."""
    record, home = find_desktop(db, desktop), server(db, sender)
    if record is None or not record.owned or (record.server, record.generation) != (sender, generation):
        return False
    if home is None or home.state not in RUNNING:
        return False
    live = (CopyState.WANTED, CopyState.READY)
    return any(
        copy.generation == generation and copy.state in live for copy in copies(db, desktop=desktop, server=to)
    )
