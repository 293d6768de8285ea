"""Who gets in, who is kept out, and whose page a request came from."""

import re

import pytest

from kmgr.web import auth
from kmgr.web.api.routes import ROUTES
from kmgr.web.api.table import PREFIX, Access, Route
from tests.lab.people import RIGHT
from tests.lab.web_lab import ADMIN, OTHER, USER, Site, WebLab


async def test_a_log_in_gives_a_token_and_a_cookie_that_scripts_cannot_read(site: Site) -> None:
    said = await site.send("POST", "/api/v1/sessions", json={"user": USER, "password": RIGHT})
    assert said.status == 201
    cookie = said.cookies[auth.COOKIE]
    assert cookie.value == said.json["token"]
    assert cookie["secure"] and cookie["httponly"]
    assert (cookie["samesite"], cookie["path"], cookie["domain"]) == ("Strict", "/", "")
    status, own = await site.ask("GET", "/sessions", headers={"Authorization": f"Bearer {said.json['token']}"})
    assert status == 200
    assert [(one["user"], one["current"]) for one in own["items"]] == [(USER, True)]


async def test_a_wrong_password_and_an_unknown_name_sound_the_same(site: Site) -> None:
    wrong = await site.ask("POST", "/sessions", {"user": USER, "password": "no"})
    unknown = await site.ask("POST", "/sessions", {"user": "nobody", "password": "no"})
    assert wrong == unknown
    assert (wrong[0], wrong[1]["error"]["code"]) == (401, "wrong_password")


async def test_after_too_many_wrong_passwords_the_name_waits(site: Site) -> None:
    for _ in range(8):
        assert (await site.ask("POST", "/sessions", {"user": USER, "password": "no"}))[0] == 401
    status, body = await site.ask("POST", "/sessions", {"user": USER, "password": RIGHT})
    assert (status, body["error"]["code"]) == (401, "throttled")


async def test_who_guesses_at_many_names_waits_by_address_at_api_and_form(lab: WebLab, site: Site) -> None:
    for n in range(20):
        assert (await site.ask("POST", "/sessions", {"user": f"name-{n}", "password": "no"}))[0] == 401
        await lab.clock.advance(1)
    told = "Too many wrong log-ins came from your network address. Wait 40 s and try again."
    said = await site.send("POST", "/api/v1/sessions", json={"user": USER, "password": RIGHT})
    assert (said.status, said.headers["Retry-After"]) == (429, "40")
    assert said.json["error"] == {"code": "too_many", "message": told}
    page = await site.submit("/login", {"user": USER, "password": RIGHT})
    assert (page.status, page.headers["Retry-After"]) == (429, "40")
    assert told in page.text
    await lab.clock.advance(40)
    assert (await site.submit("/login", {"user": USER, "password": RIGHT})).status == 303
    assert (await site.ask("POST", "/sessions", {"user": "name-x", "password": "no"}))[0] == 401


async def test_a_log_out_ends_the_session_everywhere(lab: WebLab, site: Site) -> None:
    other = await lab.site(lab.office.grids[1].server)
    assert (await other.ask("GET", "/offers", who=USER))[0] == 200
    assert (await site.ask("DELETE", "/sessions/current", who=USER))[0] == 204
    assert (await other.ask("GET", "/offers", who=USER))[0] == 401


async def test_an_administrator_ends_all_sessions_of_a_person(site: Site) -> None:
    assert (await site.ask("GET", "/offers", who=USER))[0] == 200
    assert await site.ask("DELETE", f"/sessions/of/{USER}", who=ADMIN) == (200, {"closed": 1})
    assert (await site.ask("GET", "/offers", who=USER))[0] == 401


async def test_a_session_ends_by_itself(lab: WebLab, site: Site) -> None:
    await lab.token(USER)
    await lab.clock.advance(3601)
    status, body = await site.ask("GET", "/offers", who=USER)
    assert (status, body["error"]["code"]) == (401, "not_logged_in")


def address(route: Route) -> str:
    return re.sub(r"{\w+}", "x", route.path)


async def test_every_address_is_kept_for_those_whom_the_table_names(site: Site) -> None:
    for route in ROUTES:
        if route.access is Access.ANYONE:
            continue
        if route.method == "HEAD":  # an answer without words
            assert (await site.send("HEAD", PREFIX + address(route))).status == 401
            bearer = {"Authorization": f"Bearer {await site.lab.token(USER)}"}
            assert (await site.send("HEAD", PREFIX + address(route), headers=bearer)).status == 403
            continue
        status, body = await site.ask(route.method, address(route))
        assert (route, status, body["error"]["code"]) == (route, 401, "not_logged_in")
        if route.access is Access.ADMIN:
            status, body = await site.ask(route.method, address(route), who=USER)
            assert (route, status, body["error"]["code"]) == (route, 403, "not_allowed")
            assert "anna is not an administrator" in body["error"]["message"]


async def test_without_a_log_in_there_are_these_addresses_only() -> None:
    assert {(one.method, one.path) for one in ROUTES if one.access is Access.ANYONE} == {
        ("POST", "/sessions"), ("GET", "/status"), ("GET", "/openapi.json"),
    }  # fmt: skip


async def test_the_addresses_that_users_may_use_are_these() -> None:
    assert {(one.method, one.path) for one in ROUTES if one.access is Access.USER} == {
        ("GET", "/sessions"), ("DELETE", "/sessions/current"), ("GET", "/live"), ("GET", "/offers"),
        ("GET", "/desktops"), ("POST", "/desktops"), ("GET", "/desktops/{id}"), ("DELETE", "/desktops/{id}"),
        ("POST", "/desktops/{id}/ticket"), ("GET", "/desktops/{id}/screenshot"),
        ("GET", "/desktops/{id}/attention"), ("POST", "/desktops/{id}/attention"),
    }  # fmt: skip


async def test_a_change_by_cookie_must_carry_the_word_of_our_pages(site: Site) -> None:
    cookie, word = await site.cookie(ADMIN), (await site.csrf(ADMIN))[auth.CSRF_FIELD]
    path, body = "/api/v1/settings", {"login_tries": 9}
    bare = await site.send("PATCH", path, json=body, headers=cookie)
    assert (bare.status, bare.json["error"]["code"]) == (403, "csrf")
    other = auth.word(await site.lab.token(OTHER))
    foreign = await site.send("PATCH", path, json=body, headers={**cookie, auth.CSRF_HEADER: other})
    assert foreign.status == 403
    good = await site.send("PATCH", path, json=body, headers={**cookie, auth.CSRF_HEADER: word})
    assert good.status == 200


async def test_a_bearer_token_needs_no_word(site: Site) -> None:
    assert (await site.ask("PATCH", "/settings", {"login_tries": 9}, who=ADMIN))[0] == 200


@pytest.mark.parametrize("origin", ["cross-site", "same-site"])
async def test_a_change_from_another_sites_page_is_refused(site: Site, origin: str) -> None:
    cookie, word = await site.cookie(ADMIN), (await site.csrf(ADMIN))[auth.CSRF_FIELD]
    headers = {**cookie, auth.CSRF_HEADER: word, "Sec-Fetch-Site": origin}
    said = await site.send("PATCH", "/api/v1/settings", json={"login_tries": 9}, headers=headers)
    assert (said.status, said.json["error"]["code"]) == (403, "cross_site")


async def test_nobody_is_logged_in_by_another_sites_form(site: Site) -> None:
    data = f'{{"user": "{USER}", "password": "{RIGHT}"}}'
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        said = await site.send("POST", "/api/v1/sessions", data=data, headers={"Content-Type": kind})
        assert said.status == 400
    page = await site.send("POST", "/login", data={"user": USER, "password": RIGHT})
    assert page.status == 403
    assert auth.COOKIE not in page.cookies


async def test_the_form_gets_a_cookie_and_its_word_lets_a_person_in(site: Site) -> None:
    form = await site.send("GET", "/login")
    secret = form.cookies[auth.FORM_COOKIE]
    assert secret["secure"] and secret["httponly"]
    assert auth.word(secret.value) in form.text
    data = {"user": USER, "password": RIGHT, "csrf": auth.word(secret.value)}
    headers = {"Cookie": f"{auth.FORM_COOKIE}={secret.value}"}
    inside = await site.send("POST", "/login", data=data, headers=headers)
    assert inside.status == 303
    assert inside.cookies[auth.COOKIE].value


async def test_a_page_sends_strangers_to_the_log_in_and_back(site: Site) -> None:
    said = await site.page("/console/servers?order=name")
    assert (said.status, said.headers["Location"]) == (303, "/login?next=/console/servers%3Forder%3Dname")
    part = await site.page("/console/servers", **{"HX-Request": "true"})
    assert (part.status, part.headers["HX-Redirect"]) == (401, "/login")


async def test_a_header_counts_before_the_cookie(site: Site) -> None:
    cookie = await site.cookie(ADMIN)
    said = await site.send("GET", "/api/v1/servers", headers={**cookie, "Authorization": "Bearer nonsense"})
    assert said.status == 401
