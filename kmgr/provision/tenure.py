"""This server's tenure: asked for while it is one of two voters, given back before anybody may need it to be.

Its name is noted beside the lease, for a daemon that is started again, together
with this boot of the machine: what was running then may run on. After a power cut
nothing runs, and a majority is needed to begin.

All of it on the log itself, never on an island's stand-in.
"""

import logging
from pathlib import Path

from kmgr.clock import Clock
from kmgr.entropy import new_id
from kmgr.errors import KmgrError
from kmgr.grid.envelope import Applied
from kmgr.grid.model import ServerState
from kmgr.grid.port import Grid
from kmgr.grid.queries import server
from kmgr.provision.queries import tenure_of
from kmgr.provision.tenure_rules import Step, lasts, next_step, wanted

logger = logging.getLogger(__name__)

LOOK_S = 1.0
_NOTE = "tenure"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def this_boot() -> str:
    """Return what names this boot of the machine; empty if nothing does."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


class Tenure:
    """`run()` asks for it and gives it back; `lasts()` tells whether this server may go on by it now."""

    def __init__(self, grid: Grid, *, folder: Path, boot: str, clock: Clock) -> None:
        self._grid = grid
        self._note = folder / _NOTE
        self._boot = boot
        self._clock = clock
        self._mine = self._noted()

    def lasts(self) -> bool:
        """Tell whether this server may run its personal desktops without a majority."""
        known, state = self._known()
        return lasts(known, self._mine, state)

    async def run(self) -> None:
        """Look once a second, until cancelled."""
        while True:
            try:
                await self.step()
            except (KmgrError, OSError) as error:
                logger.debug("the tenure was not changed", extra={"cause": str(error)})
            await self._clock.sleep(LOOK_S)

    async def step(self) -> None:
        """Propose what is due."""
        known, state = self._known()
        needed = wanted(self._grid.server, state, self._grid.status().voters)
        match next_step(known, self._mine, wanted=needed):
            case Step.BEGIN:
                await self._begin()
            case Step.GIVE_BACK:
                await self._give_back(known)
            case Step.NOTHING:
                pass

    async def _begin(self) -> None:
        if not self._mine:
            # Noted before it is asked for: it may be granted without this life's hearing of it.
            self._mine = new_id("tenure")
            self._write()
        body = {"server": self._grid.server, "tenure": self._mine}
        if isinstance(await self._grid.propose("tenure.begin", body, by=self._grid.server), Applied):
            logger.info("this server is one of two voters: its personal desktops go on also without the other one")

    async def _give_back(self, known: str) -> None:
        given, self._mine = known or self._mine, ""
        # Forgotten for good before anybody hears of it, also by a later life of this daemon.
        self._note.unlink(missing_ok=True)
        body = {"server": self._grid.server, "tenure": given}
        await self._grid.propose("tenure.give_back", body, by=self._grid.server)
        logger.info("this server's personal desktops need a majority from now on")

    def _known(self) -> tuple[str, ServerState | None]:
        with self._grid.view() as db:
            own = server(db, self._grid.server)
            return tenure_of(db, self._grid.server), None if own is None else own.state

    def _noted(self) -> str:
        try:
            name, _, boot = self._note.read_text().partition(" ")
        except (OSError, ValueError):
            return ""
        return name if boot and boot == self._boot else ""

    def _write(self) -> None:
        partial = self._note.with_suffix(".new")
        partial.write_text(f"{self._mine} {self._boot}")
        partial.replace(self._note)
