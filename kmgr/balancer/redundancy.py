"""Decide whether the grid could lose any one server now, and what a drain or a removal would change about that.

Four things must survive a loss: a majority of the voters (witnesses count), a
copy of every golden image that desktops are made from and a server that can make their
kind of machine, memory for all desktops that the lost server ran, and the disks of
personal desktops, where something can be started from them. Whoever takes a server out is told before what
would be missing afterwards that is not missing now.

Pure.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heapreplace
from typing import TypeAlias

from kmgr.balancer.model import View
from kmgr.balancer.place import OVERHEAD_MIB, Room, by_server, lacking, machine_of, machines, rooms
from kmgr.balancer.protection import good_copies, safe_copies, unable
from kmgr.balancer.reserve import sizes_of, without_home
from kmgr.grid.membership import settled, spare
from kmgr.grid.model import DOUBTED, PLACEABLE, RUNNING, Server, ServerState
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.lifecycle import LIVING
from kmgr.provision.model import Copy, Desktop, DesktopState
from kmgr.templates.machine import Machine

_LEAST_VOTERS = 3

# What is weak: a word and the id it is about. The same weakness before and after an action has the same key.
Weakness: TypeAlias = tuple[str, str]


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
    problems = tuple(_weaknesses(view, voters).values())
    if problems:
        return Redundancy(False, problems)
    names = " or ".join(_names(view, [s.id for s in view.servers if s.state in RUNNING]).rsplit(", ", 1))
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
    before = _weaknesses(view, voters)
    match action:
        case Drain():
            left = _moved(_with_state(view, server, ServerState.DRAINING), server)
            voting = frozenset(voters)
        case Remove():
            left = _moved(_with_state(view, server, ServerState.REMOVED), server)
            voting = _voters_without(left, voters, server)
    after = {key: f"Afterwards: {_lowered(said)}" for key, said in _weaknesses(left, voting).items()}
    if isinstance(action, Remove):
        after |= _lost_with(view, left, voting, server)
    after |= _left_behind(view, left, server)
    return tuple(said for key, said in after.items() if key not in before)


def _weaknesses(view: View, voters: Collection[ServerId]) -> Mapping[Weakness, str]:
    found = [*_votes(view, sorted(voters)), *_images(view), *_kinds(view), *_memory(view), *_personal(view)]
    return dict(found)


def _votes(view: View, voters: Sequence[ServerId]) -> Iterator[tuple[Weakness, str]]:
    states = {server.id: server.state for server in view.servers}
    running = [voter for voter in voters if states.get(voter) in RUNNING]
    doubted = [voter for voter in running if voter in _doubted(view)]
    up = [voter for voter in running if voter not in doubted]
    if len(voters) < _LEAST_VOTERS:
        count = "one server votes" if len(voters) == 1 else f"{len(voters)} servers vote"
        help_ = "or add a witness" if len(voters) == 2 else "or until there are two and a witness"
        yield (
            ("votes", ""),
            (
                f"Only {count} ({_names(view, voters)}): if one is lost, nothing can be changed until it is back. "
                f"Let servers join until there are {_LEAST_VOTERS}, {help_}."
            ),
        )
    elif spare(voters, up) < 1:
        missing, down = [_names(view, [v for v in voters if v not in those]) for those in (up, running)]
        todo = [f"Bring {down} back, or remove what will not come back from the grid."] * (len(running) < len(voters))
        if doubted:
            todo.append(f"{_names(view, doubted)}: the data there is older than it was, see what it says about it.")
        yield (
            ("votes", ""),
            (
                f"Of {len(voters)} voting servers {len(up)} are up{' and count' * bool(doubted)}, without {missing}: "
                f"one more loss and nothing can be changed. {' '.join(todo)}"
            ),
        )


def _images(view: View) -> Iterator[tuple[Weakness, str]]:
    running = {server.id for server in _desktop_servers(view)}
    for template in sorted(view.templates, key=lambda t: (t.name, t.id)):
        holders = sorted(running & view.holders.get(template.version, frozenset()))
        if len(holders) > 1:
            continue
        where = f"only on {_names(view, holders)}" if holders else "on no server that is up"
        if len(running) < 2:
            todo = "Let another server join: it copies it by itself"
        else:
            todo = "The other servers copy it by themselves: see their problems if that does not move"
        yield ("image", template.id), f"The golden image of template {template.name} is {where}. {todo}."


def _kinds(view: View) -> Iterator[tuple[Weakness, str]]:
    """Say of which templates no two servers can make the kind of machine."""
    running = {server.id for server in _desktop_servers(view)}
    for template in sorted(view.templates, key=lambda t: (t.name, t.id)):
        cannot = unable(view, template.policy.machine) & running
        able = running - cannot
        if not cannot or len(able) > 1:
            continue
        where = f"only on {_names(view, able)}" if able else "nowhere"
        told = _lacking(view, template.policy.machine, cannot)
        key = "kind" if able else "no_kind"
        yield (key, template.id), f"Desktops of template {template.name} can be made {where}: {told}."


def _lacking(view: View, machine: Machine, cannot: Collection[ServerId]) -> str:
    """Say what each of these servers lacks to make such a machine."""
    names = {server.id: server.name for server in view.servers}
    return "; ".join(sorted(f"{names[s]} {lacking(machine, machines(view.vitals[s]))}" for s in cannot))


def _memory(view: View) -> Iterator[tuple[Weakness, str]]:
    on_each = by_server(view.desktops)
    names = {server.id: server.name for server in view.servers}
    for server, count in homeless(view).items():
        own = _alive(on_each.get(server, ()))
        yield (
            ("memory", server),
            (
                f"If {names[server]} is lost, no other server has memory for {count} of its {len(own)} "
                "desktops. Add memory or a server, or lower how many desktops stand by."
            ),
        )


def homeless(view: View) -> Mapping[ServerId, int]:
    """Return for how many desktops of a server the others have no memory if it is lost, where there are any."""
    every = {room.server: room.memory_mib for room in rooms(view) if room.closed is None}
    on_each = by_server(view.desktops)
    found = {}
    for server in _desktop_servers(view):
        gaps = [gap for other, gap in every.items() if other != server.id]
        if count := without_home(sizes_of(on_each.get(server.id, ())), gaps):
            found[server.id] = count
    return found


def _personal(view: View) -> Iterator[tuple[Weakness, str]]:
    """Say which personal desktops would stay away with their server, or do already."""
    running = {server.id for server in _desktop_servers(view)}
    there, good = _held_on(running, safe_copies(view)), _held_on(running, good_copies(view))
    here = [d for d in view.desktops if d.owned and d.server in running]
    if bare := [d for d in here if d.id not in there]:
        yield (
            ("copies", _ids(bare)),
            (
                f"{_listed(bare)} would stay away with {_their(bare)} server: no safe copy is on "
                "another server that is up. The first one takes a few minutes; if it does not come, the desktop's "
                "page says why."
            ),
        )
    if bad := [d for d in here if d.id in there and d.id not in good]:
        where = _names(view, {copy.server for d in bad for copy in there[d.id]})
        yield (
            ("bad", _ids(bad)),
            (
                f"{_listed(bad)} would stay away with {_their(bad)} server: "
                f"{'its safe copy' if len(bad) == 1 else 'their safe copies'} on {where} went bad. What is wrong is "
                f"brought again by itself; look after the disk of {where}: smartctl and dmesg tell more."
            ),
        )
    yield from _not_to_be_made(view, good)


def _not_to_be_made(view: View, good: Mapping[DesktopId, Sequence[Copy]]) -> Iterator[tuple[Weakness, str]]:
    """Say which personal desktops have good copies only where their machine cannot be made."""
    cannot = {machine: unable(view, machine) for machine in {machine_of(d, view) for d in view.desktops if d.owned}}
    stuck = [
        d
        for d in view.desktops
        if d.owned and d.id in good and {copy.server for copy in good[d.id]} <= cannot[machine_of(d, view)]
    ]
    if not stuck:
        return
    told = {_lacking(view, machine_of(d, view), [copy.server]) for d in stuck for copy in good[d.id]}
    copies = "its safe copy" if len(stuck) == 1 else "their safe copies"
    yield ("machine", _ids(stuck)), f"{_listed(stuck)} cannot be started from {copies}: {'; '.join(sorted(told))}."


def _held_on(
    servers: Collection[ServerId], held: Mapping[DesktopId, Sequence[Copy]]
) -> Mapping[DesktopId, list[Copy]]:
    found = {desktop: [copy for copy in mine if copy.server in servers] for desktop, mine in held.items()}
    return {desktop: mine for desktop, mine in found.items() if mine}


def _ids(desktops: Sequence[Desktop]) -> str:
    return ",".join(sorted(desktop.id for desktop in desktops))


def _their(desktops: Sequence[Desktop]) -> str:
    return "its" if len(desktops) == 1 else "their"


def _listed(desktops: Sequence[Desktop]) -> str:
    names = sorted(desktop.name for desktop in desktops)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"The personal desktop{'' if len(names) == 1 else 's'} {', '.join(names[:3])}{more}"


def _lost_with(view: View, left: View, voters: frozenset[ServerId], server: Server) -> Mapping[Weakness, str]:
    """Say what goes for good with a server that is removed."""
    found: dict[Weakness, str] = {}
    up = frozenset(s.id for s in left.servers if s.state in RUNNING) - _doubted(view)
    if spare(voters, up) < 0:
        down = _names(view, [voter for voter in voters if voter not in up and voter != server.id])
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
            f"{_listed(bare)} would be lost for good, with all that was saved: there is no safe copy elsewhere."
        )
    if bad := [d for d in own if d.id in safe and d.id not in good]:
        where = _names(left, {copy.server for d in bad for copy in safe[d.id]})
        found["bad", server.id] = (
            f"{_listed(bad)} would be lost, at least in part: what there is on {where} is a safe copy that went bad. "
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
    if not any(s.state in PLACEABLE for s in _desktop_servers(left)) and server.state in PLACEABLE:
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


def _desktop_servers(view: View) -> list[Server]:
    """Return the servers that run desktops, by name: a witness has neither desktops nor images."""
    running = [s for s in view.servers if s.state in RUNNING and not s.is_witness]
    return sorted(running, key=lambda s: (s.name, s.id))


def _own(view: View, server: Server) -> list[Desktop]:
    return _alive([d for d in view.desktops if d.server == server.id])


def _alive(desktops: Sequence[Desktop]) -> list[Desktop]:
    return [desktop for desktop in desktops if desktop.state in LIVING]


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


def _doubted(view: View) -> frozenset[ServerId]:
    """Return the servers with older data than they had: no majority has them until they are brought up to date."""
    return frozenset(server for server, vitals in view.vitals.items() if vitals.extra.get(DOUBTED))


def _lowered(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def _names(view: View, servers: Collection[ServerId]) -> str:
    known = {server.id: server.name for server in view.servers}
    names = sorted(known.get(server, server) for server in servers)
    return ", ".join(names) if names else "none"
