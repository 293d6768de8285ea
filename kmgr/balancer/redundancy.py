"""Decide whether the grid could lose any one server now, and what a drain or a removal would change about that.

Four things must survive a loss: a majority of the voters (witnesses count), a
copy of every golden image that desktops are made from and a server that can make their
kind of machine, memory for all desktops that the lost server ran, and the disks of
personal desktops, where something can be started from them. Whoever takes a server out is told before what
would be missing afterwards that is not missing now.

Pure.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heapreplace
from typing import TypeAlias

from kmgr.balancer.model import View
from kmgr.balancer.place import OVERHEAD_MIB, Room, rooms
from kmgr.balancer.protection import good_copies, safe_copies
from kmgr.balancer.weaknesses import Weakness, alive, desktop_servers, doubted, listed, names_of, weaknesses
from kmgr.grid.membership import settled, spare
from kmgr.grid.model import PLACEABLE, RUNNING, Server, ServerState
from kmgr.ids import ServerId
from kmgr.provision.model import Desktop, DesktopState


@dataclass(frozen=True, slots=True)
class Redundancy:
    """May any one server be lost? `sentences` say why it may, or what is in the way and what to do about it."""

    ok: bool
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drain:
    """Give a server no new desktops."""

    server: ServerId


@dataclass(frozen=True, slots=True)
class Remove:
    """Take a server out of the grid for good."""

    server: ServerId


Maintenance: TypeAlias = Drain | Remove


def can_lose_one(view: View, voters: Collection[ServerId]) -> Redundancy:
    """Tell whether any one server may be lost at this moment."""
    problems = tuple(weaknesses(view, voters).values())
    if problems:
        return Redundancy(False, problems)
    names = " or ".join(names_of(view, [s.id for s in view.servers if s.state in RUNNING]).rsplit(", ", 1))
    told = (
        f"Any one of {names} may be lost: a majority stays, every golden image in use is on two servers, "
        "and the others have memory for its desktops."
    )
    return Redundancy(True, (told,))


def would_break(view: View, voters: Collection[ServerId], action: Maintenance) -> tuple[str, ...]:
    """Return what speaks against an action now, none if nothing would be worse after it than before."""
    server = next((s for s in view.servers if s.id == action.server and s.state is not ServerState.REMOVED), None)
    if server is None:
        return ()
    before = weaknesses(view, voters)
    match action:
        case Drain():
            left = _moved(_with_state(view, server, ServerState.DRAINING), server)
            voting = frozenset(voters)
        case Remove():
            left = _moved(_with_state(view, server, ServerState.REMOVED), server)
            voting = _voters_without(left, voters, server)
    after = {key: f"Afterwards: {_lowered(said)}" for key, said in weaknesses(left, voting).items()}
    if isinstance(action, Remove):
        after |= _lost_with(view, left, voting, server)
    after |= _left_behind(view, left, server)
    return tuple(said for key, said in after.items() if key not in before)


def _lost_with(view: View, left: View, voters: frozenset[ServerId], server: Server) -> Mapping[Weakness, str]:
    """Say what goes for good with a server that is removed."""
    found: dict[Weakness, str] = {}
    up = frozenset(s.id for s in left.servers if s.state in RUNNING) - doubted(view)
    if spare(voters, up) < 0:
        down = names_of(view, [voter for voter in voters if voter not in up and voter != server.id])
        found["majority", ""] = (
            f"Without {server.name} no majority is left, for {down} is not up or its vote does not count: nothing "
            f"could be changed any more. Bring {down} back first, or remove it first if it will not come back."
        )
    for template in sorted(view.templates, key=lambda t: (t.name, t.id)):
        holders = view.holders.get(template.version, frozenset())
        if server.id in holders and not holders & {s.id for s in left.servers if s.state is not ServerState.REMOVED}:
            found["image_gone", template.id] = (
                f"The golden image of template {template.name} is nowhere else: it would be gone. "
                "Wait until another server has copied it."
            )
    safe, good = safe_copies(left), good_copies(left)
    own = [d for d in view.desktops if d.owned and d.server == server.id]
    if bare := [d for d in own if d.id not in safe]:
        found["personal", server.id] = (
            f"{listed(bare)} would be lost for good, with all that was saved: there is no safe copy elsewhere."
        )
    if bad := [d for d in own if d.id in safe and d.id not in good]:
        where = names_of(left, {copy.server for d in bad for copy in safe[d.id]})
        found["bad", server.id] = (
            f"{listed(bad)} would be lost, at least in part: what there is on {where} is a safe copy that went bad. "
            "Wait until it has been compared with the desktop's own disk."
        )
    in_use = sum(d.state is DesktopState.IN_USE for d in _own(view, server))
    if in_use and server.state in RUNNING:
        people = "one desktop" if in_use == 1 else f"{in_use} desktops"
        found["in_use", server.id] = f"People work on {people} there, which would end at once. Drain it first."
    return found


def _left_behind(view: View, left: View, server: Server) -> Mapping[Weakness, str]:
    """Say what the other servers cannot do in place of one that goes."""
    found: dict[Weakness, str] = {}
    if server.is_witness:
        return found
    others = [r for r in rooms(view) if r.server != server.id and r.closed is None]
    if not any(s.state in PLACEABLE for s in desktop_servers(left)) and server.state in PLACEABLE:
        found["last", ""] = "No other server is up: nobody would get a new desktop."
    own = _own(view, server) if server.state in RUNNING else []
    homeless = len(own) - len(_placed(own, others))
    if homeless and others:
        found["room", server.id] = (
            f"The other servers have no memory for {homeless} of its {len(own)} desktops: there would be fewer."
        )
    return found


def _voters_without(left: View, voters: Collection[ServerId], server: Server) -> frozenset[ServerId]:
    """Return who will vote when a server has left and others have taken over what they can.

    It votes on until its place is taken, if that can be; where it cannot, the grid would need it for ever.
    """
    remaining = frozenset(voters) - {server.id}
    up = frozenset(s.id for s in left.servers if s.state in RUNNING)
    helping = up | ({server.id} if server.state in RUNNING else frozenset())
    leaders = sorted(remaining & up)
    return settled(left.servers, voters, helping, leader=leaders[0]) if leaders else remaining


def _with_state(view: View, server: Server, state: ServerState) -> View:
    return replace(view, servers=tuple(replace(s, state=state) if s is server else s for s in view.servers))


def _moved(view: View, server: Server) -> View:
    """Return the view in which a server's desktops are made anew on the others, as far as there is memory."""
    others = [r for r in rooms(view) if r.server != server.id and r.closed is None]
    # A lost one's desktops are made anew already, whatever is done about it now.
    homes = _placed(_own(view, server), others) if server.state in RUNNING else {}
    kept = [d for d in view.desktops if d.server != server.id]
    moved = [replace(d, server=homes[d.id]) for d in view.desktops if d.id in homes]
    # What was promised to them is no longer free, as it will be when they run.
    promised = Counter[ServerId]()
    for desktop in moved:
        promised[desktop.server] += desktop.memory_mib + OVERHEAD_MIB
    vitals = {s: replace(v, memory_free_mib=v.memory_free_mib - promised[s]) for s, v in view.vitals.items()}
    return replace(view, desktops=(*kept, *moved), vitals=vitals)


def _own(view: View, server: Server) -> list[Desktop]:
    return alive([d for d in view.desktops if d.server == server.id])


def _placed(desktops: Sequence[Desktop], others: Sequence[Room]) -> dict[str, ServerId]:
    """Return a server for each desktop that fits, the largest taking the widest gap first."""
    gaps = [(-room.memory_mib, room.server) for room in others]
    heapify(gaps)
    homes: dict[str, ServerId] = {}
    for desktop in sorted(desktops, key=lambda d: (-d.memory_mib, d.id)):
        need = desktop.memory_mib + OVERHEAD_MIB
        if gaps and -gaps[0][0] >= need:
            left, widest = gaps[0]
            heapreplace(gaps, (left + need, widest))
            homes[desktop.id] = widest
    return homes


def _lowered(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]
