"""Asking a desktop's server, from any server's page, whether its user is still there, and saying that they are."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientWebSocketResponse

from kmgr.grid.queries import events
from kmgr.provision.attendance import MESSAGE_S
from tests.lab.people import SERVERS
from tests.lab.web_lab import ADMIN, OTHER, USER, Site, WebLab
from tests.unit.test_provision_rfb_input import HANDSHAKE, KEY
from tests.unit.test_web_api import good, refused
from tests.unit.test_web_console import act
from tests.unit.test_web_desktops import ended, mine, open_screen, ticket

RULE = {"idle_s": 600, "idle_warning_s": 60}


@pytest.fixture
async def far(lab: WebLab) -> Site:
    """The portal of another server than the desktop's."""
    return await lab.site(SERVERS[1])


@asynccontextmanager
async def looked_at(lab: WebLab, far: Site, **policy: Any) -> AsyncIterator[tuple[str, ClientWebSocketResponse]]:
    """Let the user open their desktop's screen under a policy."""
    await lab.office.do("template.update", template="tpl-office", policy=policy)
    desktop = await mine(lab, far)
    async with await lab.running(desktop):
        socket = await open_screen(far, await ticket(far, desktop))
        await socket.send_bytes(HANDSHAKE)
        await socket.receive_bytes()
        yield desktop, socket
        await socket.close()


async def asked(far: Site, desktop: str, method: str = "GET", who: str = USER) -> dict[str, Any]:
    status, told = await far.ask(method, f"/desktops/{desktop}/attention", who=who)
    assert status == 200, told
    return dict(told)


async def pass_(lab: WebLab, seconds: float) -> None:
    await lab.clock.advance(seconds, settle=2)
    await lab.attendances[SERVERS[0]].run_once()
    await asyncio.sleep(0)


async def test_without_a_rule_there_is_nothing_to_say(lab: WebLab, far: Site) -> None:
    async with looked_at(lab, far) as (desktop, _):
        assert await asked(far, desktop) == {
            "idleness": "no_rule", "left_s": 0, "again_s": 0, "then": "disconnect", "text": "",
            "farewell": "", "message": "",
        }  # fmt: skip


async def test_that_its_server_drains_and_when_it_ends_is_told_until_it_is_undrained(lab: WebLab, far: Site) -> None:
    async with looked_at(lab, far) as (desktop, _):
        server = SERVERS[0]
        await lab.office.do("server.drain", server=server)
        await lab.office.do("drain.notice", server=server, minutes=30)
        assert not (await asked(far, desktop))["farewell"]
        await lab.office.do("drain.tell", desktop=desktop, generation=1, server=server)
        assert "the desktop ends at" in (await asked(far, desktop))["farewell"]
        await lab.office.do("server.undrain", server=server)
        assert not (await asked(far, desktop))["farewell"]


async def test_a_warning_comes_and_the_button_takes_it_away(lab: WebLab, far: Site) -> None:
    async with looked_at(lab, far, **RULE) as (desktop, socket):
        told = await asked(far, desktop)
        assert (told["idleness"], told["left_s"], told["again_s"]) == ("active", 600, 540)
        await pass_(lab, 560)
        told = await asked(far, desktop)
        assert (told["idleness"], told["left_s"]) == ("warned", 40)
        assert "for 10 minutes, its screen closes; you are warned 1 minute before" in told["text"]
        assert (await asked(far, desktop, "POST"))["left_s"] == 600
        await pass_(lab, 599)
        assert not socket.closed


async def test_a_key_on_the_screen_takes_it_away_too(lab: WebLab, far: Site) -> None:
    async with looked_at(lab, far, **RULE) as (desktop, socket):
        await pass_(lab, 560)
        await socket.send_bytes(KEY)
        await socket.receive_bytes()
        assert (await asked(far, desktop))["left_s"] == 600


async def test_in_the_end_the_screen_closes_and_the_page_is_told_why(lab: WebLab, far: Site) -> None:
    async with looked_at(lab, far, **RULE, keep_s=900) as (desktop, socket):
        await pass_(lab, 601)
        await ended(socket)
        told = await asked(far, desktop)
        assert (told["idleness"], told["text"]) == (
            "closed",
            "Nobody did anything at it for 10 minutes. It is kept for you for 15 minutes.",
        )


async def test_only_its_user_can_say_that_they_are_there(lab: WebLab, far: Site) -> None:
    async with looked_at(lab, far, **RULE) as (desktop, _):
        for who, code in ((OTHER, 404), (ADMIN, 403)):
            assert (await far.ask("POST", f"/desktops/{desktop}/attention", who=who))[0] == code


async def test_a_server_that_is_away_is_said(lab: WebLab, far: Site) -> None:
    async with looked_at(lab, far, **RULE) as (desktop, _):
        lab.network.down.add(SERVERS[0])
        assert (await far.ask("GET", f"/desktops/{desktop}/attention", who=USER))[0] == 503


async def test_an_administrator_tells_whoever_works_on_a_desktop_something(lab: WebLab, far: Site) -> None:
    async with looked_at(lab, far) as (desktop, _):
        at = f"/desktops/{desktop}/message"
        assert (await asked(far, desktop))["message"] == ""
        told = await good(far, "POST", at, {"text": "The printer is back."})
        assert told == {"user": USER, "why_not_in_guest": "this server asks no guests", "page": True}
        assert (await asked(far, desktop))["message"] == "The printer is back."
        assert "on the page of its screen" in await act(far, at, text="Good night.")
        assert (await asked(far, desktop))["message"] == "Good night."
        with lab.grid().view() as db:
            texts = [(event.by, event.text) for event in events(db, subject=desktop)]
        name = (await good(far, "GET", f"/desktops/{desktop}"))["name"]
        assert (ADMIN, f"a message to {USER} on desktop {name}: Good night.") in texts
        assert (await far.ask("POST", at, {"text": "x"}, who=USER))[0] == 403
        assert "text" in await refused(far, 400, "POST", at, {"text": "x" * 501})
        assert "Send a message" in (await far.page(f"/console/desktops/{desktop}", who=ADMIN)).text
        assert "The history keeps it" in (await far.page(f"/console{at}", who=ADMIN)).text
        await pass_(lab, MESSAGE_S + 1)
        assert (await asked(far, desktop))["message"] == "", "what is an hour old is no news"


async def test_a_message_to_nobody_is_refused(lab: WebLab, far: Site) -> None:
    desktop = await lab.office.standby()
    assert "Nobody works on" in await refused(far, 409, "POST", f"/desktops/{desktop}/message", {"text": "Hello?"})
