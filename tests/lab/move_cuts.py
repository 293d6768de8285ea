"""Two servers between which a desktop moves, of which one dies at the k-th thing it does (`cut_points`)."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kmgr.clock import ManualClock
from kmgr.errors import Unavailable
from kmgr.grid.local import LocalGrid, LocalRequests
from kmgr.grid.port import Stream
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.hypervisor import DomainState
from tests.lab.cut_points import Cut, Cuttable, CuttableGrid, Knife
from tests.lab.moving import Movers, Side
from tests.lab.provision import A, B

D1 = DesktopId("dsk-1")
_STEP_S = 0.1


class CuttableRequests(Cuttable):
    """What a daemon under the knife says to others, and answers them: a dead one hangs up."""

    def __init__(self, inner: LocalRequests, knife: Knife) -> None:
        super().__init__(inner, knife)
        self._port = inner
        self._dies = knife

    async def open(self, *values: Any, **named: Any) -> Stream:
        """Open a stream; it closes with a process that dies in this moment."""
        self._dies.moment("before open")
        stream = await self._port.open(*values, **named)
        try:
            self._dies.moment("after open")
        except Cut:
            stream.writer.close()
            raise
        return stream

    def serve(self, op: str, handler: Callable[..., Any]) -> None:
        """Answer as long as it lives."""
        self._port.serve(op, self._mortal(handler))

    def serve_stream(self, op: str, handler: Callable[..., Any]) -> None:
        """Take streams as long as it lives."""
        self._port.serve_stream(op, self._mortal(handler))

    def _mortal(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        async def answer(*asked: Any) -> Any:
            try:
                if not self._dies.dead:
                    return await handler(*asked)
            except Cut:
                pass
            raise Unavailable("it hung up")

        return answer


class MortalSide(Side):
    """A server whose daemon is under the knife."""

    knife = Knife()

    def outward(self, part: Any) -> Any:
        """Return it under the present knife."""
        if isinstance(part, LocalGrid):
            return CuttableGrid(part, self.knife)
        if isinstance(part, LocalRequests):
            return CuttableRequests(part, self.knife)
        return Cuttable(part, self.knife)

    def restart_under(self, knife: Knife) -> None:
        """Be another daemon, under this knife."""
        self.knife = knife
        self.restart()


class MoveTable(Movers):
    """The office of `Movers` on a clock moved by hand: `dsk-1` is anna's, on a, and goes to b."""

    side = MortalSide
    a: MortalSide
    b: MortalSide

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        super().__init__(folder, clock=ManualClock())

    async def until(self, holds: Callable[[], Any], limit_s: float = 30.0) -> None:
        """Let time pass until something holds, a coroutine's answer included."""
        for _ in range(round(limit_s / _STEP_S)):
            told = holds()
            if await told if asyncio.iscoroutine(told) else told:
                return
            await self.live(_STEP_S)
        raise AssertionError(f"it did not come about within {limit_s:g} s")

    async def live(self, seconds: float) -> None:
        """Let time pass."""
        clock = self.real
        assert isinstance(clock, ManualClock)
        for _ in range(round(seconds / _STEP_S)):
            await clock.advance(_STEP_S)

    def one_of(self, server: ServerId) -> MortalSide:
        """Return one server."""
        return self.a if server == A else self.b

    async def under(self, server: ServerId, knife: Knife) -> None:
        """Put a server's daemon under this knife."""
        side = self.one_of(server)
        await side.kill()
        side.restart_under(knife)
        side.start()

    async def moments(self, server: ServerId) -> list[int]:
        """Let it move undisturbed; return the moments of a server's daemon that are unlike all before them."""
        knife = Knife(world=self.world)
        await self.under(server, knife)
        knife.told.clear()
        await self.move()
        await self.until(self.rests)
        return sorted(knife.told.values())

    async def die_at(self, server: ServerId, moment: int) -> None:
        """Let it move, and a server's daemon die at that moment, and another one begin."""
        knife = Knife(moment)
        await self.under(server, knife)
        await self.move()
        await self.until(lambda: knife.dead)
        await self.under(server, Knife())

    def world(self) -> object:
        """Return what a daemon that dies now leaves behind, on both servers and in the log."""
        now = self.one(D1)
        found = tuple(
            (
                *((one, domain.spec.generation, domain.state) for one, domain in side.hypervisor._domains.items()),
                *(side.disk(D1).exists(), D1 in side.migrations.lent),
            )
            for side in (self.a, self.b)
        )
        return (now.server, now.generation, now.moving_to), found

    async def rests(self) -> bool:
        """Tell whether it runs on one server and nothing of it is left on the other, nor on its way."""
        return not await self.wrong()

    async def wrong(self) -> list[str]:
        """Say what is not as it should be at last."""
        now = self.one(D1)
        found = [] if now.moving_to is None else [f"it still goes to {now.moving_to}"]
        if (now.server, now.generation) not in ((A, 1), (B, 2)) or (now.user, now.state) != ("anna", "in_use"):
            found.append(f"the log has it on {now.server}, generation {now.generation}, {now.state} of {now.user}")
        for side in (self.a, self.b):
            states = {one.desktop: (one.state, one.generation) for one in await side.hypervisor.domains()}
            right = {D1: (DomainState.RUNNING, now.generation)} if side.server == now.server else {}
            if states != right:
                found.append(f"on {side.server} there is {states}, not {right}")
            if side.disk(D1).exists() != (side.server == now.server):
                found.append(f"on {side.server} the disk is {'there' if side.disk(D1).exists() else 'not there'}")
            if side.migrations.lent:
                found.append(f"{side.server} still lends its disk")
            sockets = [path.name for path in (side.folder / "run").iterdir() if path.suffix in (".move", ".disk")]
            found += [f"{side.server} still has {name}" for name in sockets]
        return found
