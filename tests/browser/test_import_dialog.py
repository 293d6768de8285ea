"""The import dialog in a real browser: an upload whose connection is cut goes on, and what is refused is told."""

from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.office import Office
from tests.lab.api import wait_for

MIB = 1 << 20
PATIENCE_MS = 30_000


@pytest.fixture
def dialog(office: Office, context: BrowserContext, page: Page) -> Page:
    """The dialog on the page of golden images, an administrator logged in."""
    office.show(context, page, "/console/images")
    page.get_by_role("button", name="Import an image").first.click()
    expect(page.get_by_role("dialog")).to_be_visible()
    return page


def test_an_upload_goes_on_after_its_connection_was_cut(
    office: Office, context: BrowserContext, dialog: Page, tmp_path: Path
) -> None:
    file = tmp_path / "office.raw"
    with file.open("wb") as disk:
        disk.write(bytes(510) + b"\x55\xaa" + b"installed" * 4_000_000)
        disk.truncate(40 * MIB)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 10 * MIB}
    context.new_cdp_session(dialog).send("Network.emulateNetworkConditions", slow)
    dialog.get_by_label("Disk image (").set_input_files(file)
    expect(dialog.get_by_label("Name of the golden image")).to_have_value("office")
    dialog.get_by_role("button", name="Import", exact=True).click()
    expect(dialog.locator("#upload-figure")).to_contain_text("left", timeout=PATIENCE_MS)
    arrivals = office.services.reception.arrivals
    office.stop()
    (cut,) = arrivals.all()
    assert 0 < cut.offset < 40 * MIB
    office.start()
    expect(dialog.get_by_role("status")).to_contain_text("office was imported", timeout=PATIENCE_MS)
    expect(dialog.get_by_role("region", name="Golden image office")).to_be_visible()
    assert arrivals.all() == ()


@pytest.mark.parametrize("file", ["debian-13.2.iso", "debian-13.2.QCOW2", "debian-13.2.img"])
def test_the_name_that_is_suggested_is_the_files_without_what_kind_it_is(
    dialog: Page, tmp_path: Path, file: str
) -> None:
    (tmp_path / file).write_bytes(b"x")
    dialog.get_by_label("Disk image (").set_input_files(tmp_path / file)
    expect(dialog.get_by_label("Name of the golden image")).to_have_value("debian-13.2")


def test_a_file_that_is_no_disk_is_told_in_the_dialog_and_another_can_be_chosen(dialog: Page, tmp_path: Path) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear administrator " * 100)
    dialog.get_by_label("Disk image (").set_input_files(letter)
    dialog.get_by_label("Name of the golden image").fill("letter")
    dialog.get_by_role("button", name="Import", exact=True).click()
    alert = dialog.get_by_role("dialog").get_by_role("alert").first
    expect(alert).to_contain_text("it is a text file", timeout=PATIENCE_MS)
    expect(dialog.get_by_role("button", name="Import", exact=True)).to_be_enabled()


def test_the_folder_is_listed_and_its_file_imported(office: Office, dialog: Page) -> None:
    dialog.get_by_label("From server").check()
    expect(dialog.get_by_role("dialog")).to_contain_text("There is no file in")
    folder = office.services.folder.path
    folder.mkdir()
    (folder / "kiosk.raw").write_bytes((bytes(510) + b"\x55\xaa").ljust(MIB, b"x"))
    dialog.get_by_role("button", name="Cancel").click()
    dialog.get_by_role("button", name="Import an image").first.click()
    dialog.get_by_label("From server").check()
    dialog.get_by_label("File in /").select_option("kiosk.raw")
    dialog.get_by_label("Name of the golden image").fill("kiosk")
    dialog.get_by_role("button", name="Import", exact=True).click()
    expect(dialog.get_by_role("region", name="Golden image kiosk")).to_be_visible(timeout=PATIENCE_MS)
    assert (folder / "kiosk.raw").exists()
    wait_for("nothing is under way", lambda: not office.services.importer.running(), timeout_s=10)
