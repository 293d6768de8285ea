"""Open pages hear what happens: soon, not too often, and never longer than they may."""

import asyncio
import json

from aiohttp import ClientResponse

from kmgr.web.live import HUB, LEAST_GAP_S, VITALS_S, Listener
from tests.lab.people import SERVERS
from tests.lab.web_lab import ADMIN, USER, Site, WebLab


class Feed:
    """An open page's connection: events as they arrive."""

    def __init__(self, answer: ClientResponse) -> None:
        self.answer = answer

    async def next(self) -> str:
        """Return the next block."""
        async with asyncio.timeout(5):
            return (await self.answer.content.readuntil(b"\n\n")).decode().strip()

    async def quiet(self) -> bool:
        """Tell whether nothing comes for a moment."""
        try:
            async with asyncio.timeout(0.1):
                await self.answer.content.readuntil(b"\n\n")
        except TimeoutError:
            return True
        return False


async def feed(site: Site, who: str = USER) -> Feed:
    await site.lab.token(who)
    for _ in range(2):  # the hub hears of the session, then waits its gap
        await site.lab.clock.advance(LEAST_GAP_S)
    answer = await site.client.get("/api/v1/live", headers=await site.cookie(who))
    assert (answer.status, answer.content_type) == (200, "text/event-stream")
    found = Feed(answer)
    assert (await found.next()).startswith("retry: ")
    applied = site.lab.grid().status().applied
    assert await found.next() == f'event: state\ndata: {{"applied": {applied}}}'
    return found


def applied_in(block: str) -> int:
    kind, _, data = block.partition("\ndata: ")
    assert kind == "event: state"
    return int(json.loads(data)["applied"])


async def test_a_page_hears_that_the_log_moved(lab: WebLab, site: Site) -> None:
    found = await feed(site)
    await lab.office.do("setting.set", name="login_tries", value=9)
    assert applied_in(await found.next()) == lab.grid().status().applied


async def test_many_changes_are_few_events_and_the_last_one_is_told(lab: WebLab, site: Site) -> None:
    found = await feed(site)
    for value in range(10, 60):
        await lab.office.do("setting.set", name="login_tries", value=value)
    last, told = lab.grid().status().applied, [applied_in(await found.next())]
    while told[-1] < last:
        await lab.clock.advance(0.25)
        told.append(applied_in(await found.next()))
    assert told == sorted(set(told))
    assert len(told) <= 3


async def test_a_page_hears_of_heartbeats_at_most_twice_a_second(lab: WebLab, site: Site) -> None:
    found = await feed(site)
    await lab.clock.advance(1)
    assert await found.quiet()
    for _ in range(5):
        lab.boards[SERVERS[0]].put(lab.vitals(SERVERS[1], load_percent=50))
    await lab.clock.advance(VITALS_S)
    assert await found.next() == "event: vitals\ndata: {}"
    await lab.clock.advance(1)
    assert await found.quiet()


async def test_a_quiet_feed_is_kept_open_by_comments(lab: WebLab, site: Site) -> None:
    found = await feed(site)
    await lab.clock.advance(15)
    assert await found.next() == ": still here"


async def test_the_feed_ends_with_the_session(lab: WebLab, site: Site) -> None:
    found = await feed(site)
    assert (await site.ask("DELETE", "/sessions/current", who=USER))[0] == 204
    async with asyncio.timeout(5):
        assert await found.answer.content.read() == b""
    assert (await site.ask("GET", "/live", who=USER))[0] == 401


async def test_an_open_page_keeps_its_session(lab: WebLab, site: Site) -> None:
    found = await feed(site)  # the lab's sessions last an hour
    for n in range(20):
        await lab.clock.advance(239, settle=2)
        await lab.office.do("setting.set", name="login_tries", value=10 + n)
        await found.next()
    assert lab.clock.monotonic() > 3600
    assert (await site.ask("GET", "/offers", who=USER))[0] == 200


async def test_the_feed_ends_with_the_server_within_two_seconds(lab: WebLab, site: Site) -> None:
    await lab.token(ADMIN)
    found = [await feed(site), await feed(site, ADMIN)]
    async with asyncio.timeout(2):
        await site.client.server.close()
        for one in found:
            await one.answer.content.read()
            assert one.answer.content.at_eof()


async def test_one_hub_waits_for_all_pages_and_forgets_those_that_left(lab: WebLab, site: Site) -> None:
    hub = site.client.server.app[HUB]  # type: ignore[attr-defined]
    found = [await feed(site) for _ in range(5)]
    assert len(hub._listeners) == 5
    for one in found:
        one.answer.close()
    for value in range(10, 30):
        await lab.office.do("setting.set", name="login_tries", value=value)
        await lab.clock.advance(0.3)
        await asyncio.sleep(0.01)
    assert len(hub._listeners) == 0


def test_a_listener_keeps_one_event_of_a_kind() -> None:
    listener = Listener()
    for n in range(1000):
        listener.tell("state", f'{{"applied": {n}}}')
        listener.tell("vitals", "{}")
    assert listener.take() == 'event: state\ndata: {"applied": 999}\n\nevent: vitals\ndata: {}\n\n'
    assert listener.take() == ""
    assert not listener.woken.is_set()
