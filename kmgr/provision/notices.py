"""Decide what users of this server's desktops are told because it drains: to leave, again before the end, or to stay.

Pure. Memory only: after a restart of the daemon people are told once more.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kmgr.ids import DesktopId
from kmgr.provision.model import Desktop, DesktopState, Leaving

# With so many seconds left they are told again.
_AGAIN_S = (300, 60)
STAY = "The server of this desktop stays in service after all: you can go on working."


@dataclass(frozen=True, slots=True)
class _Told:
    generation: int
    until: int
    step: int


class Notices:
    """Who was told what. `words` makes the sentence of one that has to leave."""

    def __init__(self) -> None:
        self._told: dict[DesktopId, _Told] = {}

    def due(
        self,
        here: Sequence[Desktop],
        leaving: Mapping[DesktopId, Leaving],
        words: Callable[[Leaving], str],
        *,
        now_ms: int,
    ) -> Iterator[tuple[Desktop, str]]:
        """Yield who is told what now."""
        before, self._told = self._told, {}
        for desktop in here:
            if desktop.state is not DesktopState.IN_USE:
                continue
            one, known = leaving.get(desktop.id), before.get(desktop.id)
            if known is not None and known.generation != desktop.generation:
                known = None
            if one is None or one.generation != desktop.generation:
                if known is not None and desktop.moving_to is None:
                    yield desktop, STAY
                continue
            left_s = (one.until - now_ms) / 1000
            now = _Told(one.generation, one.until, sum(left_s <= again for again in _AGAIN_S))
            self._told[desktop.id] = now
            if now != known:
                yield desktop, words(one)
