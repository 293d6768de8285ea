"""What the loss of one server would take from the grid that it could not bear, each in a sentence with what to do.

Looked at are the votes, the golden images and the servers that can make their kind of machine, memory, and the safe
copies of personal desktops (`redundancy` says what for). A server's older data does not count as a vote, a damaged
golden image or a safe copy that went bad not as a copy.

Pure.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TypeAlias

from kmgr.balancer.model import View
from kmgr.balancer.place import by_server, lacking, machine_of, machines, rooms
from kmgr.balancer.protection import good_copies, safe_copies, unable
from kmgr.balancer.reserve import sizes_of, without_home
from kmgr.grid.membership import spare
from kmgr.grid.model import DOUBTED, RUNNING, Server
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.lifecycle import LIVING
from kmgr.provision.model import Copy, Desktop
from kmgr.templates.machine import Machine

_LEAST_VOTERS = 3

# What is weak: a word and the id it is about. The same weakness before and after an action has the same key.
Weakness: TypeAlias = tuple[str, str]


def weaknesses(view: View, voters: Collection[ServerId]) -> Mapping[Weakness, str]:
    """Return what is weak now, nothing if any one server may be lost."""
    found = [*_votes(view, sorted(voters)), *_images(view), *_kinds(view), *_memory(view), *_personal(view)]
    return dict(found)


def _votes(view: View, voters: Sequence[ServerId]) -> Iterator[tuple[Weakness, str]]:
    states = {server.id: server.state for server in view.servers}
    running = [voter for voter in voters if states.get(voter) in RUNNING]
    old = doubted(view)
    stale = [voter for voter in running if voter in old]
    up = [voter for voter in running if voter not in old]
    if len(voters) < _LEAST_VOTERS:
        count = "one server votes" if len(voters) == 1 else f"{len(voters)} servers vote"
        help_ = "or add a witness" if len(voters) == 2 else "or until there are two and a witness"
        yield (
            ("votes", ""),
            (
                f"Only {count} ({names_of(view, voters)}): if one is lost, nothing can be changed until it is back. "
                f"Let servers join until there are {_LEAST_VOTERS}, {help_}."
            ),
        )
    elif spare(voters, up) < 1:
        missing, down = [names_of(view, [v for v in voters if v not in those]) for those in (up, running)]
        todo = [f"Bring {down} back, or remove what will not come back from the grid."] * (len(running) < len(voters))
        if stale:
            todo.append(f"{names_of(view, stale)}: the data there is older than it was, see what it says about it.")
        yield (
            ("votes", ""),
            (
                f"Of {len(voters)} voting servers {len(up)} are up{' and count' * bool(stale)}, without {missing}: "
                f"one more loss and nothing can be changed. {' '.join(todo)}"
            ),
        )


def _images(view: View) -> Iterator[tuple[Weakness, str]]:
    running = {server.id for server in desktop_servers(view)}
    for template in sorted(view.templates, key=lambda t: (t.name, t.id)):
        holders = sorted(running & view.holders.get(template.version, frozenset()))
        if holders and template.version in view.damaged:
            yield (
                ("damaged", template.id),
                (
                    f"The golden image of template {template.name} is damaged on {names_of(view, holders)} and whole "
                    "on no server that is up: desktops of it may not work. Import it anew and publish that, and look "
                    "after the disks: smartctl and dmesg tell more."
                ),
            )
            continue
        if len(holders) > 1:
            continue
        where = f"only on {names_of(view, holders)}" if holders else "on no server that is up"
        if len(running) < 2:
            todo = "Let another server join: it copies it by itself"
        else:
            todo = "The other servers copy it by themselves: see their problems if that does not move"
        yield ("image", template.id), f"The golden image of template {template.name} is {where}. {todo}."


def _kinds(view: View) -> Iterator[tuple[Weakness, str]]:
    """Say of which templates no two servers can make the kind of machine."""
    running = {server.id for server in desktop_servers(view)}
    for template in sorted(view.templates, key=lambda t: (t.name, t.id)):
        cannot = unable(view, template.policy.machine) & running
        able = running - cannot
        if not cannot or len(able) > 1:
            continue
        where = f"only on {names_of(view, able)}" if able else "nowhere"
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
        own = alive(on_each.get(server, ()))
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
    for server in desktop_servers(view):
        gaps = [gap for other, gap in every.items() if other != server.id]
        if count := without_home(sizes_of(on_each.get(server.id, ())), gaps):
            found[server.id] = count
    return found


def _personal(view: View) -> Iterator[tuple[Weakness, str]]:
    """Say which personal desktops would stay away with their server, or do already."""
    running = {server.id for server in desktop_servers(view)}
    there, good = _held_on(running, safe_copies(view)), _held_on(running, good_copies(view))
    here = [d for d in view.desktops if d.owned and d.server in running]
    if bare := [d for d in here if d.id not in there]:
        yield (
            ("copies", _ids(bare)),
            (
                f"{listed(bare)} would stay away with {_their(bare)} server: no safe copy is on "
                "another server that is up. The first one takes a few minutes; if it does not come, the desktop's "
                "page says why."
            ),
        )
    if bad := [d for d in here if d.id in there and d.id not in good]:
        where = names_of(view, {copy.server for d in bad for copy in there[d.id]})
        yield (
            ("bad", _ids(bad)),
            (
                f"{listed(bad)} would stay away with {_their(bad)} server: "
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
    yield ("machine", _ids(stuck)), f"{listed(stuck)} cannot be started from {copies}: {'; '.join(sorted(told))}."


def _held_on(
    servers: Collection[ServerId], held: Mapping[DesktopId, Sequence[Copy]]
) -> Mapping[DesktopId, list[Copy]]:
    found = {desktop: [copy for copy in mine if copy.server in servers] for desktop, mine in held.items()}
    return {desktop: mine for desktop, mine in found.items() if mine}


def _ids(desktops: Sequence[Desktop]) -> str:
    return ",".join(sorted(desktop.id for desktop in desktops))


def _their(desktops: Sequence[Desktop]) -> str:
    return "its" if len(desktops) == 1 else "their"


def listed(desktops: Sequence[Desktop]) -> str:
    """Name personal desktops, the first three of them, as a sentence begins."""
    names = sorted(desktop.name for desktop in desktops)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"The personal desktop{'' if len(names) == 1 else 's'} {', '.join(names[:3])}{more}"


def desktop_servers(view: View) -> list[Server]:
    """Return the servers that run desktops, by name: a witness has neither desktops nor images."""
    running = [s for s in view.servers if s.state in RUNNING and not s.is_witness]
    return sorted(running, key=lambda s: (s.name, s.id))


def alive(desktops: Sequence[Desktop]) -> list[Desktop]:
    """Return those that run or will: they need a place when their server is lost."""
    return [desktop for desktop in desktops if desktop.state in LIVING]


def doubted(view: View) -> frozenset[ServerId]:
    """Return the servers with older data than they had: no majority has them until they are brought up to date."""
    return frozenset(server for server, vitals in view.vitals.items() if vitals.extra.get(DOUBTED))


def names_of(view: View, servers: Collection[ServerId]) -> str:
    """Return the names of servers in one string, by name."""
    known = {server.id: server.name for server in view.servers}
    names = sorted(known.get(server, server) for server in servers)
    return ", ".join(names) if names else "none"
