"""What people are told whose desktop was lost with its server: on their first page and beside the next desktop."""

from typing import Any

from kmgr.ids import AccountName
from kmgr.provision.losses import losses
from tests.lab.people import SERVERS
from tests.lab.web_lab import USER, Site, WebLab

ONE, TWO, THREE = SERVERS


async def worked_on(lab: WebLab) -> str:
    """Give Anna a pooled desktop on server one; return its id."""
    await lab.office.template("room")
    await lab.office.do("assignment.add", template="tpl-room", kind="user", subject=USER)
    desktop = await lab.office.standby("tpl-room", server=ONE)
    await lab.office.do("desktop.claim", user=USER, template="tpl-room")
    return desktop


async def cut_off(lab: WebLab, desktop: str) -> None:
    """Lose server one, as the balancer sees it."""
    await lab.office.do("server.lost", server=ONE)
    believed = {"generation": 1, "state": "in_use", "server_state": "lost"}
    await lab.office.do("desktop.retire", desktop=desktop, why="its server is lost", **believed)


async def told(site: Site) -> dict[str, Any] | None:
    status, body = await site.ask("GET", "/offers", who=USER)
    assert status == 200, body
    lost: dict[str, Any] | None = next(one["lost"] for one in body["items"] if one["name"] == "room")
    return lost


async def test_who_worked_on_a_lost_server_is_told_what_is_gone_before_and_beside_the_next_one(
    lab: WebLab, site: Site
) -> None:
    desktop = await worked_on(lab)
    assert await told(site) is None
    await cut_off(lab, desktop)
    lost = await told(site)
    assert lost is not None
    assert lost["server_name"] == "a"
    for words in ("was lost with server a", "saved only on that desktop, is gone", "network drive"):
        assert words in lost["text"]
    assert "was lost with server a" in (await site.page("/", who=USER)).text

    again = await lab.office.standby("tpl-room", server=TWO)
    await lab.office.do("desktop.claim", user=USER, template="tpl-room")
    _, shown = await site.ask("GET", f"/desktops/{again}", who=USER)
    assert shown["lost"] == lost
    screen = (await site.page(f"/desktop/{again}", who=USER)).text
    assert "This is a new desktop" in screen
    assert "was lost with server a" in screen


async def test_it_is_told_until_the_next_one_is_given_back_and_for_a_day_at_most(lab: WebLab, site: Site) -> None:
    await cut_off(lab, await worked_on(lab))
    again = await lab.office.standby("tpl-room", server=TWO)
    await lab.office.do("desktop.claim", user=USER, template="tpl-room")
    lab.clock.skip(86_000)
    await lab.clock.advance(1)
    assert await told(site)
    await lab.clock.advance(500)
    assert await told(site) is None
    await lab.office.do("desktop.release", desktop=again, user=USER)
    with lab.grid(TWO).view() as db:
        assert losses(db, AccountName(USER)) == ()


async def test_what_its_user_gave_back_or_an_administrator_removed_was_not_lost(lab: WebLab, site: Site) -> None:
    desktop = await worked_on(lab)
    await lab.office.do("desktop.release", desktop=desktop, user=USER)
    assert await told(site) is None
    desktop = await lab.office.standby("tpl-room", server=ONE)
    await lab.office.do("desktop.claim", user=USER, template="tpl-room")
    await lab.office.do("desktop.retire", desktop=desktop, why="an administrator ordered it")
    assert await told(site) is None
