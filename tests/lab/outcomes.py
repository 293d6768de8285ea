"""What a change came to, for tests that expect a refusal."""

from kmgr.grid.envelope import Outcome, Rejected


def rejected(outcome: Outcome, code: str) -> str:
    """Return the words of a refusal; fail unless it was one with this code."""
    assert isinstance(outcome, Rejected), outcome
    assert outcome.code == code
    return outcome.detail
