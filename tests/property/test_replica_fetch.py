"""Fetching ends with every piece whatever fails, and asks for none twice without a reason."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from kmgr.ids import ServerId
from kmgr.replica.fetch import Fetch, all_pieces, pieces_of

SERVERS = [ServerId(f"srv-{letter}") for letter in "abcd"]
piece_sets = st.sets(st.integers(0, 19)).map(pieces_of)


@st.composite
def grids(draw: st.DrawFn) -> dict[ServerId, int]:
    servers = draw(st.lists(st.sampled_from(SERVERS), min_size=1, unique=True))
    return {server: draw(piece_sets) for server in servers}


def fetch_from(has: dict[ServerId, int], *, count: int = 20, have: int = 0, start: int = 0) -> Fetch:
    fetch = Fetch(count, have=have, start=start)
    for server in sorted(has):
        fetch.offer(server, has[server])
    return fetch


@given(grids(), piece_sets, st.integers(0, 40), st.randoms(use_true_random=False))
def test_each_missing_piece_is_asked_for_once_and_of_one_who_has_it(has, have, start, chance) -> None:  # type: ignore[no-untyped-def]
    fetch = fetch_from(has, have=have, start=start)
    asked: Counter[int] = Counter()
    owed: list[tuple[ServerId, int]] = []
    while True:
        for server in chance.sample(sorted(has), len(has)):
            while (piece := fetch.next(server, now=0.0)) is not None:
                assert has[server] >> piece & 1
                asked[piece] += 1
                owed.append((server, piece))
        if not owed:
            break
        fetch.arrived(*owed.pop(chance.randrange(len(owed))))
    reach = pieces_of(piece for piece in range(20) if any(h >> piece & 1 for h in has.values()))
    assert set(asked) == {piece for piece in range(20) if (reach & ~have) >> piece & 1}
    assert set(asked.values()) <= {1}
    assert fetch.have == have | reach
    assert fetch.done == (have | reach == all_pieces(20))
    assert fetch.reachable == fetch.done


@given(grids(), st.data())
def test_it_ends_when_sources_break_lie_and_return(has, data) -> None:  # type: ignore[no-untyped-def]
    seed = ServerId("srv-seed")
    everyone = {**has, seed: all_pieces(20)}
    fetch = fetch_from(everyone)
    now, owed = 0.0, []
    for _ in range(60):
        now += 1.0
        server = data.draw(st.sampled_from(sorted(everyone)))
        piece = fetch.next(server, now=now)
        if piece is not None:
            owed.append((server, piece))
        match data.draw(st.sampled_from(["arrive", "drop", "lack", "offer", "nothing"])):
            case "arrive" if owed:
                fetch.arrived(*owed.pop())
            case "drop" if server != seed:
                fetch.drop(server)
            case "lack" if owed and owed[-1][0] != seed:
                fetch.lacking(*owed.pop())
            case "offer":
                fetch.offer(server, everyone[server])
    for server in sorted(has):
        fetch.drop(server)
    for server, piece in owed:
        if server == seed:
            fetch.arrived(server, piece)
    while (piece := fetch.next(seed, now=now)) is not None:
        fetch.arrived(seed, piece)
    assert fetch.done


def test_no_source_owes_more_than_its_share() -> None:
    fetch = fetch_from({SERVERS[0]: all_pieces(20)})
    assert [fetch.next(SERVERS[0], now=0.0) for _ in range(6)] == [0, 1, 2, 3, None, None]


def test_the_rarest_piece_comes_first() -> None:
    a, b = SERVERS[:2]
    fetch = fetch_from({a: all_pieces(20), b: all_pieces(19)})
    assert fetch.next(a, now=0.0) == 19
    assert fetch.next(b, now=0.0) == 0


def test_receivers_begin_at_different_places() -> None:
    a = SERVERS[0]
    fetch = fetch_from({a: all_pieces(20)}, start=18)
    assert [fetch.next(a, now=0.0) for _ in range(3)] == [18, 19, 0]


def test_work_moves_away_from_a_source_that_is_slow() -> None:
    slow, quick = SERVERS[:2]
    fetch = fetch_from({slow: all_pieces(2)}, count=2)
    assert fetch.next(slow, now=0.0) == 0
    fetch.offer(quick, all_pieces(2))
    assert fetch.next(quick, now=1.0) == 1
    fetch.arrived(quick, 1)
    assert fetch.next(quick, now=1.0) is None
    assert fetch.next(quick, now=5.0) == 0
    fetch.arrived(quick, 0)
    assert fetch.done
    fetch.arrived(slow, 0)
    assert fetch.done


def test_what_a_dropped_source_owed_is_asked_of_another() -> None:
    a, b = SERVERS[:2]
    fetch = fetch_from({a: all_pieces(1), b: all_pieces(1)}, count=1)
    assert fetch.next(a, now=0.0) == 0
    assert fetch.next(b, now=0.0) is None
    fetch.drop(a)
    assert fetch.next(b, now=0.0) == 0


def test_a_version_without_blocks_is_done_at_once() -> None:
    assert Fetch(0).done
