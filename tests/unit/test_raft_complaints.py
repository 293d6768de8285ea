"""What members of another build send, or hostile ones: told, but not once for each frame."""

import logging

import pytest

from kmgr.grid.raft.messages import Propose
from tests.lab.core_lab import B, C, Speaker, elect


def test_what_a_member_of_another_build_sends_is_told_once_a_minute_however_much_it_is(
    speaker: Speaker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    elect(speaker)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(500):
            speaker.core.receive(B, b"\x80\x04\x95rubbish")
            speaker.core.receive(C, b"\x80\x04\x95rubbish")
            speaker.hear(C, Propose(8, b"rubbish"))
        told = [(record.message, vars(record)["server"]) for record in caplog.records]
        assert sorted(told) == [
            ("a frame of the log was not understood", B),
            ("a frame of the log was not understood", C),
            ("a proposal that is no command was refused", C),
        ]
        caplog.clear()
        Speaker.now += 61
        speaker.core.receive(B, b"\x80\x04\x95rubbish")
    assert [vars(record)["more_since_the_last"] for record in caplog.records] == [499]
