"""The API, resource by resource; `Site.ask` also holds every answer against the API's own description."""

import json
import logging
import shutil
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from kmgr.ids import DesktopId
from kmgr.provision.hypervisor import DomainSpec
from kmgr.web.api.routes import ROUTES
from kmgr.web.api.table import PREFIX
from tests.lab.people import RIGHT, SERVERS
from tests.lab.web_lab import ADMIN, DESCRIBED, OTHER, USER, Site, WebLab

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")

DIRECTORY = {
    "urls": ["ldaps://dc.example"], "base_dn": "dc=example", "user_filter": "(uid={name})",
    "bind_name": "uid={name},dc=example",
}  # fmt: skip
SHAPE = {"vcpus": 2, "memory_mib": 1024, "standby": 1, "maximum": 4}


async def good(site: Site, method: str, path: str, body: Any = None, *, who: str = ADMIN, **more: Any) -> Any:
    status, said = await site.ask(method, path, body, who=who, **more)
    assert status < 300, said
    return said


async def refused(site: Site, status: int, method: str, path: str, body: Any = None, **more: Any) -> str:
    found, said = await site.ask(method, path, body, **{"who": ADMIN, **more})
    assert found == status, said
    return str(said["error"]["message"])


async def test_every_address_answers_as_it_is_described(lab: WebLab, site: Site, tmp_path: Path) -> None:
    standby = await lab.office.standby()
    broken = await lab.office.placed()
    await lab.office.do("desktop.failed", **broken, step="boot", cause="no disk")
    await lab.hypervisors[SERVERS[0]].define(spec_of(standby))
    await lab.hypervisors[SERVERS[0]].start(spec_of(standby).desktop)
    await lab.office.do(
        "version.add", version="ver-2", image="img-1", notes="", server=SERVERS[0], size_bytes=1 << 20,
        used_bytes=1, block_bytes=1 << 18, manifest_hash="b" * 64,
    )  # fmt: skip
    steps: list[tuple[str, str, Any]] = [
        ("GET", "/status", None), ("GET", "/servers", None), ("GET", "/events", None), ("GET", "/settings", None),
        ("GET", "/redundancy", None), ("GET", "/openapi.json", None), ("GET", "/images/imports", None),
        ("GET", "/images", None), ("GET", "/images/files", None), ("PATCH", "/images/img-1", {"copies": 2}),
        ("GET", "/quotas", None), ("GET", "/templates", None), ("GET", "/accounts", None), ("GET", "/sessions", None),
        ("POST", "/sessions", {"user": USER, "password": RIGHT}),
        ("PATCH", "/settings", {"login_tries": 5}),
        ("GET", "/grid-address", None), ("PUT", "/grid-address", {"address": "192.0.2.5/24"}),
        ("POST", "/servers/invitation", None),
        ("POST", "/servers/srv-b/drain", None), ("POST", "/servers/srv-b/undrain", None),
        ("DELETE", "/servers/srv-c?force=1", None), ("POST", "/servers/srv-c/off", None),
        ("POST", "/templates", {"name": "lab", "image": "debian", **SHAPE, "policy": {"keep_s": 600}}),
        ("PATCH", "/templates/tpl-office", {"notes": "for all", "enabled": True}),
        ("POST", "/templates/tpl-office/publish", {"version": 1}), ("POST", "/templates/tpl-office/mend", None),
        ("GET", "/templates/tpl-office/policy", None), ("PATCH", "/templates/tpl-office/policy", {"keep_s": 600}),
        ("GET", "/time-zone", None), ("PUT", "/time-zone", {"zone": "Europe/Berlin"}),
        ("GET", "/templates/tpl-office/versions", None),
        ("POST", "/templates/tpl-office/publish", {"version": 2, "canary": 1, "notes": "new"}),
        ("GET", "/templates/tpl-office/versions", None), ("GET", "/templates", None),
        ("POST", "/templates/tpl-office/canary", {"verdict": "pass"}),
        ("POST", "/templates/tpl-office/rollback", {}),
        ("POST", "/templates/tpl-office/bench", {"version": 2, "purpose": "edit"}),
        ("GET", "/templates/tpl-office/bench", None),
        ("POST", "/templates/tpl-office/copy", {"name": "derived", "child": True}),
        ("PUT", "/templates/tpl-office/tags/exam", {"version": 1}),
        ("DELETE", "/templates/tpl-office/tags/exam", None),
        ("PATCH", "/templates/tpl-office/versions/2", {"soft_at": 1 << 41, "hard_at": 0}),
        ("POST", "/templates/tpl-office/assignments", {"kind": "user", "subject": ADMIN}),
        ("GET", "/templates/tpl-office/assignments", None),
        ("GET", "/offers", None), ("POST", "/desktops", {"template": "office"}), ("GET", "/desktops", None),
        ("GET", f"/desktops/{standby}", None), ("POST", f"/desktops/{standby}/ticket", None),
        ("GET", f"/desktops/{standby}/life", None),
        ("POST", f"/desktops/{broken['desktop']}/retry", None), ("DELETE", f"/desktops/{standby}", None),
        ("DELETE", "/templates/tpl-office/assignments?kind=user&subject=root", None),
        ("POST", "/accounts", {"name": "Carla", "password": RIGHT, "groups": ["x"], "display_name": "Carla C."}),
        ("PATCH", "/accounts/carla", {"role": "admin"}),
        ("POST", "/accounts/carla/password", {"password": "another password"}), ("DELETE", "/accounts/carla", None),
        ("PUT", "/directories/corp", DIRECTORY), ("GET", "/directories", None),
        ("POST", "/directories/test", {**DIRECTORY, "user": "dora", "password": RIGHT}),
        ("POST", "/accounts", {"name": "dora", "password": RIGHT}), ("DELETE", "/accounts/dora?moves=true", None),
        ("DELETE", "/directories/corp", None),
        ("DELETE", "/sessions/of/anna", None),
    ]  # fmt: skip
    for method, path, body in steps:
        await good(site, method, path, body)
    left = {(one.method, one.path) for one in ROUTES} - site.answered
    assert left == {
        ("GET", "/live"), ("GET", "/desktops/{id}/screenshot"), ("GET", "/desktops/{id}/attention"),
        ("POST", "/desktops/{id}/attention"), ("POST", "/images"), ("DELETE", "/images/{id}"),
        ("DELETE", "/images/{id}/versions/{number}"), ("POST", "/desktops/{id}/version"),
        ("DELETE", "/desktops/{id}/superseded"), ("POST", "/desktops/{id}/superseded/put-back"),
        ("DELETE", "/templates/{id}"), ("DELETE", "/sessions/current"), ("DELETE", "/images/imports/{id}"),
        ("POST", "/images/imports"), ("POST", "/images/imports/{id}/retry"), ("POST", "/images/{id}/install"),
        ("POST", "/templates/{id}/clones/retry"), ("POST", "/desktops/{id}/message"), ("PUT", "/quotas"),
        ("DELETE", "/quotas"), ("OPTIONS", "/uploads"),
        ("POST", "/uploads"), ("HEAD", "/uploads/{id}"), ("GET", "/uploads/{id}"), ("PATCH", "/uploads/{id}"),
        ("DELETE", "/uploads/{id}"),
    }, "these have their own tests"  # fmt: skip


def spec_of(desktop: str) -> DomainSpec:
    return DomainSpec(DesktopId(desktop), 1, "x", "x", "x", 1, 64, "x", "x", "x", "x", "user")


async def test_the_description_names_every_route_and_is_whole(site: Site) -> None:
    described = await good(site, "GET", "/openapi.json", who="")
    assert described == json.loads(json.dumps(DESCRIBED))
    paths = {(method.upper(), path) for path, row in described["paths"].items() for method in row}
    assert paths == {(one.method, PREFIX + one.path) for one in ROUTES}
    served = {
        (route.method, route.resource.canonical)
        for route in site.client.server.app.router.routes()  # type: ignore[attr-defined]
        if route.resource is not None
        and route.resource.canonical.startswith("/api/")
        and (route.method != "HEAD" or "/uploads/" in route.resource.canonical)
    }
    assert served == paths
    names = set(described["components"]["schemas"])
    assert set(refs(described)) <= names
    ids = [row[method]["operationId"] for row in described["paths"].values() for method in row]
    assert len(set(ids)) == len(ids)


def refs(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"].rpartition("/")[2]] if "$ref" in value else []
        return own + [ref for one in value.values() for ref in refs(one)]
    return [ref for one in value for ref in refs(one)] if isinstance(value, list) else []


async def test_what_is_not_there_is_told_in_json(site: Site) -> None:
    for path in ("/nothing", "/desktops/x/y/z", "/templates/a/b"):
        status, body = await site.ask("GET", path, who=ADMIN)
        assert (status, body["error"]["code"]) == (404, "not_found")
    said = await site.send(
        "DELETE", "/api/v1/status", headers={"Authorization": f"Bearer {await site.lab.token(ADMIN)}"}
    )
    assert (said.status, said.json["error"]["code"], said.headers["Allow"]) == (405, "method_not_allowed", "GET")
    assert "DELETE" in said.json["error"]["message"]


async def test_a_missing_page_is_a_page(site: Site) -> None:
    said = await site.page("/nothing/here", who=USER)
    assert said.status == 404
    assert said.headers["Content-Type"].startswith("text/html")
    assert "There is nothing" in said.text


async def test_every_answer_is_strict_with_browsers(site: Site) -> None:
    for path in ("/login", "/api/v1/status", "/api/v1/nothing", "/nothing", "/static/app.css", "/static/none.css"):
        said = await site.page(path)
        assert "frame-ancestors 'none'" in said.headers["Content-Security-Policy"]
        assert "unsafe" not in said.headers["Content-Security-Policy"]
        assert said.headers["X-Content-Type-Options"] == "nosniff"
        assert said.headers["Referrer-Policy"] == "same-origin"
        assert "max-age" in said.headers["Strict-Transport-Security"]
        assert said.headers["Server"] == "kmgr"
        fixed = path == "/static/app.css"
        assert said.headers["Cache-Control"] == ("no-cache" if fixed else "no-store")
    versioned = await site.page("/static/app.css?v=0.1.0")
    assert "immutable" in versioned.headers["Cache-Control"]


async def test_a_body_that_is_too_large_is_refused_before_it_is_kept(site: Site) -> None:
    headers = {"Authorization": f"Bearer {await site.lab.token(ADMIN)}", "Content-Type": "application/json"}
    said = await site.send("POST", "/api/v1/templates", data=BytesIO(b'"' + b"x" * (1 << 20) + b'"'), headers=headers)
    assert (said.status, said.json["error"]["code"]) == (413, "too_large")


@pytest.mark.parametrize("data", [b"{", b"\xff\xfe", b"[]", b"nul", b"[" * 100_000])
async def test_what_is_no_json_object_is_refused(site: Site, data: bytes) -> None:
    headers = {"Authorization": f"Bearer {await site.lab.token(ADMIN)}", "Content-Type": "application/json"}
    said = await site.send("POST", "/api/v1/templates", data=data, headers=headers)
    assert (said.status, said.json["error"]["code"]) == (400, "bad_body")


async def test_all_problems_of_a_template_are_told_at_once(site: Site) -> None:
    told = await refused(site, 400, "POST", "/templates", {"name": "x", "vcpus": 0, "memory_mib": "much", "size": 1})
    for problem in ("size", "image: required", "vcpus", "memory_mib", "standby: required", "maximum: required"):
        assert problem in told


async def test_a_template_takes_the_newest_version_or_the_one_that_is_named(lab: WebLab, site: Site) -> None:
    await lab.office.do(
        "version.add", version="ver-2", image="img-1", notes="", server=SERVERS[1], size_bytes=1 << 20,
        used_bytes=0, block_bytes=1 << 18, manifest_hash="b" * 64,
    )  # fmt: skip
    newest = await good(site, "POST", "/templates", {"name": "new", "image": "debian", **SHAPE})
    named = await good(site, "POST", "/templates", {"name": "old", "image": "img-1", "version": 1, **SHAPE})
    assert (newest["version"], newest["version_number"]) == ("ver-2", 2)
    assert (named["version"], named["refresh"], named["image_name"]) == ("ver-1", "on_logout", "debian")
    published = await good(site, "POST", f"/templates/{named['id']}/publish", {"version": "ver-2"})
    assert published["version_number"] == 2
    assert "no version 9" in await refused(site, 404, "POST", f"/templates/{named['id']}/publish", {"version": 9})
    assert "golden image ubuntu" in await refused(
        site, 404, "POST", "/templates", {"name": "x", "image": "ubuntu", **SHAPE}
    )
    assert await refused(site, 409, "POST", "/templates", {"name": "old", "image": "debian", **SHAPE})
    assert "used by" in await refused(site, 409, "DELETE", "/images/img-1")
    for one in (await good(site, "GET", "/templates"))["items"]:
        await good(site, "DELETE", f"/templates/{one['id']}")
    await good(site, "DELETE", "/images/img-1")
    assert (await good(site, "GET", "/images"))["items"] == []


async def test_assigning_twice_is_once(site: Site) -> None:
    path = "/templates/tpl-office/assignments"
    for _ in range(2):
        found = await good(site, "POST", path, {"kind": "group", "subject": "Students"})
    assert found["items"] == [{"kind": "group", "subject": "students"}, {"kind": "user", "subject": USER}]
    assert [one["name"] for one in (await good(site, "GET", "/offers", who=OTHER))["items"]] == ["office"]
    await good(site, "DELETE", f"{path}?kind=group&subject=Students")
    assert (await good(site, "GET", "/offers", who=OTHER))["items"] == []
    assert "kind: required" in await refused(site, 400, "DELETE", path)
    assert await refused(site, 404, "POST", "/templates/none/assignments", {"kind": "everyone"})


async def test_a_list_is_read_page_by_page_while_it_changes(lab: WebLab, site: Site) -> None:
    for name in "bdfh":
        await lab.office.account(name)
    page = await good(site, "GET", "/accounts?limit=3")
    names = [one["name"] for one in page["items"]]
    await lab.office.do("account.delete", name=names[-1])
    await lab.office.account("a-new-one")
    while page["next"]:
        assert quote(page["next"]) == page["next"], "it goes into an address as it is"
        page = await good(site, "GET", f"/accounts?limit=3&cursor={page['next']}")
        names += [one["name"] for one in page["items"]]
    assert names == ["anna", "b", "ben", "d", "f", "h", "root"]


async def test_the_history_is_read_backwards_without_gaps(site: Site) -> None:
    page = await good(site, "GET", "/events?limit=4")
    found = [one["n"] for one in page["items"]]
    while page["next"]:
        page = await good(site, "GET", f"/events?limit=4&cursor={page['next']}")
        found += [one["n"] for one in page["items"]]
    assert found == list(range(found[0], 0, -1))
    only = await good(site, "GET", "/events?kind=account&subject=anna")
    assert [one["text"] for one in only["items"]] == ["account anna created (user)"]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "limit=1001", "cursor=WzFd", "cursor=e30x", "cursor=%7B", "cursor=%C3%A9"]
)
async def test_a_bad_page_is_refused(site: Site, query: str) -> None:
    assert (await site.ask("GET", f"/accounts?{query}", who=ADMIN))[0] == 400


async def test_settings_that_depend_on_each_other_change_together_or_not_at_all(site: Site) -> None:
    changes = {"heartbeat_ms": 4000, "lost_after_ms": 12_000}
    found = await good(site, "PATCH", "/settings", changes)
    assert {one["name"]: one["value"] for one in found["items"]}.items() >= changes.items()
    told = await refused(site, 400, "PATCH", "/settings", {"login_tries": 50, "lost_after_ms": 11_000})
    assert "three times heartbeat_ms" in told
    assert "no such field" in await refused(site, 400, "PATCH", "/settings", {"colour": 1})
    values = {one["name"]: one["value"] for one in (await good(site, "GET", "/settings"))["items"]}
    assert values["login_tries"] == 8


async def test_what_would_weaken_the_grid_is_refused_with_the_reasons_unless_forced(lab: WebLab, site: Site) -> None:
    told = await refused(site, 400, "DELETE", "/servers/srv-c")
    assert "only 2 servers vote (a, b)" in told and "force it" in told
    assert len((await good(site, "GET", "/servers"))["items"]) == 3
    assert (await site.ask("DELETE", "/servers/srv-c?force=1", who=ADMIN))[0] == 204
    await good(site, "POST", "/servers/srv-b/drain")
    told = await refused(site, 400, "POST", "/servers/srv-a/drain", {"force": False})
    assert "No other server is up: nobody would get a new desktop." in told
    await good(site, "POST", "/servers/srv-a/drain", {"force": True})
    drained, removed = [(await good(site, "GET", f"/events?subject=srv-{s}"))["items"][0]["text"] for s in "ac"]
    assert removed.startswith("c was removed from the grid, although: only 2 servers vote (a, b)")
    assert "a drains: it is given no new desktops, although: " in drained and "No other server is up" in drained


async def test_a_drain_that_leaves_no_memory_for_a_loss_is_refused_with_the_reason(lab: WebLab, site: Site) -> None:
    await lab.office.standby()
    short = {"srv-b": 100, "srv-c": 100}
    for board in lab.boards.values():
        for server in SERVERS:
            board.put(lab.vitals(server, memory_free_mib=short.get(server, 6000)))
    told = await refused(site, 400, "POST", "/servers/srv-a/drain", {"force": False})
    assert "The other servers have no memory for" in told and "force it" in told
    found = {one["name"]: one["state"] for one in (await good(site, "GET", "/servers"))["items"]}
    assert found == {"a": "up", "b": "up", "c": "up"}
    await good(site, "POST", "/servers/srv-a/drain", {"force": True})
    (drained, *_) = (await good(site, "GET", "/events?subject=srv-a"))["items"]
    assert "although: " in drained["text"] and "no memory for" in drained["text"]


async def test_a_witness_is_shown_as_one_and_has_nothing_to_drain(lab: WebLab, site: Site) -> None:
    where = {"grid_address": "w:1", "web_address": "w:0", "version": "", "fingerprint": ""}
    await lab.office.do("server.add", server="srv-w", name="w", role="witness", **where)
    await lab.office.do("server.up", server="srv-w")
    found = {one["name"]: one for one in (await good(site, "GET", "/servers"))["items"]}
    assert (found["w"]["role"], found["w"]["voter"], found["a"]["role"]) == ("witness", False, "server")
    assert "there is nothing to drain" in await refused(site, 400, "POST", "/servers/srv-w/drain", {"force": True})
    page = (await site.page("/console/servers", who=ADMIN)).text
    assert page.count("witness</span>") == 1 and "/console/servers/srv-w/drain" not in page
    assert (await site.ask("DELETE", "/servers/srv-w", who=ADMIN))[0] == 204


async def test_accounts_never_show_their_hashes_and_passwords_have_a_least_length(site: Site) -> None:
    assert "argon2" not in json.dumps(await good(site, "GET", "/accounts"))
    assert "password" in await refused(site, 400, "POST", "/accounts", {"name": "x", "password": "short"})
    assert "last administrator" in await refused(site, 400, "PATCH", f"/accounts/{ADMIN}", {"role": "user"})
    assert await refused(site, 404, "POST", "/accounts/nobody/password", {"password": "long enough"})


async def test_a_directory_that_would_send_passwords_in_the_clear_is_refused(site: Site) -> None:
    told = await refused(site, 400, "PUT", "/directories/corp", {**DIRECTORY, "urls": ["ldap://dc.example"]})
    assert "StartTLS" in told
    assert await refused(site, 404, "DELETE", "/directories/corp")
    wrong = {**DIRECTORY, "user": "dora", "password": "no"}
    assert (await site.ask("POST", "/directories/test", wrong, who=ADMIN))[0] == 401


async def test_the_invitation_has_a_command_to_copy(site: Site) -> None:
    made = await good(site, "POST", "/servers/invitation")
    assert made["command"] == "kmgr join --to srv-a:1 --name NAME"
    assert made["phrase"] == made["token"] == "word-word-word-word"


async def test_a_server_is_shown_with_what_it_last_said(lab: WebLab, site: Site) -> None:
    lab.boards[SERVERS[0]].put(
        lab.vitals(SERVERS[1], problems=("libvirt is not answering",), images={"ver-1": (3, 7)})
    )
    await lab.clock.advance(3)
    one, two, _ = (await good(site, "GET", "/servers"))["items"]
    assert (one["leader"], one["this"], two["leader"], two["this"]) == (True, True, False, False)
    assert (two["problems"], two["heard_s_ago"]) == (["libvirt is not answering"], 3)
    version = (await good(site, "GET", "/images"))["items"][0]["versions"][0]
    assert (version["servers"], version["progress"]) == (["srv-a"], {"srv-a": 100, "srv-b": 42})


async def test_how_a_version_is_kept_and_copied_is_told_for_every_server(lab: WebLab, site: Site) -> None:
    kept = {"taken_bytes": 8192, "shared_bytes": 4096, "percent": 40, "done_at": 1_700_000_000_000}
    kept |= {"bad": 0, "found": 2}
    copying = {"rate": 118 << 20, "remaining_s": None, "sources": ["srv-a", "srv-c"]}
    board = lab.boards[SERVERS[0]]
    board.put(lab.vitals(SERVERS[0], extra={"kept": {"ver-1": kept}}))
    board.put(lab.vitals(SERVERS[1], images={"ver-1": (3, 7)}, extra={"copying": {"ver-1": copying}}))
    # What another version of kmgr says may be anything.
    board.put(lab.vitals(SERVERS[2], extra={"kept": [], "copying": {"ver-1": {"rate": "fast", "sources": 3}}}))
    await lab.office.do("version.damaged", version="ver-1", server=SERVERS[0], file="x", offset=0, blocks=3)
    image = (await good(site, "GET", "/images"))["items"][0]
    version = image["versions"][0]
    assert image["copies"] == 0
    assert version["kept"] == {"srv-a": kept}
    assert version["copying"]["srv-b"] == copying
    assert version["copying"]["srv-c"] == {"rate": 0, "remaining_s": None, "sources": []}
    assert version["damaged"] == {"srv-a": 3}
    assert version["used_by"] == "the template office"
    assert version["stays"] == "it is used by the template office"
    page = await site.page("/console/images", who=ADMIN)
    for text in ("3 blocks damaged", "42 %", "118 MB/s", "from a, c", "used by the template office"):
        assert text in page.text


async def test_a_version_is_deleted_only_when_nobody_uses_it(lab: WebLab, site: Site) -> None:
    await lab.office.do(
        "version.add", version="ver-2", image="img-1", notes="", server=SERVERS[1], size_bytes=1 << 20,
        used_bytes=8192, block_bytes=1 << 18, manifest_hash="b" * 64,
    )  # fmt: skip
    assert "the template office" in await refused(site, 409, "DELETE", "/images/img-1/versions/1")
    await good(site, "DELETE", "/images/img-1/versions/2")
    assert "no version 2" in await refused(site, 404, "DELETE", "/images/img-1/versions/2")
    assert "one server may be lost" in await refused(site, 400, "PATCH", "/images/img-1", {"copies": 1})
    assert (await good(site, "PATCH", "/images/img-1", {"copies": 3}))["copies"] == 3


async def test_without_a_majority_pages_and_lists_are_still_served(lab: WebLab, site: Site) -> None:
    await lab.token(ADMIN)
    await lab.token(USER)
    lab.office.log.cut_off |= set(SERVERS[1:])
    assert not (await good(site, "GET", "/status"))["majority"]
    assert len((await good(site, "GET", "/servers"))["items"]) == 3
    assert (await site.page("/", who=USER)).status == 200
    status, body = await site.ask("PATCH", "/settings", {"login_tries": 9}, who=ADMIN)
    assert (status, body["error"]["code"]) == (503, "unavailable")


async def test_a_bug_is_logged_with_its_cause_and_tells_nothing_outside(
    lab: WebLab, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    token = await lab.token(ADMIN)
    lab.grid().store.close()
    lab.grid().store.path.unlink()
    with caplog.at_level(logging.ERROR):
        said = await site.send("GET", "/api/v1/servers", headers={"Authorization": f"Bearer {token}"})
    assert (said.status, said.json["error"]["code"]) == (500, "bug")
    assert "sqlite" not in said.text.lower()
    assert any(record.exc_info for record in caplog.records)


@needs_qemu_img
async def test_a_text_file_is_refused_as_an_image_in_the_importers_words(lab: WebLab, site: Site) -> None:
    headers = {"Content-Type": "application/octet-stream"}
    text = b"Dear administrator, this is no disk.\n" * 1000
    status, body = await site.ask("POST", "/images?name=win&file=a.txt", who=ADMIN, data=text, headers=headers)
    assert status == 400
    assert body["error"]["message"].startswith("the upload cannot be imported: ")
    assert "text" in body["error"]["message"]
    assert (await good(site, "GET", "/images"))["items"][0]["name"] == "debian"
    assert not list((lab.folder / f"data-{SERVERS[0]}" / "images" / "tmp").iterdir())


@needs_qemu_img
async def test_a_disk_larger_than_other_bodies_becomes_an_image(lab: WebLab, site: Site) -> None:
    disk = bytearray(3 << 20)
    disk[0:512] = b"\x33" * 510 + b"\x55\xaa"
    headers = {"Content-Type": "application/octet-stream"}
    made = await good(site, "POST", "/images?name=win&notes=first", data=BytesIO(disk), headers=headers)
    assert made["name"] == "win"
    (version,) = made["versions"]
    assert (version["number"], version["size_bytes"], version["notes"]) == (1, 3 << 20, "first")
    assert version["servers"] == [SERVERS[0]]
    path = lab.folder / "imports" / "disk.raw"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(disk[:-512]) + b"\x01" * 512)
    again = await good(site, "POST", "/images", {"name": "win", "path": str(path), "notes": "second"})
    assert [one["notes"] for one in again["versions"]] == ["first", "second"]


async def test_no_other_file_of_the_server_is_read(lab: WebLab, site: Site) -> None:
    imports = lab.folder / "imports"
    (imports / "deeper").mkdir(parents=True)
    (lab.folder / "secret.raw").write_bytes(bytes(1 << 20))
    (imports / "deeper" / "disk.raw").write_bytes(bytes(1 << 20))
    (imports / "link.raw").symlink_to(lab.folder / "secret.raw")
    for path in (
        "/etc/shadow",
        str(lab.folder / "secret.raw"),
        f"{imports}/../secret.raw",
        f"{imports}/deeper/disk.raw",
    ):
        said = await refused(site, 403, "POST", "/images", {"name": "win", "path": path})
        assert "are not read for the web" in said
    for path in (f"{imports}/link.raw", f"{imports}/none.raw", f"{imports}/deeper"):
        assert "there is no file" in await refused(site, 404, "POST", "/images", {"name": "win", "path": path})


async def test_an_upload_must_say_how_long_it_is_and_what_it_is_called(site: Site) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x" * 10

    headers = {"Content-Type": "application/octet-stream"}
    status, body = await site.ask("POST", "/images?name=win", who=ADMIN, data=pieces(), headers=headers)
    assert (status, body["error"]["code"]) == (411, "length_required")
    assert "name: required" in await refused(site, 400, "POST", "/images", data=b"x", headers=headers)
    assert "whole path" in await refused(site, 400, "POST", "/images", {"name": "win", "path": "disk.raw"})
