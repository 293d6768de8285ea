"""A grid copies an image over simulated links: how long it takes beside the floor, what the source sends, who fails.

The floor is the image through the slowest link that it must pass, and nothing else. KMGR_SWARM_SEEDS=100 tries more
than the few seeds of every day; a failure tells its seed.
"""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmgr.replica.fetch import all_pieces
from kmgr.replica.manifest import PIECE_BYTES
from kmgr.replica.pace import PACE
from tests.lab.swarm_sim import RATE, Server, Swarm, described

SEEDS = range(1, 1 + int(os.environ.get("KMGR_SWARM_SEEDS", "2")))
TROUBLES = ("kill", "silent", "slow")
SECONDS_OF_ONE = PIECE_BYTES / RATE


def finished(swarm: Swarm, seed: int) -> float:
    """Run; return the last end, in floors. Everybody must have ended."""
    swarm.run()
    assert not swarm.waiting(), (seed, described(swarm))
    return last(swarm.servers[1:]) / swarm.floor_s


def last(servers: list[Server]) -> float:
    return max(s.done_at for s in servers if s.done_at is not None)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("servers", "pieces", "floors", "sent"),
    [(2, 256, 1.01, 1.0), (4, 256, 1.1, 1.1), (8, 256, 1.15, 1.15), (16, 128, 1.35, 1.4)],
)
def test_everybody_has_it_in_little_more_than_the_time_of_one_link(
    servers: int, pieces: int, floors: float, sent: float, seed: int
) -> None:
    swarm = Swarm(servers, pieces, seed=seed)
    assert finished(swarm, seed) <= floors, (seed, described(swarm))
    assert swarm.servers[0].sent <= sent * pieces, (seed, described(swarm))
    wasted = sum(server.wasted for server in swarm.servers)
    assert wasted <= 0.02 * pieces * (servers - 1), (seed, described(swarm))


@pytest.mark.parametrize("seed", SEEDS[: max(1, len(SEEDS) // 10)])
def test_a_hundred_servers_have_a_small_image_in_the_time_of_a_few_links(seed: int) -> None:
    swarm = Swarm(100, 48, seed=seed)
    assert finished(swarm, seed) <= 3.5, (seed, described(swarm))
    assert swarm.servers[0].sent <= 4 * 48, (seed, described(swarm))


@pytest.mark.parametrize("seed", SEEDS)
def test_one_server_with_a_slow_link_does_not_hold_up_the_others(seed: int) -> None:
    swarm = Swarm(8, 192, seed=seed)
    slow = swarm.servers[3]
    slow.up = slow.down = RATE / 10
    swarm.run()
    quick = [server for server in swarm.servers[1:] if server is not slow]
    floor = 192 * PIECE_BYTES / min(server.down for server in quick)
    assert not swarm.waiting(), (seed, described(swarm))
    assert last(quick) <= 1.6 * floor, (seed, described(swarm))
    assert last([slow]) <= 1.2 * swarm.floor_s, (seed, described(swarm))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("silently", [False, True])
def test_a_receiver_that_dies_costs_the_others_no_more_than_their_patience(seed: int, silently: bool) -> None:
    swarm = Swarm(6, 192, seed=seed)
    victim = swarm.servers[2]
    swarm.at(0.4 * swarm.floor_s, lambda: swarm.fall_silent(victim) if silently else swarm.kill(victim))
    swarm.run()
    assert not swarm.waiting(), (seed, described(swarm))
    patience = PACE.silence_s if silently else PACE.pause_s
    assert last(swarm.servers[1:]) <= 1.3 * swarm.floor_s + patience, (seed, described(swarm))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_source_may_die_once_the_others_hold_all_pieces_together(seed: int) -> None:
    swarm = Swarm(4, 192, seed=seed)
    source = swarm.servers[0]

    def look() -> None:
        together = 0
        for server in swarm.servers[1:]:
            together |= server.have
        if together == all_pieces(192):
            swarm.kill(source)
        else:
            swarm.at(swarm.now + SECONDS_OF_ONE / 2, look)

    swarm.at(0.0, look)
    swarm.run()
    assert not swarm.waiting(), (seed, described(swarm))
    assert source.dead or all(server.done_at for server in swarm.servers[1:]), (seed, described(swarm))


@pytest.mark.parametrize("seed", SEEDS)
def test_when_the_source_dies_half_way_everybody_gets_all_that_had_left_it(seed: int) -> None:
    swarm = Swarm(4, 192, seed=seed)
    swarm.at(0.5 * swarm.floor_s, lambda: swarm.kill(swarm.servers[0]))
    swarm.run(until=3 * swarm.floor_s)
    together = 0
    for server in swarm.servers[1:]:
        together |= server.have
    assert 0 < together < all_pieces(192), seed
    assert [server.have for server in swarm.servers[1:]] == [together] * 3, (seed, described(swarm))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_server_that_joins_late_is_served_by_everybody(seed: int) -> None:
    swarm = Swarm(5, 192, seed=seed)
    late = swarm.servers[4]
    late.begins = 0.6 * swarm.floor_s
    swarm.run()
    assert not swarm.waiting(), (seed, described(swarm))
    assert late.done_at is not None
    assert late.done_at - late.begins <= 1.25 * swarm.floor_s, (seed, described(swarm))
    assert swarm.servers[0].sent <= 1.5 * 192, (seed, described(swarm))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_source_that_lies_is_believed_by_nobody_and_costs_each_a_piece(seed: int) -> None:
    swarm = Swarm(6, 128, seed=seed)
    liar = swarm.servers[1]
    liar.have, liar.liar = all_pieces(128), True
    swarm.run()
    assert not swarm.waiting(), (seed, described(swarm))
    honest = swarm.servers[2:]
    assert all(liar.name in server.accused for server in honest if server.wasted), seed
    assert sum(server.wasted for server in honest) <= len(honest), (seed, described(swarm))
    assert any(server.accused for server in honest), seed


@settings(max_examples=int(os.environ.get("KMGR_SWARM_SEEDS", "25")), deadline=None)
@given(
    count=st.integers(3, 7),
    pieces=st.integers(1, 40),
    seed=st.integers(0, 1 << 30),
    latency_ms=st.floats(0.1, 80),
    troubles=st.lists(st.tuples(st.integers(1, 6), st.floats(0, 4), st.sampled_from(TROUBLES)), max_size=3),
    late=st.lists(st.floats(0, 6), max_size=3),
)  # fmt: skip
def test_whatever_fails_every_living_server_gets_each_piece_once(
    count: int,
    pieces: int,
    seed: int,
    latency_ms: float,
    troubles: list[tuple[int, float, str]],
    late: list[float],
) -> None:
    swarm = Swarm(count, pieces, seed=seed, latency_s=latency_ms / 1000)
    for server, begins in zip(swarm.servers[1:], late, strict=False):
        server.begins = begins
    for number, when, what in troubles:
        victim = swarm.servers[1 + number % (count - 1)]

        def trouble(victim: Server = victim, what: str = what) -> None:
            match what:
                case "kill":
                    swarm.kill(victim)
                case "silent":
                    swarm.fall_silent(victim)
                case _:
                    victim.up = victim.down = RATE / 20

        swarm.at(when, trouble)
    swarm.run()
    assert not swarm.waiting(), described(swarm)
