"""Which servers keep which version: stable, spread, with room, and never fewer than asked for."""

from collections.abc import Collection

from hypothesis import given, settings
from hypothesis import strategies as st

from kmgr.grid.envelope import Applied, Rejected
from kmgr.ids import ImageId, ServerId, VersionId
from kmgr.replica.copies import Spot, keepers, order, spread
from kmgr.replica.model import ALL_SERVERS, Holding, Uses, Version, VersionState
from kmgr.replica.queries import holders
from tests.lab.state import State

SERVERS = [ServerId(f"srv-{n:02}") for n in range(40)]


def version(n: int, *, used_bytes: int = 10) -> Version:
    return Version(
        VersionId(f"ver-{n}"), ImageId("img"), n, used_bytes, used_bytes, 1, "", VersionState.READY, "", n, ""
    )


def spots(servers: Collection[ServerId], *, away: Collection[ServerId] = (), spare: int = 1_000) -> list[Spot]:
    return [Spot(one, one not in away, one not in away, spare) for one in servers]


def held(one: Version, servers: Collection[ServerId], *, damaged: Collection[ServerId] = ()) -> list[Holding]:
    return [Holding(one.id, server, 0, int(server in damaged)) for server in servers]


def test_all_servers_keep_it_if_nothing_else_was_said() -> None:
    assert keepers(version(1), ALL_SERVERS, spots(SERVERS), [], ()) == set(SERVERS)


def test_holders_stay_and_the_rest_is_spread_evenly() -> None:
    kept = {}
    for n in range(400):
        one = version(n)
        first = SERVERS[0]  # everything is imported there
        kept[one.id] = keepers(one, 3, spots(SERVERS), held(one, [first]), ())
        assert first in kept[one.id]
        assert len(kept[one.id]) == 3
        again = keepers(one, 3, spots(SERVERS), held(one, kept[one.id]), ())
        assert again == kept[one.id]
    counts = spread(kept)
    others = [counts.get(server, 0) for server in SERVERS[1:]]
    assert min(others) >= 5
    assert max(others) <= 45  # 20.5 each on the average


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_enough_good_copies_are_always_wanted_and_servers_in_need_are_among_them(data: st.DataObject) -> None:
    one = version(1)
    known = SERVERS[:8]
    some = st.sets(st.sampled_from(known))
    away, having, damaged, needing = (data.draw(some) for _ in range(4))
    copies = data.draw(st.integers(2, 5))
    found = keepers(one, copies, spots(known, away=away), held(one, having, damaged=damaged), needing)
    assert needing <= found
    good = {server for server in found if server not in away and not (server in having and server in damaged)}
    possible = {server for server in known if server not in away and not (server in having and server in damaged)}
    assert len(good) >= min(copies, len(possible))
    # Nobody copies anything as long as enough good copies are there.
    if len((having - away - damaged) | (needing - away - damaged)) >= copies:
        assert found - having <= needing


def test_a_server_without_room_is_not_chosen() -> None:
    one = version(1, used_bytes=500)
    full = [Spot(server, counts=True, takes=True, spare_bytes=100) for server in SERVERS[:5]]
    free = [Spot(server, counts=True, takes=True, spare_bytes=None) for server in SERVERS[5:7]]
    assert keepers(one, 3, [*full, *free], held(one, SERVERS[:1]), ()) == {SERVERS[0], *SERVERS[5:7]}


def test_what_is_waited_for_comes_first() -> None:
    made = [version(n) for n in range(1, 6)]
    uses = Uses(
        published={made[2].id: ("office",)},
        desktops={made[0].id: {SERVERS[1]: 1}, made[1].id: {SERVERS[0]: 1}},
    )
    assert [one.number for one in order(made, uses, SERVERS[0])] == [2, 3, 1, 5, 4]


def test_a_superfluous_copy_is_given_up_only_while_the_log_knows_enough_others() -> None:
    state = State()
    a, b, c, d = (state.server(name) for name in "abcd")
    state.do("image.create", image="img-1", name="Debian", notes="")
    state.version("ver-1", [a, b, c, d])
    state.template("office", version="ver-1")

    def refusal(server: ServerId) -> str:
        said = state.do("version.drop", version="ver-1", server=server)
        return said.detail if isinstance(said, Rejected) else ""

    assert "all servers keep it" in refusal(a)
    assert isinstance(state.do("image.copies", image="img-1", copies=2), Applied)
    state.desktop("tpl-office", a)
    assert "desktops there" in refusal(a)
    state.do("version.damaged", version="ver-1", server=b, file="x", offset=0, blocks=1)
    state.become(c, "lost")
    assert "only 1 others" in refusal(d)
    state.become(c, "up")
    assert refusal(d) == ""
    assert holders(state.db, VersionId("ver-1")) == (a, b, c)
    assert refusal(b) == ""  # the damaged one: two good ones are left
    assert "only 1 others" in refusal(c)


def test_how_many_copies_is_checked_and_one_is_too_few() -> None:
    state = State()
    state.do("image.create", image="img-1", name="Debian", notes="")
    for wrong in (1, -1, True, "2", 1 << 40):
        assert isinstance(state.do("image.copies", image="img-1", copies=wrong), Rejected)
    assert isinstance(state.do("image.copies", image="img-none", copies=2), Rejected)
