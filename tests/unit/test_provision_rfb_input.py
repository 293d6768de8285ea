"""Reading what a viewer sends: a person's input is told from the questions for pictures, whatever the pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmgr.provision.rfb_input import InputReader

HANDSHAKE = b"RFB 003.008\n" + b"\x01" + b"\x01"
SET_FORMAT = bytes([0, 0, 0, 0]) + bytes(16)
ENCODINGS = bytes([2, 0, 0, 3]) + bytes(12)
ASK = bytes([3, 1, 0, 0, 0, 0, 4, 0, 3, 0])
CONTINUOUS = bytes([150, 1, 0, 0, 0, 0, 4, 0, 3, 0])
FENCE = bytes([248, 0, 0, 0, 0, 0, 0, 0, 4]) + b"\x05\x04\x06\xff"
RESIZE = bytes([251, 0, 4, 0, 3, 0, 1, 0]) + bytes(16)
SOUND_OFF, SOUND_FORMAT = bytes([255, 1, 0, 1]), bytes([255, 1, 0, 2]) + bytes(6)
QUIET = (SET_FORMAT, ENCODINGS, ASK, CONTINUOUS, FENCE, RESIZE, SOUND_OFF, SOUND_FORMAT)

KEY = bytes([4, 1, 0, 0, 0, 0, 0, 0x61])
SCANNED_KEY = bytes([255, 0, 0, 1, 0, 0, 0, 0x61, 0, 0, 0, 0x1E])
POINTER = bytes([5, 0, 0, 4, 0, 5])
MANY_BUTTONS = bytes([5, 0x80, 0, 4, 0, 5, 1])
PASTE = bytes([6, 0, 0, 0, 0, 0, 0, 4]) + b"\x05\x05\x05\x05"
LONG_PASTE = bytes([6, 0, 0, 0]) + (-6).to_bytes(4, signed=True) + b"\x05\x05\x05\x05\x05\x05"
INPUT = (KEY, SCANNED_KEY, POINTER, MANY_BUTTONS, PASTE, LONG_PASTE)


@given(
    before=st.lists(st.sampled_from(QUIET), max_size=8),
    done=st.lists(st.sampled_from(INPUT), max_size=2),
    after=st.lists(st.sampled_from(QUIET), max_size=8),
    cuts=st.lists(st.integers(1, 20), max_size=40),
)
def test_input_is_told_from_all_else_in_any_pieces(
    before: list[bytes], done: list[bytes], after: list[bytes], cuts: list[int]
) -> None:
    reader, sent = InputReader(), HANDSHAKE + b"".join([*before, *done, *after])
    pieces = []
    for cut in cuts:
        pieces.append(sent[:cut])
        sent = sent[cut:]
    found = [reader.feed(piece) for piece in (*pieces, sent)]
    assert any(found) is bool(done)


@pytest.mark.parametrize("message", INPUT)
def test_each_input_counts_where_it_begins(message: bytes) -> None:
    reader = InputReader()
    assert not reader.feed(HANDSHAKE)
    found = [reader.feed(bytes([one])) for one in message]
    assert any(found)
    assert not reader.feed(ASK)


@pytest.mark.parametrize("unknown", [bytes([77]), bytes([255, 9])])
def test_after_something_unknown_nobody_is_called_idle(unknown: bytes) -> None:
    reader = InputReader()
    reader.feed(HANDSHAKE)
    assert reader.feed(unknown)
    assert reader.feed(ASK)


def test_the_end_of_a_stream_is_no_input() -> None:
    reader = InputReader()
    reader.feed(HANDSHAKE + bytes([77]))
    assert not reader.feed(b"")
