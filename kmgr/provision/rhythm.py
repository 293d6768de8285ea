"""When the next cycle of a safe copy is due, and when one that falls behind is told.

The age of a copy just before its next point is the pause and the time of a cycle
together: a third of the target is left for what takes longer than the last time.
A cycle that fails is tried again after 2, 4, 8 … seconds, at most `MOST_RETRY_S`.

Pure.
"""

LEAST_PAUSE_S = 5.0
FIRST_RETRY_S = 2.0
MOST_RETRY_S = 60.0
ALARM = 3


def pause_s(target_s: float, took_s: float) -> float:
    """Return how long to wait after a cycle that took so long."""
    return max(min(LEAST_PAUSE_S, target_s / 3), min(target_s / 3, 2 * target_s / 3 - took_s))


def retry_s(failures: int) -> float:
    """Return how long to wait after so many failures in a row."""
    return float(min(MOST_RETRY_S, FIRST_RETRY_S * 2 ** min(failures - 1, 10)))


def alarming(age_s: float, target_s: float) -> bool:
    """Tell whether a copy of this age, or a desktop without one for so long, is for a person to look after."""
    return age_s >= ALARM * target_s
