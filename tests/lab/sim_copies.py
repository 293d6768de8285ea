"""Whole folders of simulated servers that are copied and, later, put back."""

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.lab.raft_sim import Sim


def older_copy(sim: "Sim") -> None:
    """Copy a server's whole folder as it lies there, or put an older copy back and start the server with it."""
    if sim.put_back is not None:
        core = sim.servers[sim.put_back].core
        if core is None or not core._guard.trust.counts:
            return
        sim.put_back = None
    leader = sim.leader()
    if leader is None or leader.core is None or len(leader.core.shown.voters) < 3:
        return  # of two voters neither can be made whole by a majority without it
    one = sim.dice.choice(sorted(sim.servers))
    home, copy = sim.folder / one, sim.copies.get(one)
    if copy is None:
        sim.copies[one] = sim.folder / f"copy of {one}"
        shutil.copytree(home, sim.copies[one])
        return
    if sim.dice.random() < 0.5:
        return
    sim.kill(one)
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
    sim.blocked.clear()
    sim.lives = None
    sim.mend_all()
    for other in sim.servers:
        sim.hear_out(other, one)
