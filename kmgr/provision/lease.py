"""A server's right to run personal desktops, for the next few seconds.

Why two servers never run one. A lease begins when the log is asked (`t0`) and ends
`LEASE_S` later. It is granted only if the state that `barrier` led to says that
this server is running. Had its loss been committed before `t0`, that state would
say so; hence whoever sees the loss in the log sees it after `t0`, and who then
waits `TAKE_OVER_S` (`balancer.fencing`) begins `TAKE_OVER_S - LEASE_S` after the
lease has ended. In between, everything here that needs a lease is halted. No
wall clock is compared; monotonic clocks only have to run about equally fast.

A grid whose majority is away grants nothing: its servers' personal desktops are
halted, losing nothing, and go on when it is back. One of two voters goes on by its
tenure, for which `provision.tenure_rules` has another proof.
"""

import logging
from collections.abc import Callable

from kmgr.clock import Clock
from kmgr.errors import KmgrError
from kmgr.grid.model import RUNNING
from kmgr.grid.port import Grid
from kmgr.grid.queries import server
from kmgr.provision.model import Desktop
from kmgr.provision.queries import desktop as find_desktop

logger = logging.getLogger(__name__)

RENEW_S = 1.0
LEASE_S = 5.0
# Renewing and halting take their time too: a third of a lease between its end and the next owner's begin.
TAKE_OVER_S = 8.0
# What is begun needs so much of the lease to be left: a hypervisor takes a moment.
MARGIN_S = 1.5
_ASK_S = 2.0

_NO_MAJORITY = (
    "This server's personal desktops are halted: it does not reach a majority of the grid, and another server may be "
    "about to start them. They go on, with nothing lost, as soon as it does."
)


class Lease:
    """This server's lease. `run()` renews it; `told` hears of each new end (by the monotonic clock).

    `grid` is the log itself, never an island's stand-in. `tenured` tells whether no
    majority is needed now. `guarded` tells whether somebody halts the desktops should
    this process die: without, nothing is granted.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        clock: Clock,
        tenured: Callable[[], bool] = lambda: False,
        guarded: Callable[[], bool] = lambda: True,
        told: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._grid = grid
        self._clock = clock
        self._tenured = tenured
        self._guarded = guarded
        self._told = told
        self._until = 0.0
        self._why = ""

    def holds(self, margin_s: float = 0.0) -> bool:
        """Tell whether this server may run personal desktops now, and for `margin_s` more."""
        return self._clock.monotonic() + margin_s < self._until

    def covers(self, desktop: Desktop) -> bool:
        """Tell whether this is still the log's word about a desktop: whoever starts it may have read an older one.

        To be asked after `holds`: what the lease was granted on is in this view.
        """
        with self._grid.view() as db:
            now = find_desktop(db, desktop.id)
        return now is not None and (now.server, now.generation) == (self._grid.server, desktop.generation)

    def allows(self, desktop: Desktop) -> bool:
        """Tell whether a desktop may be let go on here now: a pooled one always, a personal one if both hold."""
        return not desktop.personal or (self.holds(MARGIN_S) and self.covers(desktop))

    @property
    def why_not(self) -> str:
        """Return why there is no lease, in a sentence for people; empty while there is one."""
        return "" if self.holds() else self._why or _NO_MAJORITY

    async def run(self) -> None:
        """Renew until cancelled."""
        while True:
            await self.renew()
            await self._clock.sleep(RENEW_S)

    async def renew(self) -> bool:
        """Ask for a new lease; True if it was granted."""
        asked = self._clock.monotonic()
        try:
            await self._grid.barrier(_ASK_S)
        except KmgrError:
            self._why = _NO_MAJORITY
            return self._tenured() and self._grant(self._clock.monotonic())
        with self._grid.view() as db:
            own = server(db, self._grid.server)
        if own is None or own.state not in RUNNING:
            state = "unknown" if own is None else own.state
            self._why = f"This server's personal desktops are halted: the grid counts it as {state}."
            return False
        return self._grant(asked)

    def _grant(self, asked: float) -> bool:
        if not self._guarded():
            self._why = (
                "This server's personal desktops are halted: the guard that would halt them if kmgr died does not "
                "run. See the log for why; kmgr starts it again by itself."
            )
            return False
        had = self.holds()
        self._until = asked + LEASE_S
        self._told(self._until)
        if not had:
            logger.info("this server may run personal desktops")
        return True
