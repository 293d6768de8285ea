"""Personal desktops as people see them: chosen, kept, protected, started from a copy, deleted only on purpose."""

from dataclasses import replace
from typing import Any

from kmgr.provision.model import Copy, CopyState
from kmgr.provision.outfit import outfit
from kmgr.provision.queries import desktops
from kmgr.templates.machine import Firmware, Machine
from kmgr.templates.policy import Policy
from kmgr.web.present_copies import Sight
from tests.lab.people import SERVERS
from tests.lab.web_lab import ADMIN, USER, Site, WebLab

ONE, TWO, THREE = SERVERS


async def kept(lab: WebLab) -> str:
    """Give Anna a personal desktop on server one; return its id."""
    await lab.office.template("own", kind="personal")
    await lab.office.do("assignment.add", template="tpl-own", kind="user", subject=USER)
    desktop = await lab.office.standby("tpl-own")
    await lab.office.do("desktop.claim", user=USER, template="tpl-own")
    return desktop


async def copied(lab: WebLab, desktop: str) -> None:
    """Let server two have a complete copy, as of now."""
    await lab.office.do("copy.assign", desktop=desktop, generation=1, server=TWO)
    point = {"desktop": desktop, "generation": 1, "server": TWO, "as_of": lab.clock.now_ms(), "bytes": 1 << 20}
    await lab.office.do("copy.points", server=ONE, points=[point])


async def moved(lab: WebLab, desktop: str) -> None:
    """Lose server one half a minute after the copy, and let the desktop go on from it."""
    await copied(lab, desktop)
    as_of = lab.clock.now_ms()
    await lab.clock.advance(30)
    await lab.office.do("server.lost", server=ONE)
    with lab.grid(TWO).view() as db:
        lost_at = next(db.query("select changed_at from servers where id = ?", [ONE]))["changed_at"]
    await lab.office.do("desktop.take_over", desktop=desktop, generation=1, server=ONE, lost_at=lost_at, target=TWO)
    await lab.office.do("copy.promoted", desktop=desktop, generation=2, server=TWO, as_of=as_of)


async def shown(site: Site, desktop: str, who: str = USER) -> dict[str, Any]:
    status, body = await site.ask("GET", f"/desktops/{desktop}", who=who)
    assert status == 200, body
    return dict(body)


def beats(lab: WebLab, desktop: str, age_s: int | None, cause: str = "") -> None:
    """Let server one tell how old a copy is."""
    vitals = replace(lab.vitals(ONE), extra={"copies": {desktop: [age_s, cause]}})
    for board in lab.boards.values():
        board.put(vitals)


async def test_the_kind_is_chosen_once_in_the_form_and_in_the_api(lab: WebLab, site: Site) -> None:
    form = {"name": "mine", "image": "img-1", "vcpus": "1", "memory_mib": "512", "standby": "1", "maximum": "3"}
    page = await site.submit("/console/templates/new", {**form, "refresh": "manual", "kind": "personal"}, who=ADMIN)
    assert page.status == 303, page.text
    status, body = await site.ask("GET", "/templates", who=ADMIN)
    assert {one["name"]: one["kind"] for one in body["items"]} == {"mine": "personal", "office": "pooled"}
    template = next(one["id"] for one in body["items"] if one["name"] == "mine")
    status, body = await site.ask("PATCH", f"/templates/{template}", {"kind": "pooled"}, who=ADMIN)
    assert status == 400
    said = await site.page("/console/templates/new", who=ADMIN)
    assert "Kept: everybody has their own" in said.text


async def test_its_page_says_where_the_copy_is_and_how_old(lab: WebLab, site: Site) -> None:
    desktop = await kept(lab)
    assert (await shown(site, desktop))["protection"]["state"] == "none"
    await lab.office.do("copy.assign", desktop=desktop, generation=1, server=TWO)
    assert (await shown(site, desktop))["protection"]["state"] == "making"
    await copied(lab, desktop)
    await lab.clock.advance(23)
    told = (await shown(site, desktop))["protection"]
    assert (told["state"], told["age_s"], told["server"]) == ("safe", 23, TWO)
    assert told["text"] == f"safe copy on {TWO[4:]}, 23 s old"
    # The heartbeat knows of younger points than the log.
    beats(lab, desktop, 4)
    await lab.clock.advance(2)
    assert (await shown(site, desktop))["protection"]["age_s"] == 6
    for path in (f"/console/desktops/{desktop}", "/console/desktops"):
        page = await site.page(path, who=ADMIN)
        assert f"safe copy on {TWO[4:]}, 6 s old" in page.text
    page = await site.page("/", who=USER)
    assert f"Safe copy on {TWO[4:]}, 6 s old" in page.text
    assert "kept for you" in page.text
    assert "Give back" not in page.text


async def test_a_copy_that_is_too_old_is_red_and_says_why(lab: WebLab, site: Site) -> None:
    desktop = await kept(lab)
    await copied(lab, desktop)
    await lab.clock.advance(200)
    beats(lab, desktop, 200, "the disk of b is full")
    told = (await shown(site, desktop))["protection"]
    assert (told["state"], told["cause"]) == ("late", "the disk of b is full")
    page = await site.page(f"/console/desktops/{desktop}", who=ADMIN)
    assert "The disk of b is full" in page.text


async def test_what_a_start_from_the_copy_cost_is_told_to_its_user_and_the_administrator(
    lab: WebLab, site: Site
) -> None:
    desktop = await kept(lab)
    await moved(lab, desktop)
    told = (await shown(site, desktop))["taken_over"]
    assert (told["from"], told["to"], told["lost_s"]) == (ONE[4:], TWO[4:], 25)
    assert "the work of the last 25 s before" in told["text"]
    for path, who in (("/", USER), (f"/console/desktops/{desktop}", ADMIN)):
        assert "the work of the last 25 s before" in (await site.page(path, who=who)).text


async def test_the_former_disk_is_listed_and_deleted_after_a_question(lab: WebLab, site: Site) -> None:
    desktop = await kept(lab)
    await moved(lab, desktop)
    (disk,) = (await shown(site, desktop, ADMIN))["superseded"]
    assert (disk["server"], disk["generation"]) == (ONE, 1)
    at = f"/console/desktops/{desktop}/superseded/{ONE}/1/drop"
    assert at in (await site.page(f"/console/desktops/{desktop}", who=ADMIN)).text
    assert "nobody else has that" in (await site.page(at, who=ADMIN)).text
    assert (await site.submit(at, {}, who=USER)).status == 403
    status, _ = await site.ask("DELETE", f"/desktops/{desktop}/superseded?server={ONE}&generation=2", who=ADMIN)
    assert status == 404
    status, _ = await site.ask("DELETE", f"/desktops/{desktop}/superseded?server={ONE}&generation=1", who=ADMIN)
    assert status == 204
    assert (await shown(site, desktop, ADMIN))["superseded"] == []


async def test_it_is_deleted_only_by_an_administrator_who_names_its_user(lab: WebLab, site: Site) -> None:
    desktop = await kept(lab)
    status, body = await site.ask("DELETE", f"/desktops/{desktop}", who=USER)
    assert status == 400
    assert "kept with all that they saved" in body["error"]["message"]
    assert (await site.ask("DELETE", f"/desktops/{desktop}?lose={USER}", who=USER))[0] == 403
    status, body = await site.ask("DELETE", f"/desktops/{desktop}", who=ADMIN)
    assert (status, body["error"]["code"]) == (400, "personal")
    dialog = await site.page(f"/console/desktops/{desktop}/retire", who=ADMIN)
    assert f"everything that {USER} saved on it is lost" in dialog.text
    assert (await site.submit(f"/console/desktops/{desktop}/retire", {"lose": "ben"}, who=ADMIN)).status == 400
    assert (await shown(site, desktop))["state"] == "in_use"
    assert (await site.submit(f"/console/desktops/{desktop}/retire", {"lose": USER}, who=ADMIN)).status == 303
    assert (await shown(site, desktop))["state"] == "retired"


async def test_while_its_server_is_lost_its_user_waits_with_a_reason(lab: WebLab, site: Site) -> None:
    desktop = await kept(lab)
    await copied(lab, desktop)
    await lab.office.do("server.lost", server=ONE)
    other = await lab.site(TWO)
    status, body = await other.ask("POST", "/desktops", {"template": "own"}, who=USER)
    assert status == 202
    assert (
        body["reason"] == f"Server {ONE[4:]} is lost: your desktop own-1 starts from its safe copy on {TWO[4:]} soon."
    )
    assert desktop in (await other.page("/", who=USER)).text


async def test_what_may_still_run_elsewhere_waits_for_a_persons_word(lab: WebLab, site: Site) -> None:
    desktop = await kept(lab)
    await copied(lab, desktop)
    await lab.office.do("tenure.begin", server=ONE, tenure="tenure-1")
    status, body = await site.ask("POST", f"/servers/{ONE}/off", {}, who=ADMIN)
    assert (status, body["error"]["code"]) == (409, "conflict")
    await lab.office.do("server.lost", server=ONE)
    told = (await shown(site, desktop))["protection"]
    assert told["state"] == "held"
    assert f"kmgr off {ONE[4:]}" in told["cause"]
    page = await site.page(f"/console/desktops/{desktop}", who=ADMIN)
    assert f"/console/servers/{ONE}/off" in page.text
    dialog = await site.page(f"/console/servers/{ONE}/off", who=ADMIN)
    assert f"Is {ONE[4:]} switched off?" in dialog.text
    assert (await site.ask("POST", f"/servers/{ONE}/off", {}, who=USER))[0] == 403
    done = await site.submit(f"/console/servers/{ONE}/off", {}, who=ADMIN)
    assert done.status == 303
    assert (await shown(site, desktop))["protection"]["state"] != "held"
    _, told = await site.ask("GET", "/events", who=ADMIN)
    assert any("says that" in event["text"] and "is switched off" in event["text"] for event in told["items"])


async def test_a_former_disk_is_put_back_by_an_administrator_who_was_told_what_that_means(
    lab: WebLab, site: Site
) -> None:
    desktop = await kept(lab)
    await moved(lab, desktop)
    await lab.office.do("server.up", server=ONE)
    at = f"/console/desktops/{desktop}/superseded/{ONE}/1/put-back"
    assert at in (await site.page(f"/console/desktops/{desktop}", who=ADMIN)).text
    dialog = await site.page(at, who=ADMIN)
    assert "powered off at once" in dialog.text
    assert "you can change back" in dialog.text
    path = f"/desktops/{desktop}/superseded/put-back?server={ONE}&generation="
    assert (await site.ask("POST", f"{path}1", who=USER))[0] == 403
    assert (await site.ask("POST", f"{path}2", who=ADMIN))[0] == 404
    status, body = await site.ask("POST", f"{path}1", who=ADMIN)
    assert (status, body["generation"], body["state"]) == (200, 3, "broken")
    assert body["cause"] == f"its former disk on {ONE[4:]} is being put back"
    assert {(disk["server"], disk["generation"]) for disk in body["superseded"]} == {(ONE, 1), (TWO, 2)}
    again = await site.submit(at, {}, who=ADMIN)
    assert again.status == 409


async def test_a_safe_copy_that_has_gone_bad_is_told_with_what_can_be_done(lab: WebLab, site: Site) -> None:
    desktop = await kept(lab)
    await copied(lab, desktop)
    await lab.office.do("server.lost", server=ONE)
    with lab.grid(TWO).view() as db:
        lost_at = next(db.query("select changed_at from servers where id = ?", [ONE]))["changed_at"]
    await lab.office.do("desktop.take_over", desktop=desktop, generation=1, server=ONE, lost_at=lost_at, target=TWO)
    why = "its safe copy on this server has gone bad: 3 of its 40 places of 64 KiB"
    key = {"desktop": desktop, "generation": 2, "server": TWO}
    await lab.office.do("desktop.failed", **key, step="safe copy", cause=why, trouble="bad_copy", against=False)
    told = await shown(site, desktop, ADMIN)
    assert told["protection"]["state"] == "none"
    assert "has gone bad, nothing was started from it" in told["protection"]["text"]
    (former,) = told["superseded"]
    assert former["server"] == ONE
    page = await site.page(f"/console/desktops/{desktop}", who=ADMIN)
    for words in ("3 of its 40 places", "put its former disk back", "Try again", "Put back"):
        assert words in page.text


async def test_a_copy_that_is_known_to_be_bad_is_not_called_safe(lab: WebLab, site: Site) -> None:
    desktop = await kept(lab)
    await copied(lab, desktop)
    beats(lab, desktop, 4)
    assert (await shown(site, desktop))["protection"]["state"] == "safe"
    for board in lab.boards.values():
        board.put(replace(lab.vitals(TWO), extra={"bad_copies": [desktop]}))
    told = (await shown(site, desktop))["protection"]
    assert told["state"] == "late"
    assert told["text"] == f"the safe copy on {TWO[4:]} has gone bad"
    page = await site.page(f"/console/desktops/{desktop}", who=ADMIN)
    assert (
        "is compared with the desktop&#39;s disk" in page.text or "is compared with the desktop's disk" in page.text
    )


async def test_a_copy_where_the_desktops_machine_cannot_be_made_is_not_called_safe(lab: WebLab) -> None:
    desktop = await kept(lab)
    with lab.grid().view() as db:
        (own,) = [one for one in desktops(db) if one.id == desktop]
    sight = Sight(
        copies={own.id: (Copy(own.id, TWO, own.generation, CopyState.READY, 1, 1, 1),)},
        taken={}, running=frozenset((ONE, TWO)), tenures=frozenset(), names={ONE: "one", TWO: "two"},
        heard={TWO: lab.vitals(TWO)}, target_s=60, now_ms=5000, now=0.0,
    )  # fmt: skip
    assert (sight.protection(own) or {})["state"] == "safe"
    told = sight.protection(replace(own, outfit=outfit(Policy(machine=Machine(Firmware.UEFI)))))
    assert told is not None
    assert (told["state"], told["text"]) == ("late", "safe copy on two, 4 s old")
    assert told["cause"] == "it cannot be started there: two has no UEFI firmware for it (apt-get install ovmf)"


async def test_a_first_copy_that_waits_for_its_turn_is_not_said_to_be_made(lab: WebLab, site: Site) -> None:
    desktop = await kept(lab)
    await lab.office.do("copy.assign", desktop=desktop, generation=1, server=TWO)
    beats(lab, desktop, None)
    assert (await shown(site, desktop))["protection"]["text"] == f"the first safe copy is being made on {TWO[4:]}"
    beats(lab, desktop, None, "it waits: others go before")
    told = (await shown(site, desktop))["protection"]
    assert told["text"] == f"the first safe copy is to be made on {TWO[4:]}"
    assert told["cause"] == "it waits: others go before"
