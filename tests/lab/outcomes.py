"""What a change came to, for tests that expect the one or the other."""

from kmgr.grid.envelope import Applied, Outcome, Rejected


def good(outcome: Outcome) -> Applied:
    """Return what was applied; fail if it was rejected."""
    assert isinstance(outcome, Applied), outcome
    return outcome


def why(outcome: Outcome) -> str:
    """Return the words of a refusal; fail if there was none."""
    assert isinstance(outcome, Rejected), outcome
    return outcome.detail


def rejected(outcome: Outcome, code: str) -> str:
    """Return the words of a refusal; fail unless it was one with this code."""
    assert isinstance(outcome, Rejected), outcome
    assert outcome.code == code
    return outcome.detail
