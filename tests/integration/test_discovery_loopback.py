"""mDNS for real, on the loopback interface."""

import asyncio

from kmgr.grid.discovery import Announcement, Announcer, browse

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
