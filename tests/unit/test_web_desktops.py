"""From "I want a desktop" to its screen: claims, tickets, the WebSocket."""

import asyncio
from typing import Any

import pytest
from aiohttp import ClientWebSocketResponse, WSMsgType

from kmgr.ids import DesktopId
from kmgr.provision.hypervisor import DomainSpec
from tests.lab.people import SERVERS
from tests.lab.web_lab import ADMIN, OTHER, USER, Site, WebLab


async def ticket(site: Site, desktop: str, *, who: str = USER) -> str:
    """Return the word of a fresh ticket."""
    status, body = await site.ask("POST", f"/desktops/{desktop}/ticket", who=who)
    assert status == 201, body
    return str(body["url"]).partition("/display/")[2]


async def open_screen(site: Site, word: str, **headers: str) -> ClientWebSocketResponse:
    return await site.client.ws_connect(f"/display/{word}", protocols=("binary",), headers=headers, max_msg_size=0)


async def ended(socket: ClientWebSocketResponse) -> tuple[int, str]:
    """Wait for the other side to close; returns code and reason."""
    async with asyncio.timeout(5):
        message = await socket.receive()
    assert message.type is WSMsgType.CLOSE, message
    await socket.close()
    return int(message.data), str(message.extra)


async def mine(lab: WebLab, site: Site, server: Any = SERVERS[0]) -> str:
    desktop = await lab.office.standby(server=server)
    status, _ = await site.ask("POST", "/desktops", {"template": "office"}, who=USER)
    assert status == 201
    return desktop


async def test_a_desktop_is_given_once_and_kept(lab: WebLab, site: Site) -> None:
    desktop = await lab.office.standby()
    other = await lab.site(SERVERS[1])
    status, given = await site.ask("POST", "/desktops", {"template": "office"}, who=USER)
    assert (status, given["id"], given["state"], given["user"]) == (201, desktop, "in_use", USER)
    status, again = await other.ask("POST", "/desktops", {"template": "tpl-office"}, who=USER)
    assert (status, again["id"]) == (200, desktop)


async def test_who_has_to_wait_is_told_how_long_and_why(lab: WebLab, site: Site) -> None:
    await lab.office.placed()
    status, body = await site.ask("POST", "/desktops", {"template": "office"}, who=USER)
    assert status == 202
    assert body["estimate_s"] > 0
    assert body["reason"]


async def test_nobody_gets_what_was_not_given_to_them(lab: WebLab, site: Site) -> None:
    await lab.office.standby()
    status, body = await site.ask("POST", "/desktops", {"template": "office"}, who=OTHER)
    assert (status, body["error"]["code"]) == (403, "not_allowed")
    assert (await site.ask("POST", "/desktops", {"template": "none"}, who=OTHER))[0] == 404


async def test_the_list_is_the_same_at_every_server_and_users_see_their_own(lab: WebLab, site: Site) -> None:
    desktop = await mine(lab, site)
    await lab.office.standby(server=SERVERS[1])
    lab.waiting[DesktopId(desktop)] = "the disk"
    other = await lab.site(SERVERS[1])
    lists = [(await one.ask("GET", "/desktops", who=ADMIN))[1]["items"] for one in (site, other)]
    assert lists[0] == lists[1]
    assert [one["server_name"] for one in lists[0]] == ["a", "b"]
    for one in (site, other):
        assert [found["id"] for found in (await one.ask("GET", "/desktops", who=USER))[1]["items"]] == [desktop]
        assert (await one.ask("GET", "/desktops", who=OTHER))[1]["items"] == []
    assert (await site.ask("GET", f"/desktops/{desktop}", who=USER))[1]["waiting"] == "the disk"
    assert (await other.ask("GET", f"/desktops/{desktop}", who=USER))[1]["waiting"] == ""
    assert (await site.ask("GET", f"/desktops/{desktop}", who=OTHER))[0] == 404


async def test_giving_back_retires_and_an_administrator_may_take_away(lab: WebLab, site: Site) -> None:
    desktop = await mine(lab, site)
    assert (await site.ask("DELETE", f"/desktops/{desktop}", who=OTHER))[0] == 404
    assert (await site.ask("DELETE", f"/desktops/{desktop}", who=USER))[0] == 204
    assert (await site.ask("GET", "/desktops", who=ADMIN))[1]["items"][0]["state"] == "retired"
    second = await lab.office.standby()
    assert (await site.ask("DELETE", f"/desktops/{second}", who=ADMIN))[0] == 204
    assert (await site.ask("POST", f"/desktops/{second}/ticket", who=ADMIN))[0] == 404


async def test_a_desktop_whose_server_was_lost_is_gone_for_its_user_and_not_only_without_a_screen(
    lab: WebLab, site: Site
) -> None:
    desktop = await mine(lab, site)
    await lab.office.do("desktop.retire", desktop=desktop, why="its server is lost")
    status, said = await site.ask("POST", f"/desktops/{desktop}/ticket", who=USER)
    assert (status, said["error"]["code"]) == (404, "not_found")
    assert "its server was lost" in said["error"]["message"]


async def test_a_screenshot_comes_from_the_desktops_server(lab: WebLab, site: Site) -> None:
    desktop = await mine(lab, site, SERVERS[2])
    spec = DomainSpec(DesktopId(desktop), 1, "x", "x", "x", 1, 64, "x", "x", "x", "x", "user")
    hypervisor = lab.hypervisors[SERVERS[2]]
    await hypervisor.define(spec)
    path = f"/api/v1/desktops/{desktop}/screenshot"
    off = await site.send("GET", path, headers=await site.cookie(USER))
    assert (off.status, off.json["error"]["message"]) == (503, "the desktop is powered off")
    await hypervisor.start(spec.desktop)
    async with site.client.get(path, headers=await site.cookie(USER)) as answer:
        assert (answer.status, answer.content_type) == (200, "image/png")
        assert (await answer.read()).startswith(b"\x89PNG")
    over_the_shoulder = await site.send("GET", path, headers=await site.cookie(ADMIN))
    assert over_the_shoulder.status == 403
    assert "only anna may look at it" in over_the_shoulder.json["error"]["message"]
    hypervisor.picture = bytes(range(256)) * 12_000
    async with site.client.get(path, headers=await site.cookie(USER)) as answer:
        assert await answer.read() == hypervisor.picture


async def test_the_ticket_names_the_address_by_which_the_browser_came(lab: WebLab, site: Site) -> None:
    desktop = await mine(lab, site)
    path, who = f"/desktops/{desktop}/ticket", USER
    _, body = await site.ask("POST", path, who=who, headers={"Host": "two.example:8443"})
    assert body["url"].startswith("wss://two.example:8443/display/")
    assert body["expires_s"] == 30


@pytest.mark.parametrize("server", SERVERS[:2])
async def test_bytes_go_to_the_screen_and_back_whole(lab: WebLab, site: Site, server: Any) -> None:
    desktop = await mine(lab, site, server)
    screen = await lab.running(desktop)
    async with screen:
        socket = await open_screen(site, await ticket(site, desktop))
        assert socket.protocol == "binary"
        sent = bytes(range(256)) * 4096 * 3
        pieces = [sent[at : at + 100_000] for at in range(0, len(sent), 100_000)]
        got = bytearray()

        async def read() -> None:
            while len(got) < len(sent):
                got.extend(await socket.receive_bytes())

        async with asyncio.timeout(20):
            reading = asyncio.create_task(read())
            for piece in pieces:
                await socket.send_bytes(piece)
            await reading
        assert bytes(got) == sent
        await socket.close()


async def test_a_ticket_is_used_once_and_not_for_long(lab: WebLab, site: Site) -> None:
    desktop = await mine(lab, site)
    async with await lab.running(desktop):
        word = await ticket(site, desktop)
        first = await open_screen(site, word)
        assert (await ended(await open_screen(site, word)))[0] == 4403
        await first.close()
        old = await ticket(site, desktop)
        await lab.clock.advance(30.1)
        code, reason = await ended(await open_screen(site, old))
        assert code == 4403
        assert "too old" in reason
        assert (await ended(await open_screen(site, "invented")))[0] == 4403


async def test_a_ticket_is_for_one_person(lab: WebLab, site: Site) -> None:
    desktop = await mine(lab, site)
    assert (await site.ask("POST", f"/desktops/{desktop}/ticket", who=OTHER))[0] == 404
    status, body = await site.ask("POST", f"/desktops/{desktop}/ticket", who=ADMIN)
    assert status == 403
    assert body["error"]["message"].endswith(": only anna may look at it.")
    async with await lab.running(desktop):
        word = await ticket(site, desktop)
        code, reason = await ended(await open_screen(site, word, **await site.cookie(OTHER)))
        assert code == 4403
        assert "somebody else" in reason


async def test_an_old_ticket_does_not_open_a_desktop_that_was_made_anew(lab: WebLab, site: Site) -> None:
    desktop = await mine(lab, site)
    word = await ticket(site, desktop)
    report = {"desktop": desktop, "server": SERVERS[0]}
    await lab.office.do("desktop.failed", **report, generation=1, step="run", cause="crashed")
    await lab.office.do("desktop.retry", desktop=desktop)
    await lab.office.do("desktop.building", **report, generation=2)
    await lab.office.do("desktop.ready", **report, generation=2)
    await lab.office.do("desktop.claim", user=USER, template="tpl-office")
    async with await lab.running(desktop):
        code, reason = await ended(await open_screen(site, word))
    assert code == 4409
    assert "made anew" in reason


async def test_the_screen_closes_when_the_desktop_does(lab: WebLab, site: Site) -> None:
    desktop = await mine(lab, site)
    async with await lab.running(desktop):
        socket = await open_screen(site, await ticket(site, desktop))
        await socket.send_bytes(b"x")
        assert await socket.receive_bytes() == b"x"
        lab.power_off()
        assert await ended(socket) == (1000, "the desktop's screen ended")


async def test_the_screen_closes_when_its_user_logs_out(lab: WebLab, site: Site) -> None:
    desktop = await mine(lab, site)
    async with await lab.running(desktop):
        socket = await open_screen(site, await ticket(site, desktop))
        await socket.send_bytes(b"x")
        assert await socket.receive_bytes() == b"x"
        assert (await site.ask("DELETE", "/sessions/current", who=USER))[0] == 204
        await lab.clock.advance(1)
        assert await ended(socket) == (4401, "you are logged out")


async def test_a_session_does_not_end_while_its_screen_is_open(lab: WebLab, site: Site) -> None:
    desktop = await mine(lab, site)
    async with await lab.running(desktop):
        socket = await open_screen(site, await ticket(site, desktop))
        for _ in range(20):
            await lab.clock.advance(240, settle=2)
            await socket.send_bytes(b"x")
            assert await socket.receive_bytes() == b"x"
        assert lab.clock.monotonic() > 3600
        await socket.close()


async def test_a_session_that_is_used_is_renewed_and_one_that_is_not_ends(lab: WebLab, site: Site) -> None:
    for who in (USER, OTHER):
        await lab.token(who)
    for _ in range(4):
        await lab.clock.advance(1200)
        assert (await site.page("/", who=USER)).status == 200
    assert (await site.page("/", who=OTHER)).status == 303


async def test_a_server_that_is_gone_is_told_in_words(lab: WebLab, site: Site) -> None:
    desktop = await mine(lab, site, SERVERS[1])
    word = await ticket(site, desktop)
    lab.network.down.add(SERVERS[1])
    code, reason = await ended(await open_screen(site, word))
    assert code == 4503
    assert "srv-b cannot be reached" in reason


async def test_a_screen_without_qemu_is_told_in_words(lab: WebLab, site: Site) -> None:
    desktop = await mine(lab, site)
    code, reason = await ended(await open_screen(site, await ticket(site, desktop)))
    assert (code, reason) == (4503, "the desktop's screen cannot be reached: No such file or directory")


async def test_a_screen_is_no_page(site: Site) -> None:
    said = await site.page("/display/anything", who=USER)
    assert said.status == 400
    assert "open it from the portal" in said.text


async def test_an_open_screen_does_not_keep_the_server_from_stopping(lab: WebLab, site: Site) -> None:
    desktop = await mine(lab, site)
    async with await lab.running(desktop):
        socket = await open_screen(site, await ticket(site, desktop))
        await socket.send_bytes(b"x")
        assert await socket.receive_bytes() == b"x"
        async with asyncio.timeout(2):
            stopping = asyncio.create_task(site.client.server.runner.shutdown())  # type: ignore[union-attr]
            code, reason = await ended(socket)
            await stopping
        assert code in (1001, 4401)
        assert "being stopped" in reason
