"""Whole folders of simulated servers that are copied and, later, put back."""

import shutil
from typing import TYPE_CHECKING

from kmgr.grid.raft.records import Kind, Word, entry, scan
from kmgr.ids import ServerId

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
    if sim.dice.random() < 0.5 or not _noticeable(sim, one):
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
    sim.mend_all()
    for other in sim.servers:
        sim.hear_out(other, one)


def _noticeable(sim: "Sim", one: ServerId) -> bool:
    """Whether somebody has noted that the server has more than its copy, or it has no more.

    What was on its way, or heard by somebody who dies before noting it, is not noticed (docs/decisions/0011).
    """
    sim.blocked.clear()
    sim.lives = None
    core = sim.servers[one].core
    if core is None:
        return False
    found = scan((sim.copies[one] / "raft" / "journal").read_bytes()).records
    last = max((entry(body).index for kind, body in found if kind is Kind.ENTRY), default=0)
    noted = []
    for other, server in sim.servers.items():
        sim.hear_out(one, other)
        if other != one and server.core is not None:
            server.core._journal.note_commit()
            server.core._journal.sync()
            noted.append(server.core._journal.remembered.get(one, Word()).index)
    return core._journal.last.index <= last or last < max(noted, default=0)
