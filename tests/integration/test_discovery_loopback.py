"""mDNS for real, on the loopback interface."""

import asyncio

from kmgr.clock import ManualClock
from kmgr.grid.discovery import LOOK_S, Announcement, Announcer, browse
from tests.lab.raft_lab import eventually

LOOPBACK = ["127.0.0.1"]


async def test_two_servers_announce_a_grid_and_a_third_finds_it_until_one_leaves() -> None:
    servers = [
        Announcement("grid-t1", "loopback grid", f"srv-t{n}", f"t{n}", f"127.0.0.1:{9000 + n}", "1") for n in (1, 2)
    ]
    announcers = [Announcer(interfaces=LOOPBACK) for _ in servers]
    await asyncio.gather(*(a.announce(s) for a, s in zip(announcers, servers, strict=True)))
    try:
        found = await browse(2.5, interfaces=LOOPBACK)
        grid = next(grid for grid in found.grids if grid.grid == "grid-t1")
        assert grid.servers == tuple(servers)
        await announcers[0].stop()
        found = await browse(2.5, interfaces=LOOPBACK)
        grid = next(grid for grid in found.grids if grid.grid == "grid-t1")
        assert grid.servers == (servers[1],)
    finally:
        for announcer in announcers:
            await announcer.stop()


async def test_a_server_that_starts_before_its_network_is_announced_once_it_is_there() -> None:
    clock, announcer = ManualClock(), Announcer()
    here = ["203.0.113.77"]
    address = "127.0.0.1:9101"

    def what() -> Announcement:
        return Announcement("grid-t2", "late grid", "srv-t9", "t9", address, "1")

    async def found() -> list[str]:
        grids = (await browse(2.5, interfaces=LOOPBACK)).grids
        return [one.grid_address for grid in grids for one in grid.servers if grid.grid == "grid-t2"]

    running = asyncio.create_task(
        announcer.run(what, clock=clock, addresses=lambda: tuple(here), interfaces=lambda _: here)
    )
    try:
        await clock.advance(LOOK_S)
        assert "cannot look for others" in announcer.problem
        # The network comes up; nothing else is told to the announcer.
        here[:] = LOOPBACK
        await clock.advance(LOOK_S)
        await eventually(lambda: not announcer.problem)
        assert await found() == ["127.0.0.1:9101"]
        # Later the machine is given another address.
        address = "127.0.0.1:9102"
        await clock.advance(LOOK_S)
        await asyncio.sleep(3)
        assert await found() == ["127.0.0.1:9102"]
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await announcer.stop()
