"""What an administrator does on the console's pages, form by form, and what comes of it."""

import asyncio
import json
from pathlib import Path
from typing import Any

from kmgr.settings import SETTINGS
from kmgr.web import auth, present
from kmgr.web.console.images import BACKGROUND
from kmgr.web.services import SERVICES
from tests.lab.pages import parse
from tests.lab.people import RIGHT, SERVERS
from tests.lab.web_lab import ADMIN, OTHER, USER, Said, Site, WebLab

HTMX = {"HX-Request": "true", "HX-Target": "dialog-error"}
SHAPE = {"notes": "", "vcpus": "2", "memory_mib": "2048", "standby": "1", "maximum": "4", "refresh": "manual"}
DIRECTORY = {
    "urls": "ldaps://a.example, ldaps://b.example", "base_dn": "dc=example", "user_filter": "(uid={name})",
    "bind_name": "{name}", "admin_group": "admins",
}  # fmt: skip


async def act(site: Site, path: str, /, **form: Any) -> str:
    """Send a form as htmx does; returns the note that follows."""
    said = await site.submit(f"/console{path}", form, who=ADMIN, **HTMX)
    assert said.status == 204, (said.status, said.text)
    return str(json.loads(said.headers["HX-Trigger"])["kmgr:done"]["text"])


async def refused(site: Site, path: str, /, **form: Any) -> Said:
    """Send a form that must be refused; the answer is a line for the dialog, nothing else on the page changes."""
    said = await site.submit(f"/console{path}", form, who=ADMIN, **HTMX)
    assert said.status >= 400 and "<html" not in said.text
    assert "HX-Retarget" not in said.headers
    return said


async def test_an_action_without_scripts_leads_back_to_the_list(site: Site) -> None:
    said = await site.submit("/console/servers/srv-b/drain", {}, who=ADMIN)
    assert (said.status, said.headers["Location"]) == (303, "/console/servers")


async def test_an_error_outside_a_dialog_becomes_a_note_in_the_corner(site: Site) -> None:
    headers = {"HX-Request": "true"}
    said = await site.submit("/console/servers/srv-x/drain", {}, who=ADMIN, **headers)
    assert (said.status, said.headers["HX-Retarget"], said.headers["HX-Reswap"]) == (404, "#toasts", "beforeend")
    assert "This server is not in the grid any more." in said.text


async def test_a_form_without_the_hidden_word_changes_nothing(lab: WebLab, site: Site) -> None:
    said = await site.send("POST", "/console/servers/srv-b/drain", headers=await site.cookie(ADMIN), data={})
    assert said.status == 403
    assert {one["state"] for one in present.servers(lab.services())} == {"up"}


async def test_servers_drain_return_and_go(lab: WebLab, site: Site) -> None:
    def states() -> dict[str, str]:
        return {one["name"]: one["state"] for one in present.servers(lab.services())}

    assert await act(site, "/servers/srv-b/drain") == "b gets no new desktops from now on."
    assert states()["b"] == "draining"
    await act(site, "/servers/srv-b/undrain")
    assert states()["b"] == "up"
    dialog = (await site.page("/console/servers/srv-c/remove", who=ADMIN)).text
    assert "only 2 servers vote (a, b)" in dialog and 'name="force"' in dialog
    said = await refused(site, "/servers/srv-c/remove")
    assert "only 2 servers vote (a, b)" in said.text
    assert sorted(states()) == ["a", "b", "c"]
    await act(site, "/servers/srv-c/remove", force="1")
    assert sorted(states()) == ["a", "b"]


async def test_a_drain_with_a_notice_shows_who_is_there_and_how_long(lab: WebLab, site: Site) -> None:
    office = lab.office
    desktop = await office.standby(server=SERVERS[1])
    await office.do("desktop.claim", user=USER, template="tpl-office")
    dialog = (await site.page("/console/servers/srv-b/drain", who=ADMIN)).text
    assert 'name="notice_minutes"' in dialog and 'value="0"' in dialog
    told = await refused(site, "/servers/srv-b/drain", notice_minutes="soon")
    assert "The notice must be a whole number from 0 to 10080" in told.text
    assert present.servers(lab.services())[1]["drain"] is None
    await act(site, "/servers/srv-b/drain", notice_minutes="30")
    drain = present.servers(lab.services())[1]["drain"]
    assert (drain["people"], drain["until"]) == (1, office.clock.now_ms() + 30 * 60_000)
    page = (await site.page("/console/servers", who=ADMIN)).text
    assert "1 person still works there." in page and "in 30 min; their users are told." in page
    assert "taken out of service" not in (await site.page("/", who=USER)).text
    await office.do("drain.tell", desktop=desktop, generation=1, server=SERVERS[1])
    assert "The server of this desktop is taken out of service" in (await site.page("/", who=USER)).text
    await act(site, "/servers/srv-b/undrain")
    assert "taken out of service" not in (await site.page("/", who=USER)).text


async def test_a_drain_shows_how_far_each_desktop_is_and_who_is_waited_for(lab: WebLab, site: Site) -> None:
    office = lab.office
    moves = await office.standby(server=SERVERS[1])
    await office.do("desktop.claim", user=USER, template="tpl-office")
    stays = await office.standby(server=SERVERS[1])
    await office.do("desktop.claim", user=OTHER, template="tpl-office")
    await act(site, "/servers/srv-b/drain", notice_minutes="0")
    await office.do("version.here", version="ver-1", server=SERVERS[0])
    here = {"generation": 1, "server": SERVERS[1]}
    begins = {**here, "target": SERVERS[0], "why": "its server drains"}
    for _ in range(3):
        await office.do("desktop.move", desktop=stays, **begins)
        await office.do("desktop.move_failed", desktop=stays, **here, cause="it has a TPM")
    await office.do("desktop.move", desktop=moves, **begins)
    lab.boards[SERVERS[0]].put(lab.vitals(SERVERS[1], extra={"moves": {moves: 37}}))
    page = parse((await site.page("/console/servers", who=ADMIN)).text)
    (drain,) = [one for one in page.all("section") if one.attributes.get("aria-label") == "Drain of b"]
    said = " ".join(drain.text.split())
    assert "2 desktops left." in said and "2 people still work there." in said
    (bar,) = [one for one in page.all("progress") if "moves while it runs" in one.attributes.get("aria-label", "")]
    assert (bar.attributes["value"], bar.inside("section")) == ("37", drain)
    waited = [one for one in page.all("a") if one.attributes.get("href") == f"/console/desktops/{stays}"]
    assert any(one.inside("ul") is not None for one in waited), said
    await act(site, "/servers/srv-b/undrain")
    assert "Drain of b" not in (await site.page("/console/servers", who=ADMIN)).text


async def settings_form(site: Site, **changed: str) -> dict[str, str]:
    """Return the form of the settings as it is sent after somebody typed into it."""
    page = parse((await site.page("/console/settings/edit", who=ADMIN, **HTMX)).text)
    fields = {one.attributes["name"]: one.attributes["value"] for one in page.all("input")}
    fields.pop("csrf")
    assert {name for name in fields if not name.startswith("before-")} == set(SETTINGS)
    assert set(changed) <= set(fields)
    return {**fields, **changed}


async def test_settings_are_changed_together_and_each_carries_its_limits(lab: WebLab, site: Site) -> None:
    shown = parse((await site.page("/console/settings", who=ADMIN)).text).all("table")[0].text
    for name, one in SETTINGS.items():
        assert name in shown and one.help[1:] in shown and f"{one.least} – {one.most}" in shown
    # Only together do they fit: a late heartbeat must not lose a server.
    form = await settings_form(site, heartbeat_ms="4000", lost_after_ms="13000")
    note = await act(site, "/settings/edit", **form)
    assert "silence after which a server counts as lost: 13000" in note
    values = {one["name"]: one["value"] for one in present.settings(lab.services())}
    assert (values["heartbeat_ms"], values["lost_after_ms"]) == (4000, 13000)
    assert len(present.events(lab.services(), kind="setting")) == 2
    assert await act(site, "/settings/edit", **await settings_form(site)) == "Nothing was changed."


async def test_a_form_of_settings_changes_only_what_its_reader_changed(lab: WebLab, site: Site) -> None:
    form = await settings_form(site, login_tries="12")
    await lab.office.do("setting.set", name="session_hours", value=8)
    await act(site, "/settings/edit", **form)
    values = {one["name"]: one["value"] for one in present.settings(lab.services())}
    assert (values["login_tries"], values["session_hours"]) == (12, 8)


async def test_all_that_is_wrong_with_settings_is_told_and_nothing_stored(lab: WebLab, site: Site) -> None:
    wrong = await settings_form(site, login_tries="2", session_hours="many", build_failures="5")
    said = await refused(site, "/settings/edit", **wrong)
    assert "an account waits must be a whole number from 3 to 100" in said.text
    assert "when it is not used must be a whole number from 1 to 168" in said.text
    said = await refused(site, "/settings/edit", **await settings_form(site, heartbeat_ms="5000"))
    assert "three times heartbeat_ms" in said.text
    assert all(one["value"] == one["default"] for one in present.settings(lab.services()))
    assert (await site.submit("/console/settings/edit", {}, who=USER, **HTMX)).status == 403


async def test_an_invitation_is_shown_with_its_command(site: Site) -> None:
    said = await site.submit("/console/servers/invitation", {}, who=ADMIN, **HTMX)
    page = parse(said.text)
    shown = {one.attributes["id"]: one.text for one in page.all("code")}
    assert shown["invitation-phrase"] == "word-word-word-word"
    assert shown["invitation-address"] == "srv-a:1"
    assert shown["invitation-command"].startswith("kmgr join ")
    assert page.all("time")[0].text == "in 15 minutes"


async def test_a_template_is_made_changed_published_given_and_deleted(lab: WebLab, site: Site) -> None:
    services = lab.services()
    await act(site, "/templates/new", name="physics", image="img-1", everyone="1", **SHAPE)
    made = present.template_of(services, "physics")
    assert (made["vcpus"], made["memory_mib"], made["standby"], made["maximum"]) == (2, 2048, 1, 4)
    assert (made["refresh"], made["enabled"]) == ("manual", True)
    assert made["assignments"] == [{"kind": "everyone", "subject": ""}]

    at = f"/templates/{made['id']}"
    await act(site, f"{at}/edit", **{**SHAPE, "notes": "Room 3", "maximum": "5"}, may_disable="1")
    made = present.template_of(services, "physics")
    assert (made["notes"], made["maximum"], made["enabled"]) == ("Room 3", 5, False)

    await lab.office.do(
        "version.add", version="ver-2", image="img-1", notes="", server=SERVERS[0], size_bytes=1 << 20,
        used_bytes=1, block_bytes=1 << 18, manifest_hash="b" * 64,
    )  # fmt: skip
    assert "version 2" in await act(site, f"{at}/publish", version="ver-2")
    assert present.template_of(services, "physics")["version"] == "ver-2"

    await lab.office.do("template.broken", template=made["id"], version="ver-2", n=3, cause="no answer")
    assert "no answer" in (await site.page("/console/templates", who=ADMIN)).text
    await act(site, f"{at}/mend")
    assert present.template_of(services, "physics")["broken_cause"] == ""

    await act(site, f"{at}/delete")
    assert [one["name"] for one in present.templates(services)] == ["office"]


async def test_all_that_is_wrong_with_a_template_is_told_at_once(site: Site) -> None:
    wrong = {**SHAPE, "vcpus": "none", "memory_mib": "3"}
    said = await refused(site, "/templates/new", name="", image="img-1", **wrong)
    for word in ("name is missing", "virtual CPUs must be", "memory in MiB must be a whole number from 64"):
        assert word in said.text
    said = await refused(site, "/templates/new", name="office", image="img-1", **SHAPE)
    assert said.status == 409 and "There is already a template named office" in said.text


async def test_people_are_given_a_template_and_it_is_taken_from_them(lab: WebLab, site: Site) -> None:
    at = "/console/templates/tpl-office/people"
    for kind, subject in (("everyone", ""), ("group", "students"), ("user", "ben")):
        said = await site.submit(at, {"kind": kind, "subject": subject}, who=ADMIN, **HTMX)
        assert said.status == 200
    given = {(one["kind"], one["subject"]) for one in present.assignments(lab.services(), "tpl-office")}
    assert given == {("everyone", ""), ("group", "students"), ("user", "ben"), ("user", USER)}
    for text in ("Everyone who can log in", "Group students", "User ben"):
        assert text in said.text
    said = await site.submit(f"{at}/remove", {"kind": "group", "subject": "students"}, who=ADMIN, **HTMX)
    assert "Group students" not in said.text
    assert "The group is missing" in (await refused(site, "/templates/tpl-office/people", kind="group")).text


async def test_how_many_servers_keep_an_image_and_which_versions_it_has(lab: WebLab, site: Site) -> None:
    await act(site, "/images/img-1/copies", where="some", copies="2")
    assert present.images(lab.services())[0]["copies"] == 2
    assert "from 2" in (await refused(site, "/images/img-1/copies", where="some", copies="1")).text
    await act(site, "/images/img-1/copies", where="all", copies="")
    assert present.images(lab.services())[0]["copies"] == 0
    said = await site.page("/console/images/img-1/versions/1/delete", who=ADMIN, **HTMX)
    assert "the template office" in said.text
    assert (await refused(site, "/images/img-1/versions/1/delete")).status == 409
    await lab.office.do("template.delete", template="tpl-office")
    said = await site.page("/console/images/img-1/versions/1/delete", who=ADMIN, **HTMX)
    assert "no template uses its image yet" in said.text
    await act(site, "/images/img-1/versions/1/delete")
    assert present.images(lab.services())[0]["versions"] == []


async def test_an_image_is_imported_from_the_server_and_deleted(lab: WebLab, site: Site, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    boot_sector = bytes(510) + b"\x55\xaa"
    disk.write_bytes(boot_sector + bytes((1 << 20) - len(boot_sector)))
    assert "imported" in await act(site, "/images/import", name="fresh", path=str(disk), notes="bare")
    image = next(one for one in present.images(lab.services()) if one["name"] == "fresh")
    assert [one["number"] for one in image["versions"]] == [1]
    said = await refused(site, "/images/import", name="fresh", path="/there/is/none")
    assert "There is no file /there/is/none" in said.text
    await act(site, f"/images/{image['id']}/delete")
    assert [one["name"] for one in present.images(lab.services())] == ["debian"]
    said = await site.page("/console/images/img-1/delete", who=ADMIN, **HTMX)
    assert "used by the template" in said.text
    assert (await refused(site, "/images/img-1/delete")).status == 409


async def test_an_import_that_fails_when_nobody_waits_is_shown_until_dismissed(
    lab: WebLab, site: Site, tmp_path: Path
) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("<b>Dear administrator</b>")
    said = await refused(site, "/images/import", name="fresh", path=str(letter))
    assert "cannot be imported" in said.text
    assert (await site.ask("GET", "/images/imports", who=ADMIN))[1]["items"] == []

    importer = site.client.server.app[SERVICES].importer  # type: ignore[attr-defined]
    async with importer._turn, importer._turn:  # as if two long ones were running
        assert await act(site, "/images/import", name="fresh", path=str(letter)) == "fresh is being imported."
        assert "fresh: waiting" in (await site.page("/console/part/images", who=ADMIN)).text
    async with asyncio.timeout(10):
        await asyncio.gather(*site.client.server.app[BACKGROUND], return_exceptions=True)  # type: ignore[attr-defined]
    for page in ("/console", "/console/images"):
        shown = (await site.page(page, who=ADMIN)).text
        assert "fresh was not imported" in shown and "letter.txt cannot be imported: " in shown
    (told,) = (await site.ask("GET", "/images/imports", who=ADMIN))[1]["items"]
    assert told["error"].startswith("letter.txt cannot be imported: ")
    await act(site, f"/imports/{told['id']}/dismiss")
    assert "not imported" not in (await site.page("/console/images", who=ADMIN)).text
    assert (await site.ask("DELETE", f"/images/imports/{told['id']}", who=ADMIN))[0] == 404


async def test_an_account_is_made_changed_locked_out_and_deleted(lab: WebLab, site: Site) -> None:
    def account() -> dict[str, Any]:
        return present.account_of(lab.services(), "zoe")

    new = {"name": "Zoe", "display_name": "Zoe Q", "role": "user", "groups": "a, b", "password": "long enough"}
    await act(site, "/accounts/new", **new)
    assert (account()["display_name"], account()["groups"]) == ("Zoe Q", ["a", "b"])
    await act(site, "/accounts/zoe/edit", display_name="", role="admin", groups="")
    assert (account()["display_name"], account()["role"], account()["groups"]) == ("zoe", "admin", [])
    await act(site, "/accounts/zoe/disable")
    assert account()["disabled"]
    await act(site, "/accounts/zoe/enable")
    assert not account()["disabled"]
    said = await refused(site, "/accounts/zoe/password", password="one password", again="another")
    assert "the two entries differ" in said.text
    await act(site, "/accounts/zoe/password", password=RIGHT, again=RIGHT)
    said = await site.submit("/login", {"user": "zoe", "password": RIGHT})
    assert said.status == 303 and auth.COOKIE in said.cookies
    await act(site, "/accounts/zoe/delete")
    assert "zoe" not in [one["name"] for one in present.accounts(lab.services())]
    assert "last administrator" in (await refused(site, f"/accounts/{ADMIN}/delete")).text


async def test_sessions_of_a_person_end(lab: WebLab, site: Site) -> None:
    assert (await site.page("/", who=USER)).status == 200
    assert "End all sessions of anna" in (await site.page("/console/users", who=ADMIN)).text
    await act(site, "/sessions/anna/end")
    assert (await site.page("/", who=USER)).status == 303


async def test_a_directory_is_tried_saved_and_removed(lab: WebLab, site: Site) -> None:
    trial = {**DIRECTORY, "id": "dir-1", "test_user": "zoe"}
    said = await site.submit("/console/directories/test", {**trial, "test_password": RIGHT}, who=ADMIN, **HTMX)
    assert said.status == 200 and "zoe of dir-1, a user" in said.text
    said = await refused(site, "/directories/test", **trial, test_password="wrong")
    assert said.status == 401 and "do not fit together" in said.text
    assert present.directories(lab.services()) == []
    await act(site, "/directories/dir-1/edit", **DIRECTORY)
    saved = present.directories(lab.services())[0]
    assert saved["urls"] == ["ldaps://a.example", "ldaps://b.example"]
    said = await refused(site, "/directories/dir-1/edit", **{**DIRECTORY, "urls": "", "base_dn": ""})
    assert "address is missing" in said.text and "where people are is missing" in said.text
    await act(site, "/accounts/new", name="Zoe", display_name="", role="user", groups="", password="long enough")
    assert "logs in by a directory" in (await site.page("/console/accounts/zoe/delete", who=ADMIN)).text
    await act(site, "/accounts/zoe/delete", moves="yes")
    assert "zoe" not in [one["name"] for one in present.accounts(lab.services())]
    await act(site, "/directories/dir-1/delete")
    assert present.directories(lab.services()) == []


async def test_a_broken_desktop_is_made_anew_and_another_removed(lab: WebLab, site: Site) -> None:
    desktop = await lab.office.standby()
    broken = await lab.office.placed()
    await lab.office.do("desktop.building", **broken)
    await lab.office.do("desktop.failed", **broken, step="boot", cause="no answer")

    def states() -> dict[str, str]:
        session = lab.services().sessions.session_of(f"token-of-{ADMIN}")
        assert session is not None
        return {one["id"]: one["state"] for one in present.desktops(lab.services(), session)}

    page = (await site.page(f"/console/desktops/{broken['desktop']}", who=ADMIN)).text
    assert "no answer" in page and "Make it anew" in page
    await act(site, f"/desktops/{broken['desktop']}/retry")
    await act(site, f"/desktops/{desktop}/retire")
    assert (states()[broken["desktop"]], states()[desktop]) == ("placed", "retired")


async def test_what_a_desktop_waits_for_is_on_its_page(lab: WebLab, site: Site) -> None:
    desktop = (await lab.office.placed())["desktop"]
    lab.waiting[desktop] = "It waits for the copy of version 1: 40 % is here."
    assert "It waits for the copy of version 1" in (await site.page(f"/console/desktops/{desktop}", who=ADMIN)).text


async def test_the_grid_address_is_chosen_and_shown(site: Site) -> None:
    assert await act(site, "/servers/address", address=" 192.0.2.5/24 ") == "The grid address is 192.0.2.5/24."
    page = await site.page("/console/servers", who=ADMIN)
    assert "192.0.2.5" in page.text
    assert "held by no server now" in page.text
    for wrong, word in (("192.0.2.5", "prefix length"), ("127.0.0.1/8", "reached"), ("192.0.2.255/24", "broadcast")):
        assert word in (await refused(site, "/servers/address", address=wrong)).text
    assert "no address of its own" in await act(site, "/servers/address", address="")
