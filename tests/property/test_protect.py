"""Who holds the second copy: another server, with room, evenly, and nobody is moved for nothing."""

import random
from collections import Counter
from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st

from kmgr.ids import DesktopId, ServerId, VersionId
from kmgr.replica.protect import UNKNOWN_MIB, Disk, Shelf, holders

T = TypeVar("T")

SERVERS = tuple(ServerId(f"srv-{letter}") for letter in "abcde")
VERSIONS = (VersionId("ver-1"), VersionId("ver-2"))


@st.composite
def shelves(draw: st.DrawFn) -> list[Shelf]:
    """Draw servers in any condition."""
    found = []
    for server in draw(st.lists(st.sampled_from(SERVERS), unique=True, max_size=5)):
        keeps = draw(st.booleans())
        found.append(
            Shelf(
                server,
                keeps=keeps,
                takes=keeps and draw(st.booleans()),
                free_mib=draw(st.sampled_from((0, 1000, 5000, 100_000))),
                versions=frozenset(draw(st.sets(st.sampled_from(VERSIONS)))),
            )
        )
    return found


disks = st.lists(
    st.builds(
        Disk,
        desktop=st.integers(1, 12).map(lambda n: DesktopId(f"dsk-{n}")),
        server=st.sampled_from(SERVERS),
        version=st.sampled_from(VERSIONS),
        mib=st.sampled_from((0, 500, 3000)),
        unable=st.frozensets(st.sampled_from(SERVERS), max_size=3),
    ),
    unique_by=lambda disk: disk.desktop,
    max_size=12,
)
held = st.dictionaries(
    st.integers(1, 12).map(lambda n: DesktopId(f"dsk-{n}")),
    st.lists(st.sampled_from(SERVERS), unique=True, max_size=2),
)


@given(disks, shelves(), held)
def test_a_copy_is_on_another_server_that_takes_it_and_has_room(
    disks: list[Disk], shelves: list[Shelf], held: dict[DesktopId, list[ServerId]]
) -> None:
    where = {disk.desktop: disk for disk in disks}
    known = {shelf.server: shelf for shelf in shelves}
    used: Counter[ServerId] = Counter()
    for desktop, server in holders(disks, shelves, held):
        assert server != where[desktop].server
        assert known[server].takes
        used[server] += where[desktop].mib or UNKNOWN_MIB
    assert all(used[server] <= known[server].free_mib for server in used)


@given(disks, shelves(), held)
def test_whoever_holds_one_and_can_go_on_keeps_it(
    disks: list[Disk], shelves: list[Shelf], held: dict[DesktopId, list[ServerId]]
) -> None:
    keeps = {shelf.server for shelf in shelves if shelf.keeps}
    known = {disk.desktop: disk for disk in disks}
    for desktop, server in holders(disks, shelves, held):
        disk = known[desktop]
        kept = {s for s in held.get(desktop, ()) if s in keeps and s != disk.server}
        assert kept <= disk.unable, "one from which it can be started is not copied for nothing"
        assert not kept or server not in disk.unable, "nor is one that is no better"


@given(disks, shelves(), held)
def test_planned_again_after_it_was_done_nothing_more_is_planned(
    disks: list[Disk], shelves: list[Shelf], held: dict[DesktopId, list[ServerId]]
) -> None:
    done = {desktop: list(servers) for desktop, servers in held.items()}
    for desktop, server in holders(disks, shelves, held):
        assert server not in done.get(desktop, ()) or not next(s for s in shelves if s.server == server).keeps
        done.setdefault(desktop, []).append(server)
    again = dict(holders(disks, shelves, done))
    keeps = {shelf.server for shelf in shelves if shelf.keeps}
    known = {disk.desktop: disk for disk in disks}
    assert not [
        desktop
        for desktop in again
        if set(done.get(desktop, ())) & keeps - {known[desktop].server} - known[desktop].unable
    ]


@given(disks, shelves(), held, st.randoms())
def test_the_order_of_the_input_does_not_matter(
    disks: list[Disk], shelves: list[Shelf], held: dict[DesktopId, list[ServerId]], chance: random.Random
) -> None:
    first = list(holders(disks, shelves, held))
    mixed = list(holders(_shuffled(disks, chance), _shuffled(shelves, chance), dict(reversed(held.items()))))
    assert first == mixed


@given(st.integers(1, 30), st.integers(2, 5))
def test_copies_are_spread_evenly(count: int, servers: int) -> None:
    home, *others = SERVERS[: servers + 1] if servers < 5 else SERVERS
    disks = [Disk(DesktopId(f"dsk-{n:02}"), home, VERSIONS[0], 10) for n in range(count)]
    alike = [
        Shelf(s, keeps=True, takes=True, free_mib=100_000, versions=frozenset(VERSIONS)) for s in (home, *others)
    ]
    spread = Counter(server for _, server in holders(disks, alike, {}))
    assert sum(spread.values()) == count
    assert max(spread.values()) - min(spread[s] for s in others) <= 1


def test_one_that_has_the_version_goes_before_one_that_waits_for_it() -> None:
    a, b, c = SERVERS[:3]
    disk = Disk(DesktopId("dsk-1"), a, VERSIONS[0])
    having = Shelf(c, keeps=True, takes=True, free_mib=3000, versions=frozenset(VERSIONS))
    waiting = Shelf(b, keeps=True, takes=True, free_mib=90_000)
    assert list(holders([disk], [waiting, having], {})) == [("dsk-1", c)]
    assert list(holders([disk], [waiting], {})) == [("dsk-1", b)]


def _shuffled(items: list[T], chance: random.Random) -> list[T]:
    return chance.sample(items, len(items))


@given(disks, shelves())
def test_a_copy_is_where_nothing_can_be_started_from_it_only_if_nobody_else_has_room(
    disks: list[Disk], shelves: list[Shelf]
) -> None:
    known = {disk.desktop: disk for disk in disks}
    used: Counter[ServerId] = Counter()
    for desktop, server in holders(disks, shelves, {}):
        disk = known[desktop]
        size = disk.mib or UNKNOWN_MIB
        roomy = {s.server for s in shelves if s.takes and s.free_mib - used[s.server] >= size} - {disk.server}
        assert server not in disk.unable or roomy <= disk.unable
        used[server] += size
