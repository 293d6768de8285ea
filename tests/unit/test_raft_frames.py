"""What servers say to each other is spelled the same within one version of the protocol."""

import hashlib
from typing import get_args

from kmgr.grid.fence import PROTOCOL
from kmgr.grid.raft import messages
from kmgr.grid.raft.messages import (
    Append,
    AskIndex,
    AskSupport,
    AskTrust,
    AskVote,
    IndexIs,
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
)
from kmgr.grid.raft.records import Entry

SAID: tuple[Message, ...] = (
    Append(3, 7, 8, 2, (Entry(b"\0{}", 9, 2), Entry(b"\1", 10, 3)), 5),
    Taken(3, 11, True, 5, False),
    AskVote(4, 10, 3, True),
    Vote(4),
    AskSupport(4, 10, 3),
    Support(4),
    Stale(9),
    TakeOver(4),
    Piece(4, 10, 3, 1 << 20, 1 << 22, b"part"),
    NextPiece(4, 10, 1 << 21),
    Propose(77, b"{}"),
    NotTaken(77),
    AskIndex(78),
    IndexIs(78, 10),
    Remembered(3, 9, 2, 1, 4, 11, 3),
    Known(3, 9, 2),
    AskTrust(79, 4),
    Trusted(79, 4, 12),
)
# For each version of the protocol what its frames look like.
SPELLED = {1: "cbdb0179410791b4"}


def test_every_kind_is_spelled_as_this_version_of_the_protocol_says() -> None:
    """Servers of a released kmgr understand frames of their own protocol only: a change of one raises `PROTOCOL`."""
    assert {type(said) for said in SAID} == set(get_args(Message))
    frames = [messages.encode(said) for said in SAID]
    assert [messages.decode(frame) for frame in frames] == list(SAID)
    found = hashlib.sha256(b"".join(len(frame).to_bytes(4) + frame for frame in frames)).hexdigest()[:16]
    assert found == SPELLED[PROTOCOL]
