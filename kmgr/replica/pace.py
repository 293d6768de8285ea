"""How patient copies are.

Pure.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """How patient a copy is, in seconds, and how much of it (in pieces) a power cut may cost.

    Every `look_s` other sources are looked for; one that broke is tried again soon,
    later each time, at most `pause_s`; one that owes something and is silent for `silence_s`
    counts as broken; after `patience_s` without any source for what is missing the
    copy rests, so that other versions get their turn. A source of which nothing is wanted is told every `here_s` that
    somebody is there.
    """

    look_s: float = 1.0
    pause_s: float = 5.0
    patience_s: float = 15.0
    silence_s: float = 20.0
    flush_pieces: int = 64
    here_s: float = 5.0


PACE = Pace()
