"""Events in memory, for tests and simulations: they ship beside the hypervisor in memory.

`tell` makes one, `break_off` ends the connection, `down` keeps it from being made anew.
"""

import asyncio
from collections.abc import AsyncIterator

from kmgr.errors import Unavailable
from kmgr.ids import DesktopId
from kmgr.provision.happening import Happening, What


class FakeEvents:
    """Events that a test tells."""

    def __init__(self) -> None:
        self.down = ""
        self.connections = 0
        self._told: asyncio.Queue[Happening | None] = asyncio.Queue()

    async def happenings(self) -> AsyncIterator[Happening]:
        """Yield what is told."""
        if self.down:
            raise Unavailable(self.down)
        self.connections += 1
        self._told = asyncio.Queue()
        yield Happening(What.LISTENING)
        while (happening := await self._told.get()) is not None:
            yield happening
        raise Unavailable("the connection to libvirt broke off")

    def tell(self, what: What, desktop: DesktopId) -> None:
        """Something happens to a domain."""
        self._told.put_nowait(Happening(what, desktop))

    def break_off(self) -> None:
        """The connection breaks."""
        self._told.put_nowait(None)

    async def close(self) -> None:
        """Nothing to let go of."""
