"""What was promised is remembered, and whoever has less counts for nothing until it was brought up to date."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pysyncobj import syncobj

from kmgr.grid.raft.core import Core
from kmgr.grid.raft.held import Held, held, promised_by
from kmgr.grid.raft.journal import NO_OP, Journal, add_voter
from kmgr.grid.raft.library import Timing
from kmgr.grid.raft.logfile import LogFile
from kmgr.grid.raft.messages import (
    Append,
    AskSupport,
    AskTrust,
    AskVote,
    Known,
    Message,
    Remembered,
    Stale,
    Support,
    Taken,
    TakeOver,
    Trusted,
    Vote,
)
from kmgr.grid.raft.opening import JOURNAL, open_folder
from kmgr.grid.raft.records import Entry, Word
from kmgr.grid.raft.trust import HOLD, LEAP, PATIENCE
from kmgr.grid.schema import SCHEMA
from kmgr.grid.store import Store
from kmgr.ids import ServerId
from tests.lab.core_lab import Spoken

A, B, C = ServerId("srv-a"), ServerId("srv-b"), ServerId("srv-c")
# Term 3, a vote for B in it, entries 5 … 10: of term 2 up to 7, of term 3 behind.
HELD = Held(3, B, 5, 10, ((5, 2), (8, 3)))


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        (Word(), True),
        (Word(2, 99, 2), True),  # given in an older term: what came of it is known to whoever led since
        (Word(3, 10, 3), True),
        (Word(3, 10, 0), True),
        (Word(3, 7, 2), True),
        (Word(3, 4, 1), True),  # compacted, hence committed
        (Word(3, 11, 3), False),
        (Word(3, 8, 2), False),  # there is another entry
        (Word(4, 0, 0), False),
    ],
)
def test_entries_are_kept_if_the_log_has_them_or_went_on_to_a_newer_term(word: Word, kept: bool) -> None:
    assert HELD.keeps(word) is kept


def test_a_vote_is_kept_if_it_is_known_or_its_term_is_over() -> None:
    assert HELD.keeps_vote(Word(vote=2), C)
    assert not HELD.keeps_vote(Word(vote=4), B)
    early = replace(HELD, runs=((5, 2),))
    assert early.keeps_vote(Word(vote=3), B)
    assert not early.keeps_vote(Word(vote=3), C)


def test_a_vote_of_a_term_whose_entries_are_here_can_be_given_to_nobody_else() -> None:
    assert HELD.keeps_vote(Word(vote=3), C)


@pytest.mark.parametrize(
    ("message", "word"),
    [
        (Taken(3, 12, True), Word(3, 11)),
        (Taken(3, 12, False), None),
        (Append(3, 7, 9, 3, ()), Word(3, 7)),
        (Vote(4), Word(4, vote=4)),
        (AskVote(4, 10, 3, False), Word(4)),
        (Stale(4), Word(4)),
        (Known(3, 7, 2), Word(3, 7, 2)),
        (AskSupport(4, 10, 3), None),
        (Support(4), None),
    ],
)
def test_what_a_message_promises(message: Message, word: Word | None) -> None:
    assert promised_by(message) == word


def test_of_two_promises_the_later_term_counts_then_the_later_entry() -> None:
    assert Word(3, 10, 3, 2).joined(Word(2, 90, 2, 5)) == Word(3, 10, 3, 5)
    assert Word(3, 10).joined(Word(3, 10, 3)) == Word(3, 10, 3)
    assert Word(3, 9, 3).joined(None) == Word(3, 9, 3)


def test_promises_and_doubt_outlive_the_process_and_a_rewritten_journal(tmp_path: Path) -> None:
    journal = Journal.create(LogFile(tmp_path / "journal"), A)
    journal.add(Entry(add_voter(B), 3, 1))
    journal.remember(B, Word(1, 3, 1))
    journal.remember(C, Word(1, 3, 1))  # votes no more
    journal.sync()
    journal.set_doubt(B)
    journal.abandon()
    journal = Journal.open(LogFile(tmp_path / "journal"))
    assert (journal.remembered, journal.doubt) == ({B: Word(1, 3, 1)}, B)
    journal.forget_before(3)
    journal.abandon()
    journal = Journal.open(LogFile(tmp_path / "journal"))
    assert (journal.remembered, journal.doubt) == ({B: Word(1, 3, 1)}, B)
    journal.set_doubt(None)
    journal.abandon()
    assert Journal.open(LogFile(tmp_path / "journal")).doubt is None


def test_who_goes_on_alone_owes_nothing_to_anybody(tmp_path: Path) -> None:
    journal = Journal.create(LogFile(tmp_path / "journal"), A)
    journal.add(Entry(add_voter(B), 3, 1))
    journal.remember(B, Word(1, 3, 1))
    journal.set_doubt(B)
    journal.take_over(A, term=1_000_000, epoch=1, commands=())
    journal.abandon()
    journal = Journal.open(LogFile(tmp_path / "journal"))
    assert not journal.remembered
    assert journal.doubt is None
    assert journal.voters() == {A}


class Returned(Spoken):
    """Server A, one of three voters, started again in term 3 with entries up to 10, all committed."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.store = Store(folder / "state.sqlite", (SCHEMA,))
        (folder / "raft").mkdir()
        journal = Journal.create(LogFile(folder / "raft" / JOURNAL), None)
        voters = [Entry(add_voter(server), index, 1) for index, server in enumerate((A, B, C), 2)]
        for entry in (*voters, *(Entry(NO_OP, index, 3) for index in range(5, 11))):
            journal.add(entry)
        journal.decide(3, B)
        journal.sync()
        journal.close()
        opened = open_folder(folder / "raft", self.store, A, founder=False)
        self.journal = opened.journal
        self.core = Core(
            A, opened=opened, folder=folder / "raft", store=self.store, appliers={}, link=self, timing=Timing()
        )
        for server in (B, C):
            self.core.up(server)

    def led_by(self, leader: ServerId, seconds: float) -> None:
        """Let time pass while a leader is heard."""
        for _ in range(round(seconds / 0.2)):
            self.hear(leader, Append(3, 10, 10, 3, ()))
            self.wait(0.2)

    def agree(self) -> None:
        """Have the others remember nothing that is not there."""
        self.hear(B, Remembered(3, 10, 3, 3))
        self.hear(C, Remembered(0, 0, 0, 0))

    def lead(self) -> None:
        """Become the leader of term 4, with entry 11."""
        self.wait(2.2)
        assert AskVote(4, 10, 3, False) in self.hear(C, Support(4))
        self.hear(C, Vote(4))
        self.hear(C, Taken(4, 12, True))
        assert self.core.shown.leader == A


@pytest.fixture
def returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Returned]:
    monkeypatch.setattr(syncobj, "monotonicTime", lambda: Returned.now)
    random.seed(4)  # elections are timed by chance
    server = Returned(tmp_path)
    yield server
    server.core.close()
    server.store.close()


def test_the_first_word_is_what_the_other_end_promised(returned: Returned) -> None:
    assert returned.said[0] == (B, Remembered(0, 0, 0, 0, 3, 10, 3))
    returned.hear(B, Append(3, 9, 10, 3, ()))
    returned.core.down(B)
    returned.said.clear()
    returned.core.up(B)
    assert returned.said[0] == (B, Remembered(3, 9, 0, 0, 3, 10, 3))


def test_who_cannot_lead_does_not_say_what_it_has(returned: Returned) -> None:
    returned.agree()
    returned.hear(B, Remembered(4, 0, 0, 0))
    returned.said.clear()
    returned.core.up(C)
    assert returned.said[0] == (C, Remembered(0, 0, 0, 0, 3))


def test_nobody_with_less_than_others_had_when_they_were_met_is_helped_to_lead(returned: Returned) -> None:
    returned.hear(B, Remembered(0, 0, 0, 0, 3, 12, 3))
    returned.hear(C, Remembered(0, 0, 0, 0, 3, 10, 3))
    assert returned.core.shown.doubt == ""
    # Neither another one nor this server, which might have had entry 12 as well.
    assert returned.hear(C, AskSupport(4, 11, 3)) == []
    assert returned.hear(C, AskVote(4, 11, 3, True)) == []
    assert not any(isinstance(said, AskSupport | AskVote) for said in returned.wait(5))
    assert returned.hear(B, AskVote(4, 12, 3, True)) == [Vote(4)]
    returned.hear(B, Append(4, 10, 10, 3, (Entry(NO_OP, 11, 3), Entry(NO_OP, 12, 3))))
    assert any(isinstance(said, AskSupport) for said in returned.wait(5))


def test_its_acknowledgements_count_meanwhile(returned: Returned) -> None:
    returned.hear(B, Remembered(0, 0, 0, 0, 3, 12, 3))
    returned.hear(C, Remembered(0, 0, 0, 0, 3, 10, 3))
    assert returned.hear(B, Append(3, 10, 10, 3, (Entry(NO_OP, 11, 3),))) == [Taken(3, 12, True)]


def test_what_others_had_outlives_the_process_and_a_rewritten_journal(returned: Returned) -> None:
    returned.hear(B, Remembered(0, 0, 0, 0, 3, 12, 3))
    path = returned.core._compaction.path.with_name(JOURNAL)
    journal = Journal.open(LogFile(path))
    assert journal.least == (3, 12)
    journal.forget_before(5)
    journal.abandon()
    assert Journal.open(LogFile(path)).least == (3, 12)


def test_who_had_more_and_stays_away_is_not_waited_for_for_ever(returned: Returned) -> None:
    returned.hear(B, Remembered(0, 0, 0, 0, 3, 12, 3))
    returned.hear(C, Remembered(0, 0, 0, 0, 3, 10, 3))
    returned.core.down(B)
    assert not any(isinstance(said, AskSupport) for said in returned.wait(PATIENCE * 2.0 - 1.0))
    assert any(isinstance(said, AskSupport) for said in returned.wait(5))


def test_only_what_is_said_first_in_a_life_of_this_server_matters(returned: Returned) -> None:
    returned.agree()
    returned.hear(B, Remembered(0, 0, 0, 0, 9, 12, 3))
    assert returned.hear(C, AskVote(4, 11, 3, True)) == [Vote(4)]


def test_no_vote_is_given_in_terms_that_others_knew(returned: Returned) -> None:
    returned.hear(B, Remembered(3, 10, 3, 0, 6, 10, 3))
    returned.hear(C, Remembered(0, 0, 0, 0, 5, 10, 3))
    assert returned.hear(C, AskVote(6, 11, 3, True)) == [Stale(6)]
    assert returned.hear(C, AskVote(6, 11, 3, True)) == [Stale(6)]
    assert returned.hear(C, AskVote(7, 11, 3, True)) == [Vote(7)]


def test_it_stands_behind_the_terms_that_others_knew(returned: Returned) -> None:
    returned.hear(B, Remembered(3, 10, 3, 0, 6, 10, 3))
    returned.hear(C, Remembered(0, 0, 0, 0, 5, 10, 3))
    assert {said.term for said in returned.wait(5) if isinstance(said, AskSupport)} == {7}


def test_until_all_others_have_spoken_it_stores_but_does_not_count(returned: Returned) -> None:
    assert returned.hear(B, Append(3, 10, 10, 3, ())) == [Taken(3, 11, True, counts=False)]
    returned.hear(B, Remembered(3, 10, 3, 3))
    assert returned.hear(C, AskSupport(4, 11, 3)) == []
    assert returned.hear(C, AskVote(4, 11, 3, True)) == []
    assert not any(isinstance(said, AskSupport) for said in returned.wait(HOLD * 2.0 - 0.2))
    returned.hear(C, Remembered(2, 80, 2, 2))
    assert returned.hear(C, AskVote(4, 11, 3, True)) == [Vote(4)]


def test_a_server_that_stays_silent_is_not_waited_for_for_ever(returned: Returned) -> None:
    returned.hear(B, Remembered(3, 10, 3, 3))
    returned.led_by(B, HOLD * 2.0 + 0.2)
    returned.wait(1.5)
    # C may have had a vote of it in any of the terms that it knows, and in some more.
    (said,) = returned.hear(B, AskVote(4, 11, 3, True))
    assert isinstance(said, Stale)
    assert said.term > LEAP // 2
    assert returned.hear(B, AskVote(said.term + 1, 11, 3, True)) == [Vote(said.term + 1)]
    assert returned.core.shown.doubt == ""


def test_a_server_that_spoke_later_needs_no_other_term(returned: Returned) -> None:
    returned.hear(B, Remembered(3, 10, 3, 3))
    returned.led_by(B, HOLD * 2.0 + 0.2)
    returned.hear(C, Remembered(0, 0, 0, 0))
    assert returned.hear(B, AskVote(4, 11, 3, True)) == [Vote(4)]


@pytest.mark.parametrize(
    "word", [Remembered(3, 11, 3, 0), Remembered(4, 0, 0, 0), Remembered(3, 5, 2, 0), Remembered(3, 10, 3, 4)]
)
def test_who_has_less_than_it_promised_says_so_and_counts_for_nothing(returned: Returned, word: Remembered) -> None:
    returned.agree()
    returned.hear(B, word)
    assert "older than what it had promised srv-b" in returned.core.shown.doubt
    assert "majority" in returned.core.shown.doubt
    assert returned.hear(C, AskSupport(5, 99, 4)) == []
    assert returned.hear(C, AskVote(5, 99, 4, True)) == []
    assert not any(isinstance(said, AskSupport | AskVote) for said in returned.wait(10))
    assert Taken(5, 11, True, counts=False) in returned.hear(C, Append(5, 10, 10, 3, ()))
    assert Journal.open(LogFile(returned.core._compaction.path.with_name(JOURNAL))).doubt == B


def test_what_was_promised_in_this_life_is_no_reason_for_doubt(returned: Returned) -> None:
    returned.agree()
    returned.hear(B, Append(3, 10, 10, 3, (Entry(NO_OP, 11, 3),)))
    returned.hear(B, Remembered(3, 11, 3, 3))
    assert returned.core.shown.doubt == ""


def test_a_process_that_was_turned_back_while_it_ran_notices_too(returned: Returned) -> None:
    returned.agree()
    returned.hear(B, Append(3, 10, 10, 3, (Entry(NO_OP, 11, 3),)))
    returned.hear(B, Remembered(3, 12, 3, 3))  # it never said so in the life that it remembers
    assert returned.core.shown.doubt != ""


def test_it_counts_again_with_an_entry_that_was_made_for_it(returned: Returned) -> None:
    returned.agree()
    returned.hear(B, Remembered(3, 11, 3, 3))
    returned.hear(C, Append(5, 10, 10, 3, ()))
    asked = [said for said in returned.wait(0.3) if isinstance(said, AskTrust)][-1]
    assert asked.term == 5
    returned.hear(C, Trusted(asked.attempt, 5, 12))  # which is not here yet
    assert returned.core.shown.doubt != ""
    returned.hear(C, Append(5, 10, 10, 3, (Entry(NO_OP, 11, 5), Entry(NO_OP, 12, 5))))
    returned.hear(C, Trusted(asked.attempt + 1, 5, 12))  # made for an older doubt
    returned.hear(C, Trusted(asked.attempt, 4, 12))  # of another term
    assert returned.core.shown.doubt != ""
    returned.hear(C, Trusted(asked.attempt, 5, 12))
    assert returned.core.shown.doubt == ""
    assert returned.hear(C, Append(5, 12, 12, 5, ())) == [Taken(5, 13, True)]
    returned.hear(B, Remembered(3, 11, 3, 3))  # what it was brought up to date with contains that
    assert returned.core.shown.doubt == ""


def test_it_counts_again_although_its_log_begins_behind_that_entry_by_now(returned: Returned) -> None:
    returned.agree()
    returned.hear(B, Remembered(3, 11, 3, 3))
    returned.hear(C, Append(5, 13, 10, 3, tuple(Entry(NO_OP, index, 5) for index in (11, 12, 13))))
    asked = [said for said in returned.wait(0.3) if isinstance(said, AskTrust)][-1]
    returned.journal.forget_before(10)
    returned.hear(C, Trusted(asked.attempt, 5, 9))  # what it begins with is not this leader's
    assert returned.core.shown.doubt != ""
    returned.journal.forget_before(13)
    returned.hear(C, Trusted(asked.attempt, 5, 12))
    assert returned.core.shown.doubt == ""


def test_of_two_voters_the_words_say_that_it_cannot_be_mended_by_itself(returned: Returned) -> None:
    returned.agree()
    returned.hear(B, Append(3, 10, 10, 3, (Entry(b'\2["remove", "srv-c"]', 11, 3),)))
    returned.hear(B, Remembered(4, 0, 0, 0))
    assert "kmgr grid recover on the other one" in returned.core.shown.doubt


def test_a_leader_does_not_count_who_does_not_count(returned: Returned) -> None:
    returned.agree()
    returned.lead()
    returned.core.feed(frozenset())
    returned.hear(B, Taken(4, 12, True))
    returned.hear(C, AskTrust(7, 4))
    assert returned.journal.last == Entry(NO_OP, 12, 4)
    returned.hear(B, Taken(4, 13, True, counts=False))
    returned.hear(C, Taken(4, 13, True, counts=False))
    assert returned.core.shown.committed == 11
    assert returned.core.progress[B] == 0
    returned.wait(2.0)
    assert not returned.core.shown.majority


def test_a_leader_gives_trust_when_a_majority_without_the_server_has_the_entry(returned: Returned) -> None:
    returned.agree()
    returned.lead()
    assert Trusted(7, 4, 12) not in returned.hear(C, AskTrust(7, 4))
    assert Trusted(7, 4, 12) not in returned.hear(C, AskTrust(7, 4))
    assert returned.journal.last.index == 12
    returned.hear(B, Taken(4, 13, True))
    assert Trusted(7, 4, 12) in returned.hear(C, AskTrust(7, 4))
    # Another doubt needs another entry.
    assert Trusted(8, 4, 13) not in returned.hear(C, AskTrust(8, 4))
    assert returned.journal.last.index == 13


def test_a_doubted_server_is_not_handed_the_lead(returned: Returned) -> None:
    returned.agree()
    returned.hear(B, Append(3, 10, 10, 3, ()))
    returned.hear(B, Remembered(4, 0, 0, 0))
    returned.hear(B, TakeOver(3))
    assert not any(isinstance(said, AskVote) for said in returned.wait(3))


def test_a_leader_in_doubt_leads_no_longer(returned: Returned) -> None:
    returned.agree()
    returned.lead()
    returned.hear(B, Remembered(9, 0, 0, 0))
    assert returned.core.shown.leader is None


def test_voters_are_told_how_far_a_server_has_come(returned: Returned) -> None:
    returned.agree()
    returned.hear(B, Append(3, 9, 10, 3, ()))
    said = returned.wait(1.1)
    assert Known(3, 9, 3) in said
    returned.hear(C, Known(5, 300, 5))
    returned.core.down(C)
    returned.said.clear()
    returned.core.up(C)
    assert returned.said[0] == (C, Remembered(5, 300, 5, 0, 3, 10, 3))


def test_what_a_journal_holds_is_read_in_runs(returned: Returned) -> None:
    assert held(returned.journal) == Held(3, B, 1, 10, ((1, 0), (2, 1), (5, 3)))
