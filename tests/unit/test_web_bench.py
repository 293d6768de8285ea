"""How versions come about, on pages and in the API: five choices, desktops to edit and to test, derived templates."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kmgr.ids import VersionId
from kmgr.templates.install_queries import install_drivers, installs
from kmgr.web import present
from kmgr.web.console.pages import in_tree
from tests.lab import efi_iso
from tests.lab.people import SERVERS
from tests.lab.web_lab import ADMIN, USER, Site, WebLab, opened, second_version
from tests.unit.test_web_api import good
from tests.unit.test_web_api import refused as told
from tests.unit.test_web_console import act, refused

AT = "/templates/tpl-office"
CHOICES = {"image": "img-1", "name": "class", "size": "small", "people": "12", "whom": "everyone"}


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[WebLab]:
    async with opened(tmp_path) as lab:
        await second_version(lab)
        yield lab


async def working(lab: WebLab, site: Site, purpose: str = "edit") -> dict[str, Any]:
    """Have a desktop of the unpublished version that root works on."""
    made: dict[str, Any] = await good(site, "POST", f"{AT}/bench", {"version": 2, "purpose": purpose})
    report = {"desktop": made["id"], "generation": 1, "server": made["server"]}
    for what in ("building", "ready"):
        await lab.office.do(f"desktop.{what}", **report)
    return made


async def test_five_choices_lead_from_a_disk_to_desktops_for_everyone(lab: WebLab, site: Site) -> None:
    page = (await site.page("/console/templates/wizard", who=ADMIN)).text
    fields = {part.split('"')[0] for part in page.partition('id="wizard"')[2].split('name="')[1:]}
    more = {"group", "disk_gib", "drivers", "system", "kind"}
    assert fields - {"csrf"} - more == set(CHOICES), "five questions; the others have their usual answer"
    said = await site.submit("/console/templates/wizard", CHOICES, who=ADMIN)
    made = present.template_of(lab.services(), "class")
    assert said.headers["Location"] == f"/console/templates/{made['id']}"
    assert (made["vcpus"], made["memory_mib"], made["standby"], made["maximum"]) == (1, 1024, 3, 12)
    assert made["assignments"] == [{"kind": "everyone", "subject": ""}]
    assert made["version_number"] == 2, "the newest one is published"


async def test_the_wizard_gives_to_a_group_or_to_nobody(lab: WebLab, site: Site) -> None:
    await site.submit("/console/templates/wizard", {**CHOICES, "whom": "group", "group": "students"}, who=ADMIN)
    made = present.template_of(lab.services(), "class")
    assert made["assignments"] == [{"kind": "group", "subject": "students"}]
    await site.submit("/console/templates/wizard", {**CHOICES, "name": "own", "whom": "nobody"}, who=ADMIN)
    assert present.template_of(lab.services(), "own")["assignments"] == []


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"name": ""}, "name is missing"),
        ({"name": "Class 3"}, "host name"),
        ({"image": "img-none"}, "no golden image"),
        ({"size": "huge"}, "how large"),
        ({"people": "0"}, "how many people"),
        ({"people": "5000"}, "how many people"),
        ({"whom": "group"}, "group is missing"),
        ({"name": "office"}, "already a template named office"),
    ],
)
async def test_what_the_wizard_refuses(lab: WebLab, site: Site, wrong: dict[str, str], word: str) -> None:
    said = await refused(site, "/templates/wizard", **{**CHOICES, **wrong})
    assert word in said.text.replace("The name", "name").replace("How", "how").replace("The group", "group")
    assert [one["name"] for one in present.templates(lab.services())] == ["office"]


async def test_the_disk_that_was_chosen_stays_chosen_while_others_arrive(lab: WebLab, site: Site) -> None:
    await lab.clock.advance(1)
    await lab.office.do("image.create", image="img-2", name="newer", notes="")
    await lab.office.do(
        "version.add", version="ver-n", image="img-2", notes="", server=SERVERS[0],
        size_bytes=1 << 20, used_bytes=1, block_bytes=1 << 18, manifest_hash="c" * 64,
    )  # fmt: skip
    text = (await site.page("/console/templates/wizard/disks?image=img-1", who=ADMIN)).text
    assert 'value="img-1" checked' in text
    text = (await site.page("/console/templates/wizard/disks", who=ADMIN)).text
    assert 'value="img-2" checked' in text, "the newest if nothing was chosen"


async def test_an_unpublished_version_is_tested_by_an_administrator_only(lab: WebLab, site: Site) -> None:
    made = await working(lab, site, "test")
    assert (made["user"], made["template"]) == (ADMIN, "office")
    (one,) = (await good(site, "GET", f"{AT}/bench"))["items"]
    assert (one["purpose"], one["number"], one["state"]) == ("test", 2, "in_use")
    assert (await good(site, "POST", f"/desktops/{made['id']}/ticket"))["url"], "its screen opens like any other"
    assert [found["in_use"] for found in (await good(site, "GET", f"{AT}/versions"))["items"]] == [0, 0]
    assert f"{ADMIN} tests version 2" in (await site.page(f"/console{AT}", who=ADMIN)).text
    assert (await site.ask("POST", f"{AT}/bench", {"version": 2, "purpose": "test"}, who=USER))[0] == 403
    assert "ask for one to edit" in await told(site, 400, "POST", f"/desktops/{made['id']}/version", {})


async def test_a_version_is_edited_and_made_on_the_page(lab: WebLab, site: Site) -> None:
    said = await site.submit(f"/console{AT}/bench/ver-2/edit", {}, who=ADMIN)
    at = said.headers["Location"]
    desktop = at.rpartition("/")[2]
    for what in ("building", "ready"):
        server = (await good(site, "GET", f"/desktops/{desktop}"))["server"]
        await lab.office.do(f"desktop.{what}", desktop=desktop, generation=1, server=server)
    assert "Make a version" in (await site.page(f"/console{AT}", who=ADMIN)).text
    assert "Publish it to office" in (await site.page(f"{at}/version", who=ADMIN)).text
    text = await act(site, f"{at.removeprefix('/console')}/version", notes="editor", then="canary")
    assert "a version of debian is made" in text
    assert "is being made" in (await site.page(f"/console{AT}", who=ADMIN)).text
    with lab.grid().view() as db:
        (row,) = db.query("select * from captures")
    assert (json.loads(row["how"])["publish"], row["notes"], row["by"]) == ({"canary": 1}, "editor", ADMIN)
    failed = {"desktop": desktop, "generation": 1, "server": server, "version": row["version"]}
    await lab.office.do("desktop.capture_failed", **failed, step="shutdown", cause="it did not go off")
    assert "No version was made: shutdown: it did not go off" in (await site.page(f"/console{AT}", who=ADMIN)).text


async def test_a_template_is_derived_and_its_versions_become_a_line_of_their_own(lab: WebLab, site: Site) -> None:
    child = await good(site, "POST", f"{AT}/copy", {"name": "lab", "child": True})
    copy = await good(site, "POST", f"{AT}/copy", {"name": "office2"})
    assert (child["parent"], copy["parent"]) == ("tpl-office", None)
    assert (child["image_name"], child["assignments"]) == ("debian", [])
    assert "derived from" in (await site.page("/console/templates", who=ADMIN)).text
    made = await good(site, "POST", f"/templates/{child['id']}/bench", {"version": 1, "purpose": "edit"})
    report = {"desktop": made["id"], "generation": 1, "server": made["server"]}
    for what in ("building", "ready"):
        await lab.office.do(f"desktop.{what}", **report)
    wanted = await good(site, "POST", f"/desktops/{made['id']}/version", {"publish": True, "notes": "x"})
    assert wanted["image"] == "lab"
    assert "already a template named office" in await told(site, 409, "POST", f"{AT}/copy", {"name": "office"})
    await act(site, f"{AT}/copy", name="third", how="child")
    assert present.template_of(lab.services(), "third")["parent"] == "tpl-office"


async def test_what_cannot_be_made(lab: WebLab, site: Site) -> None:
    await told(site, 404, "POST", f"{AT}/bench", {"version": 9, "purpose": "edit"})
    await told(site, 400, "POST", f"{AT}/bench", {"version": 1, "purpose": "use"})
    await told(site, 404, "POST", "/desktops/dsk-none/version", {})
    await lab.clock.advance(60)
    assert "No desktop can be made now" in await told(
        site, 409, "POST", f"{AT}/bench", {"version": 1, "purpose": "edit"}
    )


def test_derived_templates_follow_the_one_they_come_from() -> None:
    def one(name: str, parent: str | None = None) -> dict[str, Any]:
        return {"id": f"tpl-{name}", "name": name, "parent": f"tpl-{parent}" if parent else None}

    mixed = [one("a", "c"), one("b"), one("c"), one("d", "a"), one("e", "gone")]
    assert [(found["name"], found["depth"]) for found in in_tree(mixed)] == [
        ("b", 0), ("c", 0), ("a", 1), ("d", 2), ("e", 0),
    ]  # fmt: skip


async def with_iso(lab: WebLab) -> None:
    """Have an ISO here, and an empty disk of 8 GiB on server a, as an import there makes them."""
    sizes = {"size_bytes": 1 << 20, "used_bytes": 0, "block_bytes": 1 << 16, "server": SERVERS[0], "notes": ""}
    for digit, kind, name in (("e", "iso", "setup"), ("f", "blank", "empty disk of 8 GiB")):
        await lab.office.do("image.create", image=f"img-{kind}", name=name, notes="")
        await lab.office.do("image.kind", image=f"img-{kind}", kind=kind)
        body = {"version": f"ver-{kind}", "image": f"img-{kind}", "manifest_hash": digit * 64, **sizes}
        await lab.office.do("version.add", **body)


INSTALL = {**CHOICES, "image": "img-iso", "disk_gib": "8"}


async def test_the_same_choices_lead_from_an_iso_to_a_desktop_that_is_installed(lab: WebLab, site: Site) -> None:
    await with_iso(lab)
    page = (await site.page("/console/templates/wizard?image=img-iso", who=ADMIN)).text
    assert "install from this ISO" in page
    assert "empty disk of 8 GiB" not in page, "what an installation begins with is nothing to choose"
    said = await site.submit("/console/templates/wizard", INSTALL, who=ADMIN)
    (desktop,) = [one for one in (await good(site, "GET", "/desktops"))["items"] if one["template"] == "class"]
    assert said.headers["Location"] == f"/console/desktops/{desktop['id']}"
    assert (desktop["server"], desktop["user"]) == (SERVERS[0], ADMIN)
    made = present.template_of(lab.services(), "class")
    assert (made["installing"], made["enabled"], made["maximum"]) == ("ver-iso", False, 12)
    assert made["assignments"] == [{"kind": "everyone", "subject": ""}]
    assert (await good(site, "GET", "/offers", who=USER))["items"][0]["name"] != "class"

    shown = (await site.page(f"/console/templates/{made['id']}", who=ADMIN)).text
    assert "being installed from an ISO" in shown
    assert "Go on installing" not in shown, "its desktop is there"
    report = {"desktop": desktop["id"], "generation": 1, "server": desktop["server"]}
    for what in ("building", "ready"):
        await lab.office.do(f"desktop.{what}", **report)
    capture = await good(site, "POST", f"/desktops/{desktop['id']}/version", {"publish": True})
    assert capture["image"] == "class", "what is installed is an image of its own"
    await site.ask("DELETE", f"/desktops/{desktop['id']}", who=ADMIN)
    assert "Go on installing" in (await site.page(f"/console/templates/{made['id']}", who=ADMIN)).text


@pytest.mark.parametrize(
    ("wrong", "status", "words"),
    [
        ({"image": "img-1"}, 400, "is not an installer"),
        ({"disk_gib": 0}, 400, "disk_gib"),
        ({"disk_gib": 1 << 20}, 400, "disk_gib"),
        ({"name": "office"}, 409, "already a template named office"),
        ({"image": "img-none"}, 404, "no golden image"),
    ],
)
async def test_what_cannot_be_installed_is_told(
    lab: WebLab, site: Site, wrong: dict[str, Any], status: int, words: str
) -> None:
    await with_iso(lab)
    body = {"name": "class", "vcpus": 1, "memory_mib": 512, "standby": 1, "maximum": 2, "disk_gib": 8, **wrong}
    image = body.pop("image", "img-iso")
    said, answer = await site.ask("POST", f"/images/{image}/install", body, who=ADMIN)
    assert (said, words in str(answer)) == (status, True), answer


async def test_where_the_iso_is_not_there_is_no_installation(lab: WebLab, site: Site) -> None:
    await with_iso(lab)
    await lab.office.do("server.drain", server=SERVERS[0])
    await lab.office.do("version.here", version="ver-blank", server=SERVERS[1])
    body = {"name": "class", "vcpus": 1, "memory_mib": 512, "standby": 1, "maximum": 2, "disk_gib": 8}
    status, answer = await site.ask("POST", "/images/img-iso/install", body, who=ADMIN)
    assert (status, answer["error"]["code"]) == (409, "no_room")


async def test_what_is_installed_is_recognised_or_said_and_its_drivers_lie_in_a_second_drive(
    lab: WebLab, site: Site
) -> None:
    await with_iso(lab)
    lab.boards[SERVERS[0]].put(lab.vitals(SERVERS[0], extra={"machines": ["secure", "tpm", "uefi"]}))
    path = lab.services().images.path(VersionId("ver-iso"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(efi_iso.image(publisher="Microsoft Corporation"))
    page = (await site.page("/console/templates/wizard?image=img-iso&drivers=img-iso", who=ADMIN)).text
    assert "Windows</span>" in page
    assert '<option value="img-iso" selected>setup</option>' in page
    await site.submit("/console/templates/wizard", {**INSTALL, "drivers": "img-iso", "kind": "personal"}, who=ADMIN)
    made = present.template_of(lab.services(), "class")
    rules = await good(site, "GET", f"/templates/{made['id']}/policy")
    assert rules["policy"]["machine"] == {"firmware": "secure", "tpm": True, "hardware": "plain"}
    assert rules["machine"] == "starts by UEFI with secure boot, has a TPM, has a SATA disk"
    assert made["kind"] == "personal"
    shown = (await site.page(f"/console/templates/{made['id']}/rules", who=ADMIN)).text
    assert "has a TPM" in shown and "leave BitLocker off" in shown
    with lab.services().grid.view() as db:
        assert install_drivers(db) == {made["id"]: "ver-iso"}

    said = await site.submit("/console/templates/wizard", {**INSTALL, "name": "two", "system": "other"}, who=ADMIN)
    assert said.status == 303, said.text
    assert (await good(site, "GET", "/templates/two/policy"))["policy"]["machine"]["firmware"] == "bios"
    said = await site.submit("/console/templates/wizard", {**INSTALL, "name": "three", "system": "dos"}, who=ADMIN)
    assert said.status == 400 and "what it is: choose" in said.text.lower()
    body = {"name": "four", "vcpus": 1, "memory_mib": 512, "standby": 0, "maximum": 1, "disk_gib": 8}
    await good(site, "POST", "/images/img-iso/install", {**body, "system": "windows_virtio"})
    assert (await good(site, "GET", "/templates/four/policy"))["policy"]["machine"]["hardware"] == "virtio"
    wrong = {**body, "name": "five", "drivers": "img-blank"}
    assert "no CD with drivers" in await told(site, 400, "POST", "/images/img-iso/install", wrong)


async def test_where_no_server_can_make_such_a_machine_the_wizard_says_so(lab: WebLab, site: Site) -> None:
    await with_iso(lab)
    said = await site.submit("/console/templates/wizard", {**INSTALL, "system": "windows"}, who=ADMIN)
    assert said.status == 409
    assert "has no UEFI firmware for it (apt-get install ovmf)" in said.text
    with lab.services().grid.view() as db:
        assert installs(db) == {}, "nothing is begun then"
