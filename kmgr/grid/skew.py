"""Decide whether a server's clock differs from the others', from what their heartbeats said.

Nothing in the grid depends on the clocks agreeing; people do, who read times and
whose log-ins end at some. Pure.
"""

from collections.abc import Mapping
from statistics import median

from kmgr.grid.model import Vitals
from kmgr.ids import ServerId

# A heartbeat is this old at most when its time is compared.
FRESH_S = 5.0
MOST_MS = 10_000


def complaint(board: Mapping[ServerId, Vitals], *, server: ServerId, now: float) -> str:
    """Return what is wrong with this server's clock, empty if nothing or nobody to compare with.

    `clock_off_ms` in a heartbeat is how far the sender's clock was ahead of this one's when it arrived.
    """
    offs = [
        int(vitals.extra["clock_off_ms"])
        for other, vitals in board.items()
        if other != server and now - vitals.heard_at < FRESH_S and "clock_off_ms" in vitals.extra
    ]
    if not offs or abs(off := int(median(offs))) <= MOST_MS:
        return ""
    way = "behind" if median(offs) > 0 else "ahead of"
    others = "the other servers'" if len(offs) > 1 else "the other server's"
    return (
        f"this server's clock is {_spelled(off)} {way} {others}: set it (timedatectl shows whether it follows a time "
        "server)"
    )


def _spelled(milliseconds: int) -> str:
    seconds = abs(milliseconds) // 1000
    return f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"
