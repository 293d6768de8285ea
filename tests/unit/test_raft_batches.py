"""When proposals go into the log, who has a turn, and what leaves first."""

import pytest

from kmgr.grid.raft.batches import GATHER_S
from kmgr.grid.raft.core import NEWS_S
from kmgr.grid.raft.messages import (
    Append,
    NotTaken,
    Propose,
    Stale,
    Taken,
)
from tests.lab.core_lab import B, C, Speaker, elect, own_change, setting


def test_proposals_wait_for_the_entries_that_are_under_way_but_not_long(speaker: Speaker) -> None:
    elect(speaker)
    speaker.hear(C, Taken(4, 12, True))
    first, second, third = (setting(index, 1).command[1:] for index in (50, 51, 52))
    speaker.hear(C, Propose(1, first))
    assert speaker.journal.last.index == 12
    speaker.hear(C, Propose(2, second))
    speaker.hear(B, Propose(3, third))
    assert speaker.journal.last.index == 12
    speaker.hear(C, Taken(4, 13, True))
    speaker.core.step()
    assert speaker.journal.last.index == 14
    speaker.hear(C, Propose(4, setting(53, 1).command[1:]))
    assert speaker.journal.last.index == 14
    speaker.wait(0.05)
    assert speaker.journal.last.index == 15


def test_who_asks_at_the_leader_has_a_turn_beside_those_who_ask_elsewhere(speaker: Speaker) -> None:
    elect(speaker)
    speaker.hear(C, Taken(4, 12, True))
    speaker.hear(C, Propose(1, setting(50, 1).command[1:]))
    answered = own_change(speaker, 51)
    speaker.hear(B, Propose(2, setting(52, 1).command[1:]))
    # The batch is committed, and the next one takes both on.
    speaker.hear(C, Taken(4, 13, True))
    speaker.core.step()
    assert speaker.journal.last.index == 14
    speaker.hear(C, Taken(4, 15, True))
    speaker.core.step()
    assert len(answered) == 1


def test_while_several_ask_at_once_batches_are_gathered_and_one_asker_alone_never_waits(speaker: Speaker) -> None:
    elect(speaker)
    speaker.hear(C, Taken(4, 12, True))
    for index in range(50, 53):
        own_change(speaker, index)
    speaker.core.step()
    assert speaker.journal.last.index == 14
    own_change(speaker, 53)
    speaker.hear(C, Taken(4, 15, True))
    assert speaker.journal.last.index == 14
    speaker.core.told()
    assert speaker.core.step() == pytest.approx(GATHER_S)
    Speaker.now += 1.01 * GATHER_S
    speaker.core.step()
    assert speaker.journal.last.index == 15
    # That batch had one entry: the next one begins as soon as it is committed.
    own_change(speaker, 54)
    speaker.hear(C, Taken(4, 16, True))
    assert speaker.journal.last.index == 16


def test_what_waited_leaves_before_the_entries_that_it_waited_for_are_applied(speaker: Speaker) -> None:
    elect(speaker)
    speaker.hear(C, Taken(4, 12, True))
    for index in (50, 51):
        speaker.hear(C, Propose(index, setting(index, 1).command[1:]))
    before = speaker.applied_when_said
    said = speaker.hear(C, Taken(4, 13, True))
    assert [(one.commit, len(one.entries)) for one in said if isinstance(one, Append)] == [(12, 1)]
    assert speaker.applied_when_said == before
    assert speaker.core.shown.applied == 12


def _committed_here(speaker: Speaker) -> None:
    """A change of an asker here is committed, and the asker was answered, but nobody else was told."""
    elect(speaker)
    speaker.hear(C, Taken(4, 12, True))
    speaker.wait(0.05)
    first = own_change(speaker, 50)
    speaker.core.step()
    assert [one for one in speaker.hear(C, Taken(4, 13, True)) if isinstance(one, Append)] == []
    assert len(first) == 1


def _news(speaker: Speaker) -> list[tuple[int, int]]:
    return [(one.commit, len(one.entries)) for _, one in speaker.said if isinstance(one, Append)]


def test_others_hear_the_news_when_the_askers_here_have_taken_their_answers(speaker: Speaker) -> None:
    _committed_here(speaker)
    assert speaker.core.step() == pytest.approx(NEWS_S)
    assert _news(speaker) == []
    assert speaker.core.told()
    assert speaker.core.step() > 0
    assert _news(speaker) == [(12, 0)] * 2
    assert not speaker.core.told()


def test_a_busy_loop_keeps_the_news_from_others_for_a_moment_only(speaker: Speaker) -> None:
    _committed_here(speaker)
    Speaker.now += 1.01 * NEWS_S
    speaker.core.step()
    assert _news(speaker) == [(12, 0)] * 2


def test_news_go_with_entries_that_leave_anyway(speaker: Speaker) -> None:
    elect(speaker)
    speaker.hear(C, Taken(4, 12, True))
    speaker.wait(0.05)
    own_change(speaker, 50)
    speaker.core.step()
    speaker.hear(C, Taken(4, 13, True))
    own_change(speaker, 51)
    speaker.core.step()
    speaker.core.step()
    assert [(one.commit, len(one.entries)) for _, one in speaker.said if isinstance(one, Append)] == [(12, 1)] * 2


def test_news_that_another_server_waits_for_leave_at_once(speaker: Speaker) -> None:
    elect(speaker)
    speaker.hear(C, Taken(4, 12, True))
    speaker.wait(0.05)
    for index in (12, 13):
        speaker.hear(C, Propose(index, setting(index + 40, 1).command[1:]))
        speaker.hear(B, Taken(4, index + 1, True))
        assert [one.commit for server, one in speaker.said if server == C and isinstance(one, Append)] == [index]


def test_a_proposal_that_waited_is_refused_when_the_lead_is_lost(speaker: Speaker) -> None:
    elect(speaker)
    speaker.hear(C, Taken(4, 12, True))
    speaker.hear(C, Propose(1, setting(50, 1).command[1:]))
    speaker.hear(C, Propose(2, setting(51, 1).command[1:]))
    assert NotTaken(2) in speaker.hear(C, Stale(5))
    assert speaker.journal.last.index == 12
