"""Fetching ends with every piece whatever fails, asks for none twice without a reason, and spares the source."""

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from kmgr.ids import ServerId
from kmgr.replica.deal import Deal
from kmgr.replica.fetch import WAIT_S, Ask, Fetch, all_pieces, listed, pieces_of
from kmgr.replica.manifest import PIECE_BYTES

SERVERS = [ServerId(f"srv-{letter}") for letter in "abcd"]
SEED = ServerId("srv-seed")
piece_sets = st.sets(st.integers(0, 19)).map(pieces_of)
# What happens in which order is drawn from a seed: hundreds of single draws for each example take seconds.
chances = st.integers(0, 1 << 32).map(random.Random)


@st.composite
def grids(draw: st.DrawFn) -> dict[ServerId, int]:
    servers = draw(st.lists(st.sampled_from(SERVERS), min_size=1, unique=True))
    return {server: draw(piece_sets) for server in servers}


def fetch_from(has: dict[ServerId, int], *, count: int = 20, have: int = 0, start: int = 0) -> Fetch:
    fetch = Fetch(count, have=have, start=start)
    for server in sorted(has):
        fetch.offer(server, has[server])
    return fetch


def piece_of(ask: Ask | None) -> int | None:
    return None if ask is None else ask.piece


@given(st.sets(st.integers(0, 300)))
def test_a_set_is_listed_as_it_was_made(pieces: set[int]) -> None:
    assert listed(pieces_of(pieces)) == sorted(pieces)


def test_a_large_set_is_listed_as_it_was_made() -> None:
    for pieces in (range(0, 9000, 7), range(63), range(64), [*range(100, 200), 99_999]):
        assert listed(pieces_of(pieces)) == list(pieces)


def test_what_a_source_gave_to_others_is_not_remembered_one_by_one_for_ever() -> None:
    # It tells so several times a second, for hours, and each set is as long as the version is large.
    fetch = fetch_from({SEED: all_pieces(1000)}, count=1000)
    for number in range(3000):
        fetch.given(SEED, 1 << number % 900, now=number / 50)
    source = fetch._sources[SEED]
    assert len(source.news) <= 50 * WAIT_S + 1
    assert source.late | pieces_of(number % 900 for number in range(3000 - len(source.news), 3000)) == source.given


@given(grids(), piece_sets, st.integers(0, 40), chances)
def test_each_missing_piece_is_asked_for_once_and_of_one_who_has_it(
    has: dict[ServerId, int], have: int, start: int, chance: random.Random
) -> None:
    fetch = fetch_from(has, have=have, start=start)
    asked: Counter[int] = Counter()
    owed: list[tuple[ServerId, int]] = []
    while True:
        for server in chance.sample(sorted(has), len(has)):
            while (ask := fetch.next(server, now=0.0)) is not None:
                assert has[server] >> ask.piece & 1
                assert not ask.insist
                asked[ask.piece] += 1
                owed.append((server, ask.piece))
        if not owed:
            break
        assert fetch.arrived(*owed.pop(chance.randrange(len(owed))))
    reach = pieces_of(piece for piece in range(20) if any(h >> piece & 1 for h in has.values()))
    assert set(asked) == {piece for piece in range(20) if (reach & ~have) >> piece & 1}
    assert set(asked.values()) <= {1}
    assert fetch.have == have | reach
    assert fetch.done == (have | reach == all_pieces(20))
    assert fetch.reachable == fetch.done


def answer(fetch: Fetch, what: str, server: ServerId, piece: int, *, now: float) -> None:
    match what:
        case "arrive":
            fetch.arrived(server, piece)
        case "lack":
            fetch.lacking(server, piece)
        case "decline":
            fetch.declined(server, piece, now=now)


def tell(fetch: Fetch, what: str, server: ServerId, *, has: int, given: int, now: float) -> None:
    match what:
        case "offer":
            fetch.offer(server, has)
        case "gain":
            fetch.gained(server, has)
        case "give":
            fetch.given(server, given, now=now)


@settings(max_examples=300)
@given(grids(), chances)
def test_it_ends_when_sources_break_lie_decline_and_return(has: dict[ServerId, int], chance: random.Random) -> None:
    everyone = {**has, SEED: all_pieces(20)}
    fetch = fetch_from(everyone)
    now, owed = 0.0, []
    for _ in range(60):
        now += 1.0
        server = chance.choice(sorted(everyone))
        ask = fetch.next(server, now=now)
        if ask is not None:
            owed.append((server, ask.piece))
        what = chance.choice(["arrive", "drop", "lack", "decline", "offer", "gain", "give", "nothing"])
        if what == "drop" and server != SEED:
            fetch.drop(server)
            owed = [(source, piece) for source, piece in owed if source != server]
        elif (what in {"arrive", "decline"} and owed) or (what == "lack" and owed and owed[-1][0] != SEED):
            answer(fetch, what, *owed.pop(), now=now)
        else:
            tell(fetch, what, server, has=everyone[server], given=chance.getrandbits(20), now=now)
    for server in sorted(has):
        fetch.drop(server)
    for server, piece in owed:
        if server == SEED:
            fetch.arrived(server, piece)
    for _ in range(60):
        now += 10.0
        while (ask := fetch.next(SEED, now=now)) is not None:
            fetch.arrived(SEED, ask.piece)
    assert fetch.done


@settings(max_examples=60)
@given(st.integers(2, 6), st.integers(1, 60), chances)
def test_a_single_source_gives_each_piece_away_once_and_all_get_everything(
    receivers: int, count: int, chance: random.Random
) -> None:
    """Receivers that tell each other what they got, in whatever order things happen, draw each piece once from it."""
    names = [ServerId(f"srv-{k}") for k in range(receivers)]
    deal = Deal()
    fetches = {name: Fetch(count, start=count * k // receivers) for k, name in enumerate(names)}
    sent: Counter[int] = Counter()
    for name, fetch in fetches.items():
        deal.joins(name)
        fetch.offer(SEED, all_pieces(count))
        for other in names:
            if other != name:
                fetch.offer(other, 0)
    way: list[tuple[ServerId, ServerId, Ask]] = []
    while not all(fetch.done for fetch in fetches.values()):
        for name in chance.sample(names, receivers):
            fetches[name].given(SEED, deal.news(name), now=0.0)
            for source in (SEED, *names):
                while (ask := fetches[name].next(source, now=0.0)) is not None:
                    way.append((name, source, ask))
        assert way, "nobody knows what to ask for"
        name, source, ask = way.pop(chance.randrange(len(way)))
        if source == SEED:
            if not deal.asked(name, ask.piece, insist=ask.insist):
                fetches[name].declined(SEED, ask.piece, now=0.0)
                continue
            sent[ask.piece] += not ask.insist
        assert fetches[name].arrived(source, ask.piece)
        for other in names:
            if other != name:
                fetches[other].gained(name, 1 << ask.piece)
    assert set(sent.values()) <= {1}


def test_no_source_owes_more_than_its_share() -> None:
    fetch = fetch_from({SERVERS[0]: all_pieces(20)})
    assert [piece_of(fetch.next(SERVERS[0], now=0.0)) for _ in range(6)] == [0, 1, 2, 3, None, None]


def test_small_remainders_of_pieces_are_asked_for_in_greater_number() -> None:
    fetch = Fetch(100, cost=lambda _: PIECE_BYTES // 16)
    fetch.offer(SERVERS[0], all_pieces(100))
    asks = 0
    while fetch.next(SERVERS[0], now=0.0) is not None:
        asks += 1
    assert asks == 48


def test_the_rarest_piece_comes_first() -> None:
    a, b, c = SERVERS[:3]
    fetch = fetch_from({a: all_pieces(20), b: all_pieces(19), c: all_pieces(18)})
    assert piece_of(fetch.next(a, now=0.0)) == 19
    assert piece_of(fetch.next(b, now=0.0)) == 18


def test_receivers_begin_at_different_places() -> None:
    a = SERVERS[0]
    fetch = fetch_from({a: all_pieces(20)}, start=18)
    assert [piece_of(fetch.next(a, now=0.0)) for _ in range(3)] == [18, 19, 0]


def test_what_a_source_gave_to_others_is_asked_of_it_last_and_not_before_they_had_time_to_tell() -> None:
    a = SERVERS[0]
    fetch = fetch_from({a: all_pieces(3)}, count=3)
    fetch.given(a, 0b011, now=0.0)
    assert fetch.next(a, now=0.0) == Ask(2)
    assert fetch.next(a, now=1.9) is None
    assert fetch.next(a, now=2.0) == Ask(0, insist=True)


def test_what_another_has_as_well_is_taken_from_a_source_that_is_free() -> None:
    a, b = SERVERS[:2]
    fetch = fetch_from({a: all_pieces(1), b: 0}, count=1)
    fetch.given(a, 1, now=0.0)
    assert fetch.next(a, now=0.0) is None
    fetch.gained(b, 1)
    assert fetch.next(a, now=0.0) == Ask(0, insist=True)


def test_work_moves_away_from_a_source_that_is_slow() -> None:
    slow, quick = SERVERS[:2]
    fetch = fetch_from({slow: all_pieces(2)}, count=2)
    assert piece_of(fetch.next(slow, now=0.0)) == 0
    fetch.offer(quick, all_pieces(2))
    assert piece_of(fetch.next(quick, now=1.0)) == 1
    fetch.arrived(quick, 1)
    assert fetch.next(quick, now=1.0) is None
    assert piece_of(fetch.next(quick, now=5.0)) == 0
    assert fetch.arrived(quick, 0)
    assert fetch.done
    assert not fetch.arrived(slow, 0)
    assert fetch.done


def test_who_owes_a_piece_is_not_asked_for_it_again_when_another_turns_out_to_lack_it() -> None:
    slow, quick, third = SERVERS[:3]
    fetch = fetch_from({slow: all_pieces(1), quick: all_pieces(1), third: all_pieces(1)}, count=1)
    assert piece_of(fetch.next(slow, now=0.0)) == 0
    assert piece_of(fetch.next(quick, now=5.0)) == 0
    fetch.lacking(quick, 0)
    assert fetch.next(slow, now=5.0) is None
    assert piece_of(fetch.next(third, now=5.0)) == 0


def test_what_a_dropped_source_owed_is_asked_of_another() -> None:
    a, b = SERVERS[:2]
    fetch = fetch_from({a: all_pieces(1), b: all_pieces(1)}, count=1)
    assert piece_of(fetch.next(a, now=0.0)) == 0
    assert fetch.next(b, now=0.0) is None
    fetch.drop(a)
    assert piece_of(fetch.next(b, now=0.0)) == 0


def test_a_receiver_that_leaves_frees_what_only_it_was_given() -> None:
    a, b = SERVERS[:2]
    deal = Deal()
    deal.joins(a)
    assert deal.asked(a, 3, insist=False)
    deal.joins(b)
    assert deal.news(b) == 1 << 3
    assert deal.news(b) == 0
    assert not deal.asked(b, 3, insist=False)
    assert deal.asked(b, 4, insist=False)
    assert deal.news(a) == 1 << 4
    deal.leaves(a)
    assert deal.asked(b, 3, insist=False)
    assert deal.receivers == 1


def test_a_version_without_blocks_is_done_at_once() -> None:
    assert Fetch(0).done
