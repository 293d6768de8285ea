"""The versions of a template on the console's pages and in the API: publish, canary, go back, tags, dates."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kmgr.ids import ServerId
from kmgr.provision.warming import AGAIN
from tests.lab.people import SERVERS
from tests.lab.web_lab import ADMIN, USER, Site, WebLab, opened, second_version
from tests.unit.test_web_api import good
from tests.unit.test_web_api import refused as told
from tests.unit.test_web_console import act, refused

AT = "/templates/tpl-office"


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[WebLab]:
    async with opened(tmp_path) as lab:
        await second_version(lab, notes="as imported")
        yield lab


async def versions(site: Site) -> dict[int, dict[str, Any]]:
    return {one["number"]: one for one in (await good(site, "GET", f"{AT}/versions"))["items"]}


async def page(site: Site) -> str:
    return (await site.page(f"/console{AT}", who=ADMIN)).text


async def test_what_the_image_has_and_nobody_published_is_a_draft(site: Site) -> None:
    found = await versions(site)
    assert {number: (one["stand"], one["default"]) for number, one in found.items()} == {
        1: ("published", True),
        2: ("draft", False),
    }
    assert found[1]["tags"] == ["default", "head"]
    assert "as imported" in await page(site)


async def test_a_canary_is_shown_where_it_goes_on_and_ends_by_hand(lab: WebLab, site: Site) -> None:
    form = {"version": "ver-2", "how": "canary", "canary": "1", "watch_minutes": "5", "notes": "new browser"}
    assert "is tried first" in await act(site, f"{AT}/publish", **form)
    for address in (f"/console{AT}", "/console/part/templates", f"/console/part{AT}"):
        text = (await site.page(address, who=ADMIN)).text
        assert "ersion 2 is being tried" in text, address
    found = await versions(site)
    assert (found[2]["stand"], found[2]["canary"]["watch_s"], found[2]["notes"]) == ("canary", 300, "new browser")
    assert found[1]["default"]
    assert "version 1" in await act(site, f"{AT}/canary/stop")
    found = await versions(site)
    assert (found[2]["stand"], found[2]["cause"]) == ("stopped", f"because {ADMIN} stopped it")
    assert "being tried" not in await page(site)
    await act(site, f"{AT}/publish", **form)
    assert "version 2" in await act(site, f"{AT}/canary/pass")
    assert (await versions(site))[2]["default"]
    assert "No canary is under way" in await told(site, 409, "POST", f"{AT}/canary", {"verdict": "stop"})


async def test_a_canary_may_be_a_part_of_those_kept_ready(lab: WebLab, site: Site) -> None:
    await good(site, "PATCH", AT, {"standby": 8, "maximum": 20})
    assert "percent of those kept ready" in (await site.page(f"/console{AT}/publish", who=ADMIN)).text
    form = {"version": "ver-2", "how": "canary", "canary_unit": "percent", "watch_minutes": "5"}
    said = await refused(site, f"{AT}/publish", **form, canary="101")
    assert "The percentage that is tried must be a whole number from 1 to 100" in said.text
    assert "is tried first" in await act(site, f"{AT}/publish", **form, canary="25")
    assert (await versions(site))[2]["canary"]["size"] == 2


async def test_why_a_canary_stopped_is_on_the_page_and_among_the_problems_of_nobody_else(
    lab: WebLab, site: Site
) -> None:
    await good(site, "POST", f"{AT}/publish", {"version": 2, "canary": 1})
    stopped = {"template": "tpl-office", "version": "ver-2", "step": "guest", "cause": "the guest did not answer"}
    await lab.office.do("template.canary_stopped", **stopped)
    assert "guest: the guest did not answer" in await page(site)
    alarms = (await good(site, "GET", "/events?kind=alarm"))["items"]
    assert [("version 2" in one["text"], "guest" in one["text"]) for one in alarms] == [(True, True)]
    assert (await good(site, "GET", "/templates"))["items"][0]["broken_cause"] == ""


async def test_going_back_is_one_click(site: Site) -> None:
    await act(site, f"{AT}/publish", version="ver-2", how="once")
    assert "Go back to version 1" in await page(site)
    assert "version 1 again" in (await act(site, f"{AT}/rollback"))
    found = await versions(site)
    assert (found[1]["default"], found[2]["stand"]) == (True, "withdrawn")
    text = (await site.page(f"/console{AT}/publish", who=ADMIN)).text
    assert 'value="ver-2"' in text


async def test_tags_and_dates_of_a_version(lab: WebLab, site: Site) -> None:
    at = f"{AT}/versions/1/edit"
    now = lab.clock.now_ms()
    await act(site, at, tags="Exam, spring", soft_days="10", hard_days="20")
    one = (await versions(site))[1]
    assert one["tags"] == ["default", "head", "exam", "spring"]
    assert (one["soft_at"] - now, one["hard_at"] - now) == (10 * 86_400_000, 20 * 86_400_000)
    assert "exam, spring" in (await site.page(f"/console{at}", who=ADMIN)).text
    await act(site, at, tags="exam", soft_days="", hard_days="0")
    one = (await versions(site))[1]
    assert (one["tags"], one["hard_at"]) == (["default", "head", "exam"], None)
    assert one["soft_at"] is not None
    assert "cannot be a tag" in (await refused(site, at, tags="Not/One")).text
    assert "the number of days" in (await refused(site, at, soft_days="soon")).text.casefold()


async def test_all_that_is_wrong_is_told_by_the_form(site: Site) -> None:
    said = await refused(site, f"{AT}/publish", how="canary", canary="0", watch_minutes="x")
    for word in ("version is missing", "how many are tried", "how long they are watched"):
        assert word in said.text.replace("The version", "version"), said.text


async def test_a_version_is_found_by_id_number_or_tag_and_others_are_not(site: Site) -> None:
    for word in ("head", 1, "1", "ver-1"):
        await good(site, "PUT", f"{AT}/tags/exam", {"version": word})
    assert "no version 9" in await told(site, 404, "POST", f"{AT}/publish", {"version": 9})
    assert "has no version to go back to" in await told(site, 400, "POST", f"{AT}/rollback", {})
    await told(site, 400, "PUT", f"{AT}/tags/head", {"version": 1})


async def test_versions_are_an_administrators_business(site: Site) -> None:
    assert (await site.page(f"/console{AT}", who=USER)).status == 403
    assert (await site.ask("GET", f"{AT}/versions", who=USER))[0] == 403
    assert (await site.ask("POST", f"{AT}/rollback", {}, who=USER))[0] == 403


async def test_who_works_on_a_withdrawn_version_is_told(lab: WebLab, site: Site) -> None:
    await lab.office.standby()
    await good(site, "POST", "/desktops", {"template": "office"}, who=USER)
    (offer,) = (await good(site, "GET", "/offers", who=USER))["items"]
    assert offer["ending"] == ""
    await good(site, "POST", f"{AT}/publish", {"version": 2})
    await good(site, "POST", f"{AT}/rollback", {"version": 1})
    await good(site, "POST", f"{AT}/publish", {"version": 2})
    await lab.office.do("template.expiry", template="tpl-office", version="ver-1", soft_at=None, hard_at=1)
    await lab.office.do("template.expire", template="tpl-office", version="ver-1", stand="ended")
    (offer,) = (await good(site, "GET", "/offers", who=USER))["items"]
    assert "has ended" in offer["ending"]
    assert "has ended" in (await site.page("/", who=USER)).text


async def test_a_publication_says_where_clones_of_the_version_were_checked(lab: WebLab, site: Site) -> None:
    warm = {"bytes": 0, "n": 1, "notes": {}, "stopped": [], "checked": ["ver-1"]}
    for board in lab.boards.values():
        for server in SERVERS:
            board.put(lab.vitals(server, extra={"warm": {**warm, "checked": []} if server == SERVERS[2] else warm}))
    found = await versions(site)
    assert found[1]["clones"] == "instant clones: checked on 2 of 3 servers"
    assert found[2]["clones"] == "", "a draft has run nowhere"
    assert "checked on 2 of 3 servers" in await page(site)
    form = {"version": "ver-2", "how": "once", "notes": ""}
    assert "Instant clones: not checked yet" in await act(site, f"{AT}/publish", **form)
    assert "not checked yet" in await page(site)


async def test_servers_that_stopped_trying_to_restore_desktops_are_asked_to_try_again(
    lab: WebLab, site: Site
) -> None:
    asked: list[tuple[ServerId, Any]] = []
    assert "Every server tries it by itself" in await act(site, f"{AT}/clones/retry")
    warm = {"bytes": 0, "n": 0, "notes": {"tpl-office": "no space"}, "stopped": ["tpl-office"]}
    for board in lab.boards.values():
        board.put(lab.vitals(SERVERS[1], extra={"warm": warm}))
    assert f"/console{AT}/clones/retry" in await page(site)

    async def again(_: ServerId, body: Any) -> dict[str, Any]:
        asked.append((SERVERS[1], body))
        return {}

    assert "could be asked" in await told(site, 503, "POST", f"{AT}/clones/retry", {})
    lab.network.port(SERVERS[1]).serve(AGAIN, again)
    name = (await good(site, "POST", f"{AT}/clones/retry", {}))["servers"]
    assert f"{name[0]} will try" in await act(site, f"{AT}/clones/retry")
    assert asked == [(SERVERS[1], {"template": "tpl-office", "by": ADMIN})] * 2
    assert (await site.ask("POST", f"{AT}/clones/retry", {}, who=USER))[0] == 403
