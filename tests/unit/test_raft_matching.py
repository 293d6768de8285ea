"""The rules by which a follower takes entries, and the spelling of messages."""

from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmgr.errors import InvariantBroken
from kmgr.grid.raft.matching import match
from kmgr.grid.raft.messages import (
    Append,
    AskSupport,
    AskTrust,
    AskVote,
    Known,
    Message,
    NextPiece,
    NotTaken,
    Piece,
    Propose,
    Remembered,
    Stale,
    Support,
    Taken,
    TakeOver,
    Trusted,
    Vote,
    decode,
    encode,
)
from kmgr.grid.raft.records import Entry


def log(*terms: int, first: int = 1) -> list[Entry]:
    return [Entry(b"\0x", index, term) for index, term in enumerate(terms, first)]


def test_an_old_message_takes_nothing_away() -> None:
    here = log(0, 1, 1, 1, 1)
    found = match(here, 1, 0, here[1:3], committed=1)
    assert (found.matched, found.wanted, found.cut_from, found.new) == (3, 4, None, ())


def test_a_conflict_cuts_exactly_from_its_first_entry() -> None:
    theirs = log(0, 1, 2, 2)
    found = match(log(0, 1, 1, 1, 1), 1, 0, theirs[1:], committed=2)
    assert (found.matched, found.cut_from, found.new) == (4, 3, tuple(theirs[2:]))


def test_a_log_that_ends_too_early_asks_from_its_end() -> None:
    found = match(log(0, 1), 9, 1, (), committed=1)
    assert (found.matched, found.wanted) == (None, 3)


def test_another_past_asks_from_what_is_committed() -> None:
    found = match(log(0, 1, 1, 1), 4, 3, (), committed=2)
    assert (found.matched, found.wanted) == (None, 3)


@pytest.mark.parametrize(("previous", "term", "sent"), [(3, 5, ()), (2, 1, log(5, first=3))])
def test_a_leader_that_contradicts_what_is_committed_stops_this_server(
    previous: int, term: int, sent: list[Entry]
) -> None:
    with pytest.raises(InvariantBroken):
        match(log(0, 1, 1, 1), previous, term, sent, committed=3)


def test_entries_from_below_the_oldest_one_here_are_skipped() -> None:
    theirs = log(0, 1, 1, 1, 1, 1, 1)
    found = match(log(1, 1, first=4), 1, 0, theirs[1:], committed=5)
    assert (found.matched, found.new) == (7, tuple(theirs[5:]))


terms = st.lists(st.integers(0, 2), min_size=1, max_size=8).map(lambda steps: [0, *_sums(steps)])


def _sums(steps: list[int]) -> list[int]:
    total, found = 1, []
    for step in steps:
        total += step
        found.append(total)
    return found


@given(here=terms, common=st.integers(1, 8), theirs=terms, start=st.integers(1, 8), data=st.data())
def test_after_a_match_the_log_equals_the_leaders(
    here: list[int], common: int, theirs: list[int], start: int, data: st.DataObject
) -> None:
    # The leader's log shares a beginning with ours; what follows there is of newer terms.
    common = min(common, len(here))
    leader = log(*here[:common], *(max(here) + term for term in theirs))
    follower = log(*here)
    previous = leader[min(start, len(leader)) - 1]
    count = data.draw(st.integers(0, len(leader) - previous.index))
    committed = data.draw(st.integers(1, common))
    sent = leader[previous.index : previous.index + count]
    found = match(follower, previous.index, previous.term, sent, committed=committed)
    if found.matched is None:
        assert committed < found.wanted <= len(follower) + 1
        return
    after = follower[: found.cut_from - 1] if found.cut_from else follower
    after = after + list(found.new)
    assert after[: found.matched] == leader[: found.matched]
    assert found.matched == previous.index + count
    assert len(after) >= committed
    if not found.new:
        assert after == follower


MESSAGES: list[Message] = [
    Append(3, 2, 1, 0, (Entry(b"\0one", 2, 1), Entry(b"\1", 3, 3))),
    Append(3, 2, 1, 0, ()),
    Taken(3, 4, True),
    AskVote(3, 4, 2, False),
    Vote(3),
    AskSupport(3, 4, 2),
    Support(3),
    Stale(3),
    TakeOver(3),
    Piece(3, 9, 2, 0, 5, b"\x00\xffabc"),
    NextPiece(3, 9, 5),
    Propose(77, b"{}"),
    NotTaken(77),
    Taken(3, 4, True, counts=False),
    Remembered(3, 4, 2, 1),
    Known(3, 4, 2),
    AskTrust(77, 3),
    Trusted(77, 3, 4),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_message_survives_the_wire(message: Message) -> None:
    assert decode(encode(message)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_cut_short_or_with_wrong_numbers_is_refused(message: Message) -> None:
    frame = encode(message)
    numbers = 1 + sum(8 if type(value) is int else 1 for value in astuple(message) if type(value) in {int, bool})
    for size in range(numbers):
        with pytest.raises(ValueError, match="message"):
            decode(frame[:size])
    for wrong in (b"\xff" + frame[1:], frame[:1] + b"\xff" * (numbers - 1) + frame[numbers:]):
        with pytest.raises(ValueError, match="message"):
            decode(wrong)
    if not isinstance(message, Piece | Propose):
        with pytest.raises(ValueError, match="message"):
            decode(frame + b"x")


@pytest.mark.parametrize("sizes", [[9], [0, 4], [3], [4, 1], [1 << 31]])
def test_entries_that_do_not_fill_their_message_are_refused(sizes: list[int]) -> None:
    frame = encode(Append(3, 1, 1, 0, ()))
    head = frame[:-4] + len(sizes).to_bytes(4, "little")
    rows = b"".join((1).to_bytes(8, "little") + size.to_bytes(4, "little") for size in sizes)
    with pytest.raises(ValueError, match="message"):
        decode(head + rows + b"\0abc")
    with pytest.raises(ValueError, match="message"):
        decode(frame[:-4] + b"\xff" * 4 + rows)


@given(st.integers(0, 20), st.binary(max_size=200))
def test_rubbish_is_refused_or_happens_to_be_spelled_like_a_message(kind: int, data: bytes) -> None:
    frame = bytes((kind,)) + data
    try:
        found = decode(frame)
    except ValueError:
        return
    assert encode(found) == frame
