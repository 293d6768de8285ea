"""From a disk file to a published template in five choices, and a canary seen from the page, in a real browser."""

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect

from kmgr.web import present
from tests.browser.office import Office
from tests.browser.test_import_dialog import MIB, PATIENCE_MS
from tests.lab import boot_iso


@pytest.fixture
def console(office: Office, context: BrowserContext, page: Page) -> Page:
    """The console, an administrator logged in."""
    office.show(context, page, "/console/templates")
    return page


def do(office: Office, type: str, **body: Any) -> None:
    async def propose() -> None:
        await office.lab.office.do(type, **body)
        # The lab's clock stands still: pages are told again after a moment of it.
        await office.lab.clock.advance(1)

    office.do(propose())


def template(office: Office, name: str) -> dict[str, Any]:
    return next(one for one in present.templates(office.services) if one["name"] == name)


def begun(console: Page, name: str, file: Path) -> Locator:
    """Open the wizard, answer its first questions and import a file from there; returns its form."""
    console.get_by_role("link", name="New desktops").click()
    form = console.get_by_role("form", name="New desktops")
    form.get_by_label("2. What are they called?").fill(name)
    form.get_by_label("Small").check()
    form.get_by_role("button", name="Import a disk or an ISO").click()
    dialog = console.get_by_role("dialog")
    dialog.get_by_label("Disk image (").set_input_files(file)
    dialog.get_by_role("button", name="Import", exact=True).click()
    return form


def test_a_disk_becomes_desktops_for_a_group_in_five_choices(office: Office, console: Page, tmp_path: Path) -> None:
    file = tmp_path / "biology.raw"
    file.write_bytes((bytes(510) + b"\x55\xaa").ljust(MIB, b"x"))
    form = begun(console, "lab", file)
    disk = form.get_by_role("radio", name="biology")
    expect(disk).to_be_visible(timeout=PATIENCE_MS)
    expect(form.get_by_role("radio", name="debian")).to_be_checked()
    disk.check()
    form.get_by_label("4. For how many").fill("20")
    form.get_by_label("Kept for the person who got it").check()
    form.get_by_label("A group").check()
    form.get_by_label("Group", exact=True).fill("students")
    # What arrives meanwhile changes nothing that was chosen.
    do(office, "image.create", image="img-later", name="later", notes="")
    console.wait_for_timeout(1000)
    expect(disk).to_be_checked()
    form.get_by_role("button", name="Publish").click()

    expect(console.get_by_role("heading", level=1)).to_contain_text("lab", timeout=PATIENCE_MS)
    expect(console.get_by_role("table", name="Versions")).to_contain_text("default")
    made = template(office, "lab")
    assert (made["image_name"], made["vcpus"], made["standby"], made["maximum"]) == ("biology", 1, 4, 20)
    assert made["assignments"] == [{"kind": "group", "subject": "students"}]
    assert made["kind"] == "personal"


def test_an_iso_becomes_a_desktop_that_is_installed(office: Office, console: Page, tmp_path: Path) -> None:
    file = tmp_path / "setup.iso"
    file.write_bytes(boot_iso.image())
    form = begun(console, "fresh", file)
    iso = form.get_by_role("radio", name="setup install from this ISO")
    expect(iso).to_be_visible(timeout=PATIENCE_MS)
    expect(form.get_by_label("Empty disk for the installation")).to_be_hidden()
    iso.check()
    form.get_by_label("Empty disk for the installation").fill("3")
    form.get_by_label("CD with drivers").select_option(label="setup")
    # What arrives meanwhile changes nothing that was chosen or typed.
    do(office, "image.create", image="img-later", name="later", notes="")
    console.wait_for_timeout(1000)
    expect(form.get_by_label("Empty disk for the installation")).to_have_value("3")
    expect(form.get_by_label("CD with drivers")).not_to_have_value("")
    expect(iso).to_be_checked()
    form.get_by_role("button", name="Publish, or install").click()

    expect(console.get_by_role("heading", level=1)).to_contain_text("fresh-1", timeout=PATIENCE_MS)
    made = template(office, "fresh")
    assert made["installing"]
    assert made["image_name"] == "empty disk of 3 GiB"
    office.show(console.context, console, f"/console/templates/{made['id']}")
    expect(console.locator("#installing")).to_contain_text("It is being installed from an ISO")
    expect(console.get_by_role("region", name="Edited and tested")).to_contain_text("fresh-1")


def test_what_is_wrong_is_told_beside_the_button(console: Page) -> None:
    console.get_by_role("link", name="New desktops").click()
    form = console.get_by_role("form", name="New desktops")
    form.get_by_label("2. What are they called?").fill("office")
    form.get_by_role("button", name="Publish").click()
    expect(console.locator("#wizard-error")).to_contain_text("already a template named office")
    expect(form.get_by_role("button", name="Publish")).to_be_enabled()


def test_a_canary_is_watched_on_the_page_and_its_end_arrives_by_itself(office: Office, console: Page) -> None:
    sizes = {"size_bytes": MIB, "used_bytes": 1, "block_bytes": 1 << 18, "manifest_hash": "b" * 64}
    do(office, "version.add", version="ver-2", image="img-1", notes="", server=office.services.own.server, **sizes)
    console.get_by_role("link", name="office", exact=True).first.click()
    console.get_by_role("button", name="Publish…").first.click()
    dialog = console.get_by_role("dialog")
    expect(dialog.get_by_label("Version 2")).to_be_checked()
    dialog.get_by_label("What changed").fill("a new browser")
    dialog.get_by_role("button", name="Publish", exact=True).click()
    card = console.get_by_role("region", name="Canary")
    expect(card).to_contain_text("Version 2 is being tried")
    row = console.locator("#version-ver-2")
    expect(row.locator("[data-state]")).to_have_attribute("data-state", "canary")
    expect(row).to_contain_text("a new browser")
    do(
        office, "template.canary_stopped", template="tpl-office", version="ver-2", step="guest",
        cause="the guest did not answer",
    )  # fmt: skip
    expect(card).to_have_count(0)
    expect(row).to_contain_text("guest: the guest did not answer")
    expect(row.locator("[data-state]")).to_have_attribute("data-state", "stopped")


def test_the_rules_stay_on_the_page_and_follow_what_others_change(office: Office, console: Page) -> None:
    console.get_by_role("link", name="office", exact=True).first.click()
    rules = console.get_by_role("region", name="Rules of office")
    expect(rules).to_contain_text("Kept ready now")
    machine = {"firmware": "secure", "tpm": True, "hardware": "plain"}
    do(office, "template.update", template="tpl-office", policy={"machine": machine})
    expect(rules).to_contain_text("starts by UEFI with secure boot, has a TPM, has a SATA disk")
    expect(rules).to_contain_text("Its desktops are not moved while they run")
    expect(console.get_by_role("table", name="Versions")).to_contain_text("default")
    rules.get_by_role("button", name="Change rules").click()
    dialog = console.get_by_role("dialog")
    expect(dialog.get_by_label("Starts by")).to_have_value("secure")
    dialog.get_by_label("Largest screen").select_option(label="3840 × 2160 (4K)")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog).to_have_count(0)
    expect(rules).to_be_visible()
