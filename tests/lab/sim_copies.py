"""Whole folders of simulated servers that are copied and, moments or ages later, put back."""

import shutil
from typing import TYPE_CHECKING

from kmgr.grid.raft.core import Core
from kmgr.ids import ServerId

if TYPE_CHECKING:
    from tests.lab.raft_sim import Sim

# So many steps, at most, lie between a copy and its return if it is of the same moment.
MOMENT = 50


def older_copy(sim: "Sim") -> None:
    """Copy a server's whole folder as it lies there, or put an older copy back and start the server with it."""
    if sim.soon or not _possible(sim):
        return
    one = sim.dice.choice(sorted(sim.servers))
    if sim.dice.random() < 0.3:
        _moments_later(sim, one)
    elif one not in sim.copies:
        _copy(sim, one)
    elif sim.dice.random() < 0.5:
        _put_back(sim, one)


def _possible(sim: "Sim") -> bool:
    if sim.put_back is not None:
        core = sim.servers[sim.put_back].core
        if core is None or not core._guard.trust.counts or not whole(core):
            return False
        sim.put_back = None
    cores = [server.core for server in sim.servers.values() if server.core is not None]
    voters = [core._journal.voters() for core in cores if core.server in core._journal.voters()]
    # Of two voters neither can be made whole by a majority without it; one who is dead may know that they are two.
    return (
        bool(voters)
        and min(map(len, voters)) > 2
        and all(sim.servers[one].core is not None for one in frozenset[ServerId]().union(*voters))
    )


def whole(core: Core) -> bool:
    """Whether a server has on its disk all that others had when it met them."""
    last = core._journal.at(core._journal.synced)
    return last is not None and (last.term, last.index) >= core._journal.least


def _moments_later(sim: "Sim", one: ServerId) -> None:
    """Put a copy back so soon that nobody may have noted what was promised meanwhile."""
    if (leader := sim.leader()) is not None and sim.dice.random() < 0.5:
        one = leader.id
    _copy(sim, one)
    sim.soon = True
    for _ in range(sim.dice.randrange(MOMENT)):
        sim.step()
    sim.soon = False
    if _possible(sim):
        _put_back(sim, one)


def _copy(sim: "Sim", one: ServerId) -> None:
    copy = sim.copies[one] = sim.folder / f"copy of {one}"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(sim.folder / one, copy)


def _put_back(sim: "Sim", one: ServerId) -> None:
    home = sim.folder / one
    sim.blocked.clear()
    sim.lives = None
    sim.kill(one)
    # Whoever ends at the same time has forgotten what it had not noted.
    for other in sorted(sim.servers):
        if sim.dice.random() < 0.2:
            sim.kill(other)
    shutil.rmtree(home)
    shutil.move(sim.copies.pop(one), home)
    sim.files.pop(home / "raft" / "journal", None)
    server = sim.servers[one]
    server.checked, server.seen = 0, ()
    # Nobody can hold a server to what it cannot know; what came of it is looked at everywhere.
    sim.promises.pop(one, None)
    sim.votes.pop(one, None)
    sim.put_back = one
    sim.count["older copies"] += 1
    # What the others remember is the first that it hears.
    sim.mend_all()
    for other in sim.servers:
        sim.hear_out(other, one)
