"""Warnings about what others send: one at a time, and then how many more there were, however much comes.

A member of another build, or a hostile one, must not fill the disk with log lines.
"""

import logging
from collections import Counter

from kmgr.ids import ServerId

# Between two warnings of the same words about the same server.
GAP_S = 60.0


class Complaints:
    """Warns through `logger`, at most once a minute for each server and sentence."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._told: dict[tuple[ServerId, str], float] = {}
        self._more: Counter[tuple[ServerId, str]] = Counter()

    def warn(self, sentence: str, server: ServerId, cause: str, *, now: float) -> None:
        """Warn now, or count it for the next warning."""
        about = server, sentence
        told = self._told.get(about)
        if told is not None and now - told < GAP_S:
            self._more[about] += 1
            return
        self._told[about] = now
        more = self._more.pop(about, 0)
        self._logger.warning(sentence, extra={"server": server, "cause": cause, "more_since_the_last": more})
