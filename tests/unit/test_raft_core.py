"""One server's Raft, spoken to frame by frame: what it takes, refuses, answers, and when it may stand."""

from dataclasses import replace
from pathlib import Path

import pytest

from kmgr.errors import InvariantBroken, OutcomeUnknown, Unavailable
from kmgr.grid.envelope import Applied, Command, encode
from kmgr.grid.raft.barriers import Barrier
from kmgr.grid.raft.messages import (
    Append,
    AskIndex,
    AskSupport,
    AskVote,
    IndexIs,
    NotTaken,
    Piece,
    Propose,
    Stale,
    Support,
    Taken,
    Vote,
)
from kmgr.grid.raft.messages import (
    encode as spell,
)
from kmgr.grid.raft.proposals import Proposal, Proposals
from kmgr.ids import CommandId, ServerId
from tests.lab.core_lab import A, B, C, Speaker, elect, setting


def test_what_the_leader_committed_is_applied_and_no_more(speaker: Speaker) -> None:
    shown = speaker.core.shown
    assert (shown.leader, shown.term, shown.applied, shown.voters) == (B, 3, 5, (A, B, C))


def test_entries_are_on_the_disk_before_they_are_acknowledged(speaker: Speaker, tmp_path: Path) -> None:
    assert (tmp_path / "raft" / "journal").read_bytes().count(b"setting.set") == 6


def test_a_leader_of_an_older_term_is_told_so_and_changes_nothing(speaker: Speaker) -> None:
    assert speaker.hear(C, Append(2, 10, 10, 3, (setting(11, 2),))) == [Stale(3)]
    assert speaker.journal.last.index == 10
    assert speaker.core.shown.leader == B


def test_entries_are_acknowledged_before_others_are_applied(speaker: Speaker) -> None:
    assert speaker.hear(B, Append(3, 10, 10, 3, (setting(11, 3),))) == [Taken(3, 12, True)]
    assert (speaker.applied_when_said, speaker.core.shown.applied) == (1, 10)


def test_a_late_message_neither_cuts_the_log_nor_moves_the_commit_index_too_far(speaker: Speaker) -> None:
    assert speaker.hear(B, Append(3, 9, 4, 1, (setting(5, 3), setting(6, 3)))) == [Taken(3, 7, True)]
    assert speaker.journal.last.index == 10
    assert speaker.core.shown.committed == 6


def test_a_commit_index_moves_nothing_while_the_logs_were_not_compared(speaker: Speaker) -> None:
    assert speaker.hear(C, Append(4, 10, 10, 4, ())) == [Taken(4, 6, False)]
    assert speaker.core.shown.committed == 5


def test_a_new_leader_replaces_what_was_not_committed(speaker: Speaker) -> None:
    assert speaker.hear(C, Append(4, 7, 6, 3, (setting(7, 4),))) == [Taken(4, 8, True)]
    assert [(e.index, e.term) for e in speaker.journal.entries[-2:]] == [(6, 3), (7, 4)]
    assert speaker.core.shown.applied == 7


def test_a_leader_that_contradicts_what_is_committed_stops_this_server(speaker: Speaker) -> None:
    speaker.core.receive(B, spell(Append(3, 10, 10, 3, ())))
    with pytest.raises(InvariantBroken, match="committed here"):
        speaker.core.receive(C, spell(Append(4, 10, 6, 3, (setting(7, 4),))))


def test_a_snapshot_that_the_log_already_contains_takes_no_acknowledged_entry_away(speaker: Speaker) -> None:
    assert speaker.hear(B, Piece(3, 8, 3, 0, 5_000_000, b"first")) == [Taken(3, 9, True)]
    assert speaker.journal.last.index == 10
    assert speaker.core.shown.applied == 8


def test_entries_that_a_snapshot_shows_to_be_committed_are_acknowledged_only_on_the_disk(
    speaker: Speaker, tmp_path: Path
) -> None:
    speaker.said.clear()
    speaker.core.receive(B, spell(Append(3, 10, 10, 3, (setting(11, 3),), 7)))
    speaker.core.receive(B, spell(Piece(3, 11, 3, 0, 5_000_000, b"first")))
    assert speaker.said == []
    speaker.core.step()
    assert (tmp_path / "raft" / "journal").read_bytes().count(b"setting.set") == 7
    assert (B, Taken(3, 12, True, 7)) in speaker.said


def test_an_old_snapshot_is_not_asked_for_again(speaker: Speaker) -> None:
    speaker.hear(B, Append(3, 10, 10, 3, ()))
    assert speaker.hear(B, Piece(3, 4, 1, 0, 5_000_000, b"first")) == [Taken(3, 11, True)]


def test_nobody_hears_candidates_while_the_leader_is_alive(speaker: Speaker) -> None:
    assert speaker.hear(C, AskSupport(4, 99, 9)) == []
    assert speaker.hear(C, AskVote(4, 99, 9, False)) == []
    assert speaker.core.shown.term == 3


def test_a_silent_leader_frees_the_vote_which_is_given_once_and_only_to_a_full_log(speaker: Speaker) -> None:
    Speaker.now += 1.05
    assert speaker.hear(C, AskSupport(4, 9, 3)) == []
    assert speaker.hear(C, AskSupport(4, 10, 3)) == [Support(4)]
    assert speaker.hear(C, AskVote(4, 10, 3, False)) == [Vote(4)]
    assert speaker.hear(B, AskVote(4, 10, 3, False)) == []
    assert (speaker.journal.term, speaker.journal.vote) == (4, C)


def test_a_handed_over_lead_needs_no_silence(speaker: Speaker) -> None:
    assert speaker.hear(C, AskVote(4, 10, 3, True)) == [Vote(4)]


def test_whoever_asks_in_an_old_term_is_told_the_present_one(speaker: Speaker) -> None:
    assert speaker.hear(C, AskSupport(3, 99, 9)) == [Stale(3)]
    assert speaker.hear(C, AskVote(2, 99, 9, False)) == [Stale(3)]


def test_a_term_is_raised_only_with_support(speaker: Speaker) -> None:
    said = speaker.wait(5)
    assert AskSupport(4, 10, 3) in said
    assert not any(isinstance(message, AskVote) for message in said)
    assert speaker.core.shown.term == 3


def test_a_strangers_vote_counts_nothing(speaker: Speaker) -> None:
    speaker.wait(2.2)
    assert AskVote(4, 10, 3, False) in speaker.hear(C, Support(4))
    speaker.hear(ServerId("srv-x"), Vote(4))
    assert speaker.journal.last.index == 10


def test_a_leader_leads_when_its_own_entry_is_committed(speaker: Speaker) -> None:
    elect(speaker)
    before = [speaker.core.shown.leader]
    speaker.hear(C, Taken(3, 12, True))
    before.append(speaker.core.shown.leader)
    assert before == [None, None]
    speaker.hear(C, Taken(4, 12, True))
    assert (speaker.core.shown.leader, speaker.core.shown.applied, speaker.core.shown.majority) == (A, 11, True)


def test_an_answer_from_a_newer_term_ends_the_lead(speaker: Speaker) -> None:
    elect(speaker)
    speaker.hear(C, Stale(9))
    assert speaker.core.shown.term == 9
    assert speaker.core.shown.leader is None


def test_a_leader_that_hears_nobody_leads_no_longer(speaker: Speaker) -> None:
    elect(speaker)
    speaker.hear(C, Taken(4, 12, True))
    speaker.wait(1.7)
    assert speaker.core.shown.leader is None


def test_proposals_are_taken_by_leaders_only_and_only_if_they_are_commands(speaker: Speaker) -> None:
    good = setting(50, 1).command[1:]
    assert speaker.hear(C, Propose(7, good)) == [NotTaken(7)]
    elect(speaker)
    unknown = encode(Command("no.such", CommandId("cmd-1"), 0, "test", {}))
    for bad in (b"rubbish", unknown, good + b" " * 300_000):
        assert NotTaken(8) in speaker.hear(C, Propose(8, bad))
    assert not any(isinstance(message, NotTaken) for message in speaker.hear(C, Propose(9, good)))
    assert speaker.journal.last.command[1:] == good


def test_a_frame_that_is_no_message_is_dropped(speaker: Speaker) -> None:
    speaker.core.receive(B, b"\x80\x04\x95rubbish")
    assert speaker.core.shown.leader == B


def test_a_second_change_of_voters_waits_for_the_first(speaker: Speaker) -> None:
    with pytest.raises(Unavailable, match="does not lead"):
        speaker.core.remove_voter(B)
    elect(speaker)
    speaker.hear(C, Taken(4, 12, True))
    assert speaker.core.remove_voter(B) == (12, 4)
    with pytest.raises(Unavailable, match="not committed"):
        speaker.core.remove_voter(C)
    with pytest.raises(Unavailable, match="not committed"):
        speaker.core.remove_voter(B)
    speaker.hear(C, Taken(4, 13, True))
    assert speaker.core.remove_voter(B) is None
    assert speaker.core.shown.voters == (A, C)


def test_a_proposal_is_certain_to_have_failed_only_if_no_attempt_is_open() -> None:
    found: list[object] = []
    proposals = Proposals()
    proposal = Proposal(CommandId("cmd-1"), b"", found.append, began=0.0)
    proposals.add(proposal)
    assert isinstance(replace_open(proposals, proposal), Unavailable)
    [(_, attempt)] = proposals.due(B, 3, 1.0, here=False)
    assert proposals.due(B, 3, 1.1, here=False) == []
    assert isinstance(replace_open(proposals, proposal), OutcomeUnknown)
    proposals.not_taken(attempt, 1.2)
    assert isinstance(replace_open(proposals, proposal), Unavailable)
    assert proposals.due(B, 3, 1.3, here=False) == []
    assert len(proposals.due(B, 3, 1.5, here=False)) == 1
    assert len(proposals.due(C, 4, 1.5, here=False)) == 1
    proposals.leaderless(60.0)
    assert found == []
    proposals.applied(b"", Applied())
    assert found == [Applied()]
    assert not proposals


def replace_open(proposals: Proposals, proposal: Proposal) -> object:
    """Return what the asker would be told if it gave up now."""
    told = proposals.give_up(proposal)
    proposals.add(proposal)
    return told


def test_who_waits_for_a_leader_too_long_is_refused() -> None:
    found: list[object] = []
    proposals = Proposals()
    proposals.add(Proposal(CommandId("cmd-1"), b"", found.append, began=0.0))
    proposals.leaderless(0.5)
    assert found == []
    proposals.leaderless(1.5)
    assert isinstance(found[0], Unavailable)
    proposals.close()
    proposals.add(Proposal(CommandId("cmd-2"), b"", found.append, began=0.0))
    assert isinstance(found[1], Unavailable)


def test_a_server_alone_leads_at_once(tmp_path: Path) -> None:
    alone = Speaker(tmp_path, founder=True)
    for _ in range(3):
        alone.core.step()
    assert alone.core.shown == replace(alone.core.shown, leader=A, term=1, applied=3, majority=True, voters=(A,))
    alone.core.close()
    alone.store.close()


def test_of_two_that_canvass_at_once_with_equal_logs_the_lower_id_goes_first(speaker: Speaker) -> None:
    assert AskSupport(4, 10, 3) in speaker.wait(2.05)
    assert Support(4) not in speaker.hear(C, AskSupport(4, 10, 3))
    assert Support(4) in speaker.hear(C, AskSupport(4, 11, 3))


def test_a_candidate_that_does_not_win_stands_again_soon(speaker: Speaker) -> None:
    speaker.wait(2.2)
    assert AskVote(4, 10, 3, False) in speaker.hear(C, Support(4))
    assert AskSupport(5, 10, 3) in speaker.wait(0.6)


def test_a_leaders_answer_holds_for_those_who_waited_before_it_was_asked(speaker: Speaker) -> None:
    passed: list[object] = []
    speaker.core.barriers.add(Barrier(passed.append))
    [asked] = [message for message in speaker.wait(0.05) if isinstance(message, AskIndex)]
    speaker.core.barriers.add(late := Barrier(passed.append))
    speaker.hear(B, IndexIs(asked.attempt, 7))
    assert passed == []
    speaker.hear(B, Append(3, 7, 10, 3, ()))
    assert passed == [None]
    speaker.core.barriers.give_up(late)
    speaker.core.retire()
    assert passed == [None]


def test_a_leader_answers_a_reader_only_after_a_majority_spoke_since(speaker: Speaker) -> None:
    elect(speaker)
    assert not any(isinstance(said, IndexIs) for said in speaker.hear(C, AskIndex(1)))
    speaker.hear(C, Taken(4, 12, True))
    said = speaker.hear(C, AskIndex(2))
    assert not any(isinstance(one, IndexIs) for one in said)
    asked = max(one.round for one in said if isinstance(one, Append))
    assert IndexIs(2, 11) not in speaker.hear(C, Taken(4, 12, True, asked - 1))
    assert IndexIs(2, 11) not in speaker.hear(C, Taken(3, 12, True, asked))
    assert IndexIs(2, 11) in speaker.hear(C, Taken(4, 12, True, asked))


def test_a_learner_is_sent_entries_at_once_and_signs_of_life_less_often(speaker: Speaker) -> None:
    elect(speaker)
    speaker.hear(C, Taken(4, 12, True))
    learner = ServerId("srv-l")
    speaker.core.up(learner)
    speaker.core.feed(frozenset({A, B, C, learner}))
    speaker.wait(0.3)
    speaker.hear(learner, Taken(4, 12, True))
    assert speaker.core.progress[learner] <= speaker.core.progress[A] == 11
    for _ in range(3):
        speaker.said.clear()
        for _ in range(20):
            Speaker.now += 0.05
            speaker.core.receive(C, spell(Taken(4, 12, True)))
            speaker.core.step()
        heard = [server for server, message in speaker.said if isinstance(message, Append)]
        assert 1 <= heard.count(learner) <= 2 < heard.count(C)
    speaker.hear(C, Propose(1, setting(60, 1).command[1:]))
    speaker.core.step()
    assert any(server == learner and isinstance(m, Append) and m.entries for server, m in speaker.said)


def test_what_arrives_in_one_round_is_acknowledged_once(speaker: Speaker) -> None:
    speaker.said.clear()
    speaker.core.receive(B, spell(Append(3, 5, 10, 3, (setting(11, 3),), 7)))
    speaker.core.receive(B, spell(Append(3, 5, 11, 3, (setting(12, 3),), 8)))
    assert speaker.said == []
    assert speaker.journal.synced == 10
    speaker.core.step()
    assert speaker.said == [(B, Taken(3, 13, True, 8))]
    assert speaker.journal.synced == 12


def test_an_ack_for_a_leader_whose_term_is_over_is_not_sent(speaker: Speaker) -> None:
    speaker.said.clear()
    speaker.core.receive(B, spell(Append(3, 5, 10, 3, (setting(11, 3),))))
    speaker.core.receive(C, spell(Append(4, 5, 10, 3, (setting(11, 4),))))
    speaker.core.step()
    assert speaker.said == [(C, Taken(4, 12, True))]
