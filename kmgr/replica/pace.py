"""How patient copies are.

Pure.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """How patient a copy is, in seconds, and how much of it (in pieces) a kill may cost.

    Every `look_s` the sources are asked what they have by now; one that broke is
    tried again after `pause_s`; after `patience_s` without any source for what is
    missing the copy rests, so that other versions get their turn.
    """

    look_s: float = 1.0
    pause_s: float = 5.0
    patience_s: float = 15.0
    flush_pieces: int = 64


PACE = Pace()
