"""When pieces of an image go compressed, and what is made of what comes so."""

import random

import pytest

from kmgr.replica import zstd
from kmgr.replica.squeeze import AGAIN, MOST_BYTES_S, Link, Squeeze

MIB = 1 << 20
MBIT = 125_000
PIECE = 1 << 20
NOISE = random.Random(1).randbytes(65536)  # noqa: S311 - a picture, not a secret


def compressed(data: bytes) -> bytes:
    return zstd.compress(data)


def expanded(data: bytes, length: int) -> bytes:
    room = bytearray(length)
    zstd.expand(memoryview(bytearray(data)), memoryview(room))
    return bytes(room)


# -- the library ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"a", bytes(MIB), NOISE, b"kmgr " * 9000])
def test_what_is_compressed_comes_out_as_it_was(data: bytes) -> None:
    assert expanded(compressed(data), len(data)) == data


def test_a_bomb_is_refused_and_writes_no_byte_beyond_its_room() -> None:
    bomb = compressed(bytes(64 * MIB))
    assert len(bomb) < 8192
    room = bytearray(b"\xff" * 2 * PIECE)
    with pytest.raises(ValueError, match="do not expand"):
        zstd.expand(memoryview(bytearray(bomb)), memoryview(room)[:PIECE])
    assert room[PIECE:] == b"\xff" * PIECE


@pytest.mark.parametrize("how", ["short", "long", "cut", "garbage", "nothing", "more"])
def test_what_does_not_expand_to_just_its_length_is_refused(how: str) -> None:
    data = b"kmgr " * 9000
    whole = compressed(data)
    lies = {
        "short": (compressed(data[:-1]), len(data)), "long": (compressed(data + b"x"), len(data)),
        "cut": (whole[:-3], len(data)), "garbage": (NOISE[:99], 500), "nothing": (b"\0", 500),
        "more": (whole + whole, len(data)),
    }  # fmt: skip
    with pytest.raises(ValueError, match="do not expand"):
        expanded(*lies[how])


# -- the decision ---------------------------------------------------------------------------------------------------


def link(mbit: float, *, waited: float = 1.0) -> Link:
    """Return a link that took a second's bytes, while somebody waited for a share of the time."""
    made, now = Link(), 0.0
    for _ in range(10):
        made.waits(now=now)
        now += 0.1 * waited
        made.took(int(mbit * MBIT / 10), now=now)
        now += 0.1 * (1 - waited)
    made.waits(now=now)
    made.took(0, now=now)
    return made


def test_a_link_has_a_rate_only_while_it_holds_copies_up() -> None:
    assert link(100).rate == pytest.approx(100 * MBIT, rel=0.05)
    assert link(100, waited=0.3).rate is None
    assert Link().rate is None


def test_two_that_wait_at_the_same_time_share_one_link() -> None:
    made, now = Link(), 0.0
    for _ in range(12):
        made.waits(now=now)
        made.waits(now=now)
        now += 0.1
        made.took(MIB, now=now)
        made.took(MIB, now=now)
    assert made.rate == pytest.approx(20 * MIB, rel=0.05)


# Programs on a quiet machine, programs on a busy one, a picture that is compressed already.
QUIET, BUSY, DENSE = (0.48, 350e6), (0.48, 60e6), (1.0, 3900e6)


@pytest.mark.parametrize(
    ("what", "mbit", "pays"),
    [
        (QUIET, 50, True), (QUIET, 100, True), (QUIET, 200, True), (QUIET, 590, False), (QUIET, 1000, False),
        (BUSY, 50, True), (BUSY, 100, False), (BUSY, 1000, False),
        (DENSE, 10, False), (DENSE, 1000, False),
    ],
)  # fmt: skip
def test_it_pays_where_the_link_is_spared_more_than_twice_what_the_processors_are_given_to_do(
    what: tuple[float, float], mbit: float, pays: bool
) -> None:
    squeeze = Squeeze()
    assert squeeze.tries(10 * MBIT), "the first one is a trial"
    squeeze.learn(PIECE, int(PIECE * what[0]), PIECE / what[1])
    assert squeeze.pays(mbit * MBIT) is pays
    assert squeeze.tries(mbit * MBIT) is pays


def test_a_link_of_1_gbit_s_or_of_unknown_rate_costs_not_even_a_trial() -> None:
    squeeze = Squeeze()
    assert not any(squeeze.tries(1000 * MBIT) for _ in range(3 * AGAIN))
    assert not any(squeeze.tries(None) for _ in range(3 * AGAIN))
    assert 1000 * MBIT > MOST_BYTES_S


def test_what_does_not_pay_is_looked_at_again_now_and_then_for_versions_are_not_alike_all_over() -> None:
    squeeze, rate = Squeeze(), 100.0 * MBIT
    assert not squeeze.learn(PIECE, PIECE, PIECE / 3900e6)
    tried = [squeeze.tries(rate) for _ in range(3 * AGAIN)]
    assert tried.count(True) == 3
    for _ in range(8):
        assert squeeze.learn(PIECE, PIECE // 3, PIECE / 350e6)
    assert all(squeeze.tries(rate) for _ in range(10))
