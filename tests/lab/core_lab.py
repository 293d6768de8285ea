"""One core that is spoken to frame by frame: its link keeps what it said, its clock is moved by hand."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pysyncobj import syncobj

from kmgr.grid.commands import APPLIERS
from kmgr.grid.envelope import Command, encode
from kmgr.grid.raft.core import Core
from kmgr.grid.raft.journal import ENVELOPE, NO_OP, add_voter
from kmgr.grid.raft.library import Timing
from kmgr.grid.raft.messages import (
    Append,
    AskSupport,
    AskVote,
    Known,
    Message,
    Support,
    Taken,
    Vote,
    decode,
)
from kmgr.grid.raft.messages import (
    encode as spell,
)
from kmgr.grid.raft.opening import open_folder
from kmgr.grid.raft.proposals import Proposal
from kmgr.grid.raft.records import Entry
from kmgr.grid.rows import scalar
from kmgr.grid.schema import SCHEMA
from kmgr.grid.store import Store
from kmgr.ids import CommandId, ServerId

A, B, C = ServerId("srv-a"), ServerId("srv-b"), ServerId("srv-c")


class Spoken:
    """What can be done with one core: what that begins with is its heir's; `now` is the time that it lives by."""

    now = 100.0
    core: Core

    def __init__(self) -> None:
        self.said: list[tuple[ServerId, Message]] = []

    def send(self, server: ServerId, data: bytes) -> bool:
        self.said.append((server, decode(data)))
        return True

    def flush(self) -> None:
        """What is said is heard at once."""

    def hear(self, server: ServerId, message: Message) -> list[Message]:
        """Deliver a message and return what is answered to its sender, in this round.

        That this server itself may begin to ask for support then (its patience is random), or tells how far it has
        come (it does so once a second), is no answer.
        """
        self.said.clear()
        self.core.receive(server, spell(message))
        self.core.step()
        return [said for other, said in self.said if other == server and not isinstance(said, AskSupport | Known)]

    def wait(self, seconds: float) -> list[Message]:
        """Let time pass and return what is said meanwhile."""
        self.said.clear()
        for _ in range(round(seconds / 0.05)):
            type(self).now += 0.05
            self.core.step()
        return [message for _, message in self.said]


class Speaker(Spoken):
    """A core, a link that keeps what was said, and a clock moved by hand."""

    def __init__(self, folder: Path, *, founder: bool) -> None:
        super().__init__()
        self.applied_when_said = 0
        self.store = Store(folder / "state.sqlite", (SCHEMA,))
        opened = open_folder(folder / "raft", self.store, A, founder=founder)
        self.journal = opened.journal
        self.core = Core(
            A,
            opened=opened,
            folder=folder / "raft",
            store=self.store,
            appliers=APPLIERS,
            link=self,
            timing=Timing(),
        )

    def send(self, server: ServerId, data: bytes) -> bool:
        self.applied_when_said = scalar(self.store.writer, "select count(*) from outcomes")
        return super().send(server, data)


@contextmanager
def speaking(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Speaker]:
    """A voter among three that knows its leader B, in term 3, with entries up to 10, of which 5 are committed."""
    monkeypatch.setattr(syncobj, "monotonicTime", lambda: Speaker.now)
    random.seed(4)  # elections are timed by chance
    found = Speaker(folder, founder=False)
    for server in (B, C):
        found.core.up(server)
    voters = [Entry(add_voter(server), index, 1) for index, server in enumerate((A, B, C), 2)]
    entries = (*voters, *(setting(index, 3) for index in range(5, 11)))
    assert found.hear(B, Append(3, 5, 1, 0, entries)) == [Taken(3, 11, True)]
    yield found
    found.core.close()
    found.store.close()


def setting(index: int, term: int) -> Entry:
    body = {"name": "heartbeat_ms", "value": 1000 + index}
    command = Command("setting.set", CommandId(f"cmd-{index}-{term}"), index, "test", body)
    return Entry(ENVELOPE + encode(command), index, term)


def elect(speaker: Speaker) -> None:
    """Make the speaker the leader of term 4."""
    speaker.wait(2.2)
    assert AskVote(4, 10, 3, False) in speaker.hear(C, Support(4))
    speaker.hear(C, Vote(4))
    assert speaker.journal.last == Entry(NO_OP, 11, 4)


def own_change(speaker: Speaker, index: int) -> list[object]:
    found: list[object] = []
    proposal = Proposal(CommandId(f"cmd-{index}-1"), setting(index, 1).command[1:], found.append, Speaker.now)
    speaker.core.proposals.add(proposal)
    return found
