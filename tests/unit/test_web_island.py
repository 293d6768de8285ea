"""What portal, console and API say and do at a server that goes on by itself."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from kmgr.grid.island import IslandGrid
from kmgr.provision.timely import at_once
from kmgr.registry import APPLIERS, ISLAND, SCHEMAS
from kmgr.users.broker import Broker
from kmgr.users.directories import directories_of
from kmgr.users.sessions import Sessions
from kmgr.web.app import make_app
from kmgr.web.services import Services
from tests.lab.people import RIGHT, SERVERS
from tests.lab.web_lab import ADMIN, USER, Site, WebLab


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[WebLab]:
    lab = WebLab(tmp_path)
    await lab.open()
    yield lab
    await lab.close()


@pytest.fixture
async def island(lab: WebLab, tmp_path: Path) -> AsyncIterator[IslandGrid]:
    grid = IslandGrid(
        lab.grid(),
        folder=tmp_path / "island",
        schemas=SCHEMAS,
        appliers=APPLIERS,
        rules=ISLAND,
        clock=lab.clock,
        blocking=at_once,
    )
    await grid.start()
    await lab.office.standby()
    running = asyncio.create_task(grid.run())
    yield grid
    running.cancel()
    await grid.stop()


@pytest.fixture
async def site(lab: WebLab, island: IslandGrid) -> Site:
    def make(services: Services) -> web.Application:
        sessions = Sessions(island, directories_of(island), clock=lab.clock)
        return make_app(replace(services, grid=island, sessions=sessions, broker=Broker(island, clock=lab.clock)))

    return await lab.site(make=make)


async def cut_off(lab: WebLab, island: IslandGrid) -> None:
    lab.office.log.cut_off |= set(SERVERS[1:])
    await lab.clock.advance(15)
    assert island.status().island


async def test_people_log_in_and_get_desktops_while_configuration_waits(
    lab: WebLab, island: IslandGrid, site: Site
) -> None:
    await lab.token(ADMIN)
    await cut_off(lab, island)
    status, said = await site.ask("POST", "/sessions", {"user": USER, "password": RIGHT})
    assert status in (200, 201), said
    own = {"Authorization": f"Bearer {said['token']}"}
    status, said = await site.ask("POST", "/desktops", {"template": "office"}, headers=own)
    assert status in (200, 201), said
    status, said = await site.ask("PATCH", "/settings", {"login_tries": 9}, who=ADMIN)
    assert (status, said["error"]["code"]) == (503, "island")
    assert "a majority is back" in said["error"]["message"]
    _, known = await site.ask("GET", "/status")
    assert (known["majority"], known["island"]) == (False, True)
    assert known["island_since"] is not None


async def test_the_console_says_what_goes_on_and_what_waits(lab: WebLab, island: IslandGrid, site: Site) -> None:
    await lab.token(ADMIN)
    whole = (await site.page("/console", who=ADMIN)).text
    assert 'id="majority"' not in whole
    await cut_off(lab, island)
    page = (await site.page("/console", who=ADMIN)).text
    assert "This server is on its own: it lost the majority" in page
    assert "Changes of the configuration wait until a majority is back" in page
    assert "docs/operating.md" in page
