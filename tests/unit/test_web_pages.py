"""The portal's and the console's pages: they render for everyone, empty and full, safe and labelled."""

import re
from collections.abc import Mapping

import pytest

from kmgr.grid.model import Vitals
from kmgr.web import auth, present
from kmgr.web.app import STATIC
from kmgr.web.html_env import environment
from kmgr.web.portal.pages import own_page
from tests.lab.pages import Page, parse, problems
from tests.lab.people import RIGHT, SERVERS
from tests.lab.web_lab import ADMIN, OTHER, USER, Site, WebLab

EVIL = "<img src=x onerror=alert(1)>\"'"
SECTIONS = ("", "/servers", "/images", "/templates", "/desktops", "/users", "/events", "/settings", "/help")
PARTS = ("overview", "servers", "images", "templates", "desktops", "users", "events", "settings", "help")
DIALOGS = (
    "/servers/srv-b/drain", "/servers/srv-b/remove", "/servers/address", "/images/import", "/images/img-1/delete",
    "/images/img-1/copies", "/images/img-1/versions/1/delete",
    "/templates/new",
    "/templates/tpl-office/edit", "/templates/tpl-office/publish", "/templates/tpl-office/people",
    "/templates/tpl-office/delete", "/accounts/new", "/accounts/anna/edit", "/accounts/anna/password",
    "/accounts/anna/delete", "/directories/new", "/directories/dir-1/edit", "/directories/dir-1/delete",
    "/desktops/dsk-1/retire", "/settings/edit",
)  # fmt: skip
HTMX = {"HX-Request": "true"}


async def fill(lab: WebLab) -> None:
    """Put something of everything into the grid, with names that would like to be markup."""
    office = lab.office
    await office.do("image.create", image="img-2", name=EVIL, notes=EVIL)
    await office.do(
        "version.add", version="ver-2", image="img-1", notes=EVIL, server=SERVERS[0], size_bytes=20 << 30,
        used_bytes=3 << 30, block_bytes=1 << 18, manifest_hash="b" * 64,
    )  # fmt: skip
    await office.do("template.update", template="tpl-office", notes=EVIL)
    await office.account("zoe", display_name=EVIL, groups=[EVIL])
    await office.do("account.update", name="zoe", disabled=True)
    await office.give("students", kind="group")
    await office.give("", kind="everyone")
    for server in SERVERS:
        await office.standby(server=server)
    await office.do("desktop.claim", user=USER, template="tpl-office")
    broken = await office.placed(server=SERVERS[2])
    await office.do("desktop.building", **broken)
    await office.do("desktop.failed", **broken, step=EVIL, cause=EVIL)
    await office.do("template.broken", template="tpl-office", version="ver-1", n=3, cause=EVIL)
    await office.do("server.drain", server=SERVERS[1])
    await office.do("server.lost", server=SERVERS[2])
    await office.do(
        "directory.set", directory="dir-1", urls=["ldaps://dc.example"], base_dn=EVIL, user_filter="(uid={name})",
        bind_name="{name}", ca_pem="", start_tls=False, admin_group=EVIL,
    )  # fmt: skip
    ill: Vitals = lab.vitals(SERVERS[1], problems=(EVIL,), accelerator="tcg", images={"ver-2": (40, 100)})
    lab.boards[SERVERS[0]].put(ill)


async def loaded(site: Site, path: str, who: str, headers: Mapping[str, str] = {}, *, status: int = 200) -> str:
    """Load a page and return it if a browser and a careful reader have nothing against it."""
    said = await site.page(path, who=who, **headers)
    assert said.status == status, (path, said.status, said.text[:500])
    csrf = (await site.csrf(who))[auth.CSRF_FIELD]
    assert not problems(said.text, csrf=csrf), path
    assert "<img src=x" not in said.text, path
    return said.text


def names(page: Page, tag: str) -> list[str]:
    return [one.text.strip() for one in page.all(tag)]


@pytest.mark.parametrize("full", [False, True], ids=["empty", "full"])
async def test_every_page_is_sound(lab: WebLab, site: Site, full: bool) -> None:
    if full:
        await fill(lab)
    for who in (ADMIN, USER, OTHER):
        await loaded(site, "/", who)
    await loaded(site, "/login", "")
    for section in SECTIONS:
        page = await loaded(site, f"/console{section}", ADMIN)
        assert "data-live" in page or section == "/help"
    for part in PARTS:
        assert "<html" not in await loaded(site, f"/console/part/{part}", ADMIN, HTMX)


async def test_every_dialog_is_sound_as_a_fragment_and_on_a_page_of_its_own(lab: WebLab, site: Site) -> None:
    await fill(lab)
    for path in DIALOGS:
        fragment = await loaded(site, f"/console{path}", ADMIN, HTMX)
        assert "dialog-title" in fragment and "<html" not in fragment
        assert "<html" in await loaded(site, f"/console{path}", ADMIN)
    await loaded(site, "/release/dsk-1", USER, HTMX)


async def test_a_grid_without_anything_says_what_to_do_first(lab: WebLab, site: Site) -> None:
    await lab.office.do("template.delete", template="tpl-office")
    await lab.office.do("image.delete", image="img-1")
    assert "Nothing is assigned to you yet" in await loaded(site, "/", USER)
    assert "Towards the first desktop" in await loaded(site, "/console", ADMIN)
    assert "No golden image yet" in await loaded(site, "/console/images", ADMIN)
    assert "First a golden image" in await loaded(site, "/console/templates", ADMIN)
    assert "No desktop yet" in await loaded(site, "/console/desktops", ADMIN)
    assert "First a golden image" in await loaded(site, "/console/templates/new", ADMIN, HTMX)


async def test_what_people_and_machines_wrote_is_shown_as_text(lab: WebLab, site: Site) -> None:
    await fill(lab)
    for path in ("/console/servers", "/console/images", "/console/templates", "/console/users", "/console/desktops"):
        assert EVIL in parse(await loaded(site, path, ADMIN)).all("main")[0].text, path
    assert EVIL in parse(await loaded(site, "/", USER)).all("main")[0].text


async def test_nobody_but_administrators_reaches_any_part_of_the_console(lab: WebLab, site: Site) -> None:
    await fill(lab)
    routes = [
        (route.method, re.sub(r"\{[^}]*\}", "x", route.resource.canonical.replace("{step}", "drain")))
        for route in site.client.app.router.routes()
        if route.resource is not None and route.resource.canonical.startswith("/console")
    ]
    assert len(routes) > 40
    for method, path in routes:
        assert (await site.send(method, path)).status in ((303,) if method in ("GET", "HEAD") else (403,)), path
        said = await (site.page(path, who=USER) if method in ("GET", "HEAD") else site.submit(path, {}, who=USER))
        assert said.status == 403, (method, path)
    assert "administrators" in (await site.page("/console", who=USER)).text


async def test_the_link_to_the_console_is_for_administrators(site: Site) -> None:
    assert "/console" in await loaded(site, "/", ADMIN)
    assert "/console" not in await loaded(site, "/", USER)


async def test_an_unknown_page_is_told_in_the_house_s_style(site: Site) -> None:
    assert "There is nothing" in await loaded(site, "/console/nix", ADMIN, status=404)
    assert "There is nothing" in await loaded(site, "/nix", USER, status=404)


async def test_icons_and_scripts_that_pages_name_exist(lab: WebLab, site: Site) -> None:
    await fill(lab)
    known = set(re.findall(r'<symbol id="([a-z]+)"', (STATIC / "icons.svg").read_text()))
    for path in ("/", "/login", "/desktop/dsk-1", *(f"/console{one}" for one in (*SECTIONS, "/desktops/dsk-1"))):
        page = parse(
            (await site.page(path, who="" if path == "/login" else USER if path[:4] != "/con" else ADMIN)).text
        )
        wanted = {one.attributes["href"].partition("#")[2] for one in page.all("use")}
        assert wanted <= known, (path, wanted - known)
        addresses = [one.attributes.get("src") for one in page.all("script")]
        addresses += [one.attributes["href"] for one in page.all("link")]
        for address in addresses:
            assert address and address.startswith("/static/") and "?v=" in address, path
            name = address.removeprefix("/static/").partition("?")[0]
            assert name.startswith("vendor/") or (STATIC / name).is_file(), name


async def test_a_wrong_password_is_told_and_the_name_stays(site: Site) -> None:
    said = await site.submit("/login", {"user": USER, "password": "no", "next": "/desktop/x"})
    page = parse(said.text)
    assert said.status == 401
    assert "do not fit together" in said.text and auth.COOKIE not in said.cookies
    fields = {one.attributes["name"]: one.attributes.get("value", "") for one in page.all("input")}
    assert (fields["user"], fields["next"], fields["password"]) == (USER, "/desktop/x", "")


async def test_wrong_tries_hear_what_comes_next_alike_for_names_that_nobody_has(lab: WebLab, site: Site) -> None:
    told: dict[str, list[str]] = {}
    for user in (USER, "nobody-at-all"):
        for before in (0, 6):
            for _ in range(before):
                await lab.office.do("login.failed", name=user, tries=8, wait_s=60)
            said = await site.submit("/login", {"user": user, "password": "no"})
            (line,) = [one for one in parse(said.text).all("div") if one.attributes.get("id") == "login-error"]
            told.setdefault(user, []).append(line.text.strip())
    known, unknown = told.values()
    assert known == unknown
    assert "After 8 wrong tries in a row a name waits 60 s." in known[0]
    assert "this name can log in again in 60 s." in known[1]


async def test_a_slow_pace_tells_its_reason_as_one_of_before_not_beside_the_load_of_now(
    lab: WebLab, site: Site
) -> None:
    why = "its processors were busy (93 % of the time somebody waited for one)"
    lab.boards[SERVERS[0]].put(lab.vitals(SERVERS[1], extra={"builds": {"limit": 1, "most": 8, "why": why}}))
    shown = parse(await loaded(site, "/console/part/servers", ADMIN))
    (told,) = [one.text for one in shown.all("div") if "data-pace" in one.attributes]
    assert f"When it last slowed down: {why}." in told


async def test_who_publishes_without_another_version_hears_how_one_is_made(lab: WebLab, site: Site) -> None:
    asked = "/console/templates/tpl-office/publish"
    assert "There is no other version yet." in await loaded(site, asked, ADMIN, HTMX)
    await fill(lab)
    assert "There is no other version yet." not in await loaded(site, asked, ADMIN, HTMX)


async def test_the_worst_day_has_a_page_of_its_own_and_each_link_of_it_leads_somewhere(site: Site) -> None:
    page = parse(await loaded(site, "/console/help", ADMIN))
    heads = " ".join(names(page, "h2"))
    assert all(one in heads for one in ("server is lost", "cannot log in", "stuck", "restore"))
    for link in {one.attributes["href"] for one in page.all("a") if one.attributes["href"].startswith("/console")}:
        await loaded(site, link, ADMIN)


async def test_a_locked_name_hears_how_long_it_waits(lab: WebLab, site: Site) -> None:
    await lab.office.do("login.failed", name=USER, tries=1, wait_s=60)
    said = await site.submit("/login", {"user": USER, "password": RIGHT})
    assert said.status == 401
    assert 'data-code="throttled"' in said.text and "Wait 60 s" in said.text


async def test_a_disabled_account_hears_so(lab: WebLab, site: Site) -> None:
    await lab.office.do("account.update", name=USER, disabled=True)
    said = await site.submit("/login", {"user": USER, "password": RIGHT})
    assert said.status == 401
    assert 'data-code="disabled"' in said.text


@pytest.mark.parametrize(
    ("wanted", "onward"),
    [
        ("/desktop/dsk-1", "/desktop/dsk-1"), ("", "/"), ("//evil.example/", "/"), ("https://evil.example", "/"),
        ("/\\evil.example", "/"), ("/login?next=/", "/"), ("/a\r\nSet-Cookie: b", "/"),
    ],
)  # fmt: skip
def test_a_page_to_go_on_to_is_one_of_ours(wanted: str, onward: str) -> None:
    assert own_page(wanted) == onward


async def test_logging_in_leads_on(site: Site) -> None:
    said = await site.submit("/login", {"user": USER, "password": RIGHT, "next": "/desktop/dsk-1"})
    assert (said.status, said.headers["Location"]) == (303, "/desktop/dsk-1")
    assert said.cookies[auth.COOKIE].value


async def test_an_administrator_without_desktops_starts_at_the_console(lab: WebLab, site: Site) -> None:
    said = await site.submit("/login", {"user": ADMIN, "password": RIGHT})
    assert said.headers["Location"] == "/console"
    await lab.office.give(ADMIN)
    said = await site.submit("/login", {"user": ADMIN, "password": RIGHT})
    assert said.headers["Location"] == "/"


async def test_whoever_is_logged_in_passes_the_log_in_page(site: Site) -> None:
    said = await site.page("/login?next=/desktop/x", who=USER)
    assert (said.status, said.headers["Location"]) == (303, "/desktop/x")
    said = await site.page("/desktop/x")
    assert (said.status, said.headers["Location"]) == (303, "/login?next=/desktop/x")


async def test_logging_out_ends_the_session(site: Site) -> None:
    said = await site.submit("/logout", {}, who=USER)
    assert (said.status, said.headers["Location"]) == (303, "/login")
    assert (await site.page("/", who=USER)).status == 303


async def test_open_leads_to_the_screen(lab: WebLab, site: Site) -> None:
    desktop = await lab.office.standby()
    assert "Prepare" not in await loaded(site, "/", USER)
    said = await site.submit("/open/tpl-office", {}, who=USER)
    assert (said.status, said.headers["Location"]) == (303, f"/desktop/{desktop}")
    page = parse(await loaded(site, f"/desktop/{desktop}", USER))
    body = page.all("body")[0].attributes
    assert (body["data-state"], body["data-desktop"]) == ("connecting", desktop)
    assert page.all("title")[0].text == "office-1"
    assert "Give back" in await loaded(site, "/", USER)


async def test_waiting_tells_how_long_and_opens_by_itself(lab: WebLab, site: Site) -> None:
    await lab.office.standby(took_s=20)
    await lab.office.do("desktop.claim", user=OTHER, template="tpl-office")
    report = await lab.office.placed()
    await lab.office.do("desktop.building", **report)
    said = await site.submit("/open/tpl-office", {}, who=USER)
    waiting = said.headers["Location"]
    assert said.status == 303 and waiting.startswith("/?waiting=tpl-office&since=")
    since = waiting.rpartition("=")[2]
    assert f"/open/tpl-office?since={since}" in await loaded(site, waiting, USER)

    await lab.clock.advance(5)
    poll = f"/open/tpl-office?since={since}"
    said = await site.submit(poll, {}, who=USER, **HTMX)
    progress = parse(said.text).all("progress")[0].attributes
    assert (said.status, progress["value"]) == (200, "25")
    assert "About 15 s left" in said.text

    await lab.office.do("desktop.ready", **report)
    said = await site.submit(poll, {}, who=USER, **HTMX)
    assert (said.status, said.headers["HX-Redirect"]) == (204, f"/desktop/{report['desktop']}")
    assert "being prepared" not in await loaded(site, waiting, USER)


async def test_giving_back_asks_first_and_takes_the_desktop_away(lab: WebLab, site: Site) -> None:
    desktop = await lab.office.standby()
    await site.submit("/open/tpl-office", {}, who=USER)
    assert "office-1" in await loaded(site, f"/release/{desktop}", USER, HTMX)
    assert (await site.page(f"/release/{desktop}", who=OTHER)).status == 404
    said = await site.submit(f"/release/{desktop}", {}, who=USER)
    assert (said.status, said.headers["Location"]) == (303, "/")
    assert "Give back" not in await loaded(site, "/", USER)


async def test_more_events_are_shown_step_by_step(lab: WebLab, site: Site) -> None:
    for n in range(60):
        await lab.office.do("template.update", template="tpl-office", notes=str(n))

    def shown(text: str) -> list[int]:
        return [int(n) for n in re.findall(r'id="event-(\d+)"', text)]

    first = await loaded(site, "/console/events?kind=template", ADMIN)
    assert len(shown(first)) == 50 and "Show older events" in first
    more = await loaded(site, "/console/part/events?kind=template&limit=100", ADMIN, HTMX)
    assert len(shown(more)) > 60 and shown(more)[:50] == shown(first)
    assert "Show older events" not in more


async def test_what_a_server_did_by_itself_bears_its_name(lab: WebLab, site: Site) -> None:
    await lab.grid().propose("server.drain", {"server": SERVERS[2]}, by=SERVERS[1])
    for path in ("/console", "/console/events"):
        assert "by server b" in await loaded(site, path, ADMIN)
    await lab.grid().propose("server.remove", {"server": SERVERS[1]}, by=ADMIN)
    _, body = await site.ask("GET", "/events?kind=server", who=ADMIN)
    assert [(one["by"], one["by_name"]) for one in body["items"][:2]] == [(ADMIN, ADMIN), (SERVERS[1], "server b")]


async def test_a_server_that_is_cut_off_shows_its_own_copy_and_says_so(lab: WebLab, site: Site) -> None:
    await lab.token(USER)
    await lab.token(ADMIN)
    lab.office.log.cut_off.add(SERVERS[0])
    assert "does not reach a majority" in await loaded(site, "/console", ADMIN)
    assert "office" in await loaded(site, "/", USER)
    said = await site.submit("/console/servers/srv-b/drain", {}, who=ADMIN, **HTMX)
    assert said.status == 503 and said.headers["HX-Retarget"] == "#toasts" and "majority" in said.text
    said = await site.submit("/login", {"user": USER, "password": RIGHT})
    assert said.status == 503 and "alert-warning" in said.text and "majority" in said.text


async def test_desktops_narrow_to_state_and_server(lab: WebLab, site: Site) -> None:
    for server in SERVERS:
        await lab.office.standby(server=server)
    await lab.office.do("desktop.claim", user=USER, template="tpl-office")
    page = await loaded(site, "/console/desktops?state=ready&server=srv-c", ADMIN)
    assert re.findall(r'<tr data-row id="([^"]*)"', page) == ["desktop-dsk-3"]
    # Its live part asks for the same again: what is sought stands in the form that it includes.
    assert 'hx-get="/console/part/desktops"' in page and 'hx-include="#sought"' in page
    assert '<input type="hidden" name="state" value="ready">' in page
    assert '<input type="hidden" name="server" value="srv-c">' in page


@pytest.mark.parametrize(("macro", "level"), [("bar", "full"), ("progress", "good")])
def test_what_is_full_warns_and_what_is_done_does_not(macro: str, level: str) -> None:
    drawn = environment("1").from_string(
        f'{{% import "ui.html" as ui with context %}}{{{{ ui.{macro}("Desktops", 100, "all") }}}}'
    )
    assert f'class="bar bar-{level}"' in drawn.render()


async def test_of_a_thousand_people_some_are_shown_and_all_are_found(lab: WebLab, site: Site) -> None:
    for number in range(250):
        await lab.office.do(
            "account.create", name=f"pupil-{number:03}", display_name=f"Ümit {number}", role="user",
            groups=[f"class-{number % 10}"], password_hash="",
        )  # fmt: skip
    text = await loaded(site, "/console/users", ADMIN)
    told = f"100 of {len(present.accounts(lab.services()))} are shown."
    assert (text.count('id="account-'), told in text) == (100, True)
    assert "are shown." not in await loaded(site, "/console/part/users?limit=300", ADMIN)
    text = await loaded(site, "/console/part/users?words=CLASS-7+ümit", ADMIN)
    assert text.count('id="account-') == 25 and "pupil-247" in text
    assert "No built-in account is like that." in await loaded(site, "/console/part/users?words=nobody", ADMIN)
