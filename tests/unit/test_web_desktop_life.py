"""The page of a desktop with its life so far, the list with its states and pages, and the same in the API."""

import json
from typing import Any

import pytest

from kmgr.provision import listing
from kmgr.provision.listing import Filter
from kmgr.web.words import lasted
from tests.lab.pages import parse
from tests.lab.people import SERVERS
from tests.lab.web_lab import ADMIN, OTHER, USER, Site, WebLab


async def broken(lab: WebLab, cause: str, step: str = "start") -> str:
    """Return a desktop that broke while it was made."""
    placed = await lab.office.placed()
    report = {"desktop": placed["desktop"], "generation": 1, "server": SERVERS[0]}
    await lab.office.do("desktop.building", **report)
    await lab.clock.advance(2.5)
    trouble = {"trouble": "disk_full", "against": False}
    await lab.office.do("desktop.failed", **report, step=step, cause=cause, **trouble)
    return str(placed["desktop"])


async def test_a_broken_desktop_says_step_cause_what_that_means_and_what_to_do(lab: WebLab, site: Site) -> None:
    desktop = await broken(lab, "No space left on device (/k/d.new)")
    _, body = await site.ask("GET", f"/desktops/{desktop}", who=ADMIN)
    assert (body["step"], body["trouble"]) == ("start", "disk_full")
    assert body["meaning"] == "The disk of its server is full."
    assert "Make room" in body["advice"]
    page = (await site.page(f"/console/desktops/{desktop}", who=ADMIN)).text
    for told in ("No space left on device", body["meaning"], body["advice"], f"/desktops/{desktop}/retry"):
        assert told in page


async def test_its_life_so_far_is_told_by_api_and_page(lab: WebLab, site: Site) -> None:
    desktop = await broken(lab, "No space left on device")
    await lab.office.do("desktop.retry", desktop=desktop)
    report = {"desktop": desktop, "generation": 2, "server": SERVERS[0]}
    await lab.office.do("desktop.building", **report)
    await lab.clock.advance(4)
    await lab.office.do("desktop.ready", **report)
    await lab.office.do("desktop.claim", user=USER, template="tpl-office")
    await lab.clock.advance(90)
    status, body = await site.ask("GET", f"/desktops/{desktop}/life", who=ADMIN)
    assert status == 200
    told = [(one["state"], one["generation"], one["user"]) for one in body["items"]]
    assert told == [
        ("placed", 1, None), ("building", 1, None), ("broken", 1, None), ("placed", 2, None), ("building", 2, None),
        ("ready", 2, None), ("in_use", 2, USER),
    ]  # fmt: skip
    assert body["items"][2]["cause"] == "No space left on device"
    assert body["items"][4]["lasted_ms"] == 4_000
    assert (body["items"][-1]["until"], body["items"][-1]["lasted_ms"]) == (None, 90_000)
    page = parse((await site.page(f"/console/desktops/{desktop}", who=ADMIN)).text)
    lines = [one.text for one in page.all("li") if one.attributes.get("id", "").startswith("stage-")]
    assert len(lines) == 7
    assert f"{USER} has it" in lines[0]
    assert "1 min 30 s so far" in " ".join(lines[0].split())
    assert "4.0 s" in lines[2]
    assert "No space left on device" in lines[4]


async def test_whose_a_desktop_was_is_nobody_elses_business(lab: WebLab, site: Site) -> None:
    desktop = await broken(lab, "x")
    for who in (USER, OTHER):
        assert (await site.ask("GET", f"/desktops/{desktop}/life", who=who))[0] == 403
    assert (await site.ask("GET", "/desktops/none/life", who=ADMIN))[0] == 404


async def test_what_a_desktop_waits_for_is_told_by_every_server(lab: WebLab) -> None:
    desktop = (await lab.office.placed(server=SERVERS[0]))["desktop"]
    other = await lab.site(SERVERS[1])
    heard = {"waiting": {desktop: "waiting for its turn: this server makes 2 desktops at a time"}}
    lab.boards[SERVERS[1]].put(lab.vitals(SERVERS[0], extra=heard))
    _, body = await other.ask("GET", f"/desktops/{desktop}", who=ADMIN)
    assert body["waiting"] == heard["waiting"][desktop]


async def many(lab: WebLab, count: int = 7) -> list[str]:
    """Have some desktops: the first is broken, the last is Anna's."""
    await lab.office.do("template.update", template="tpl-office", maximum=20)
    found = [await broken(lab, "x")]
    found += [await lab.office.standby(server=SERVERS[n % 2]) for n in range(count - 1)]
    await lab.office.do("desktop.claim", user=USER, template="tpl-office")
    return found


async def test_the_list_comes_in_pages_that_have_everybody_once(lab: WebLab, site: Site) -> None:
    desktops = await many(lab)
    seen: list[str] = []
    cursor: dict[str, str] = {}
    for _ in range(4):
        _, body = await site.ask("GET", "/desktops", who=ADMIN, params={"limit": "2", **cursor})
        seen += [one["id"] for one in body["items"]]
        if body["next"] is None:
            break
        cursor = {"cursor": body["next"]}
    assert sorted(seen) == sorted(desktops)


@pytest.mark.parametrize("cursor", ["x", "WzFd", "WyJhIl0", "bnVsbA"])
async def test_a_cursor_of_nowhere_is_refused(lab: WebLab, site: Site, cursor: str) -> None:
    assert (await site.ask("GET", "/desktops", who=ADMIN, params={"cursor": cursor}))[0] == 400


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({"state": "broken"}, 1),
        ({"state": "ready"}, 5),
        ({"state": "ready", "server": SERVERS[1]}, 3),
        ({"user": USER}, 1),
        ({"words": "OFFICE b"}, 3),
        ({"words": "anna"}, 1),
        ({"words": "%"}, 0),
        ({"words": "office_1"}, 0),
        ({"template": "tpl-none"}, 0),
        ({"state": "odd"}, 0),
    ],
)
async def test_the_list_can_be_narrowed(lab: WebLab, site: Site, query: dict[str, str], count: int) -> None:
    await many(lab)
    _, body = await site.ask("GET", "/desktops", who=ADMIN, params=query)
    assert len(body["items"]) == count
    text = (await site.page("/console/desktops?" + "&".join(f"{k}={v}" for k, v in query.items()), who=ADMIN)).text
    assert text.count("<tr data-row") == count


async def test_nobody_finds_others_desktops_by_asking_for_them(lab: WebLab, site: Site) -> None:
    await many(lab)
    _, body = await site.ask("GET", "/desktops", who=OTHER, params={"user": USER})
    assert body["items"] == []


async def test_the_page_counts_the_states_and_shows_more_on_demand(lab: WebLab, site: Site) -> None:
    await many(lab)
    page = (await site.page("/console/desktops?limit=3", who=ADMIN)).text
    assert page.count("<tr data-row") == 3
    assert "Show more desktops" in page
    assert "7 desktops: 5 ready, 1 in use, 1 broken" in " ".join(page.split())
    whole = (await site.page("/console/desktops", who=ADMIN)).text
    assert "Show more desktops" not in whole


async def test_screens_are_shown_of_those_that_nobody_has_only(lab: WebLab, site: Site) -> None:
    await many(lab)
    page = parse((await site.page("/console/desktops?view=screens", who=ADMIN)).text)
    assert len([one for one in page.all("img") if "data-shot" in one.attributes]) == 6
    assert f"Only {USER} sees it" in " ".join(one.text for one in page.all("span"))


async def test_a_page_of_ten_thousand_reads_no_more_than_it_shows(lab: WebLab) -> None:
    await many(lab)
    with lab.services().grid.view() as db:
        plan = [row["detail"] for row in db.query("explain query plan " + _sql(db))]
    assert any("INDEX" in step for step in plan), plan
    assert not any("TEMP B-TREE" in step for step in plan), "it would sort all of them for each page"


def _sql(db: Any) -> str:
    told: list[str] = []
    db.conn.set_trace_callback(told.append)
    listing.page(db, Filter(), limit=2, after=("office-1", "x"))
    db.conn.set_trace_callback(None)
    return next(sql for sql in told if sql.startswith("select d.*"))


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0.0 s"), (-5, "0.0 s"), (420, "0.4 s"), (9_940, "9.9 s"), (10_000, "10 s"), (90_000, "1 min 30 s"),
     (3_600_000, "1 h"), (90_061_000, "1 d 1 h")],
)  # fmt: skip
def test_how_long_a_stage_lasted(ms: int, text: str) -> None:
    assert lasted(ms) == text


async def test_the_apis_page_says_what_can_be_asked(site: Site) -> None:
    described = json.loads((await site.send("GET", "/api/v1/openapi.json")).text)
    named = {one["name"] for one in described["paths"]["/api/v1/desktops"]["get"]["parameters"]}
    assert {"limit", "cursor", "state", "template", "server", "user", "words"} <= named
