"""The import dialog in a real browser: an upload whose connection is cut goes on, and what is refused is told."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from kmgr.clock import SystemClock
from kmgr.grid.identity import ensure_web_certificate
from kmgr.web import auth
from kmgr.web.app import make_app
from kmgr.web.server import WebServer
from tests.lab.api import wait_for
from tests.lab.web_lab import ADMIN, WebLab, opened

HERE = "127.0.0.1"
MIB = 1 << 20
PATIENCE_MS = 30_000

T = TypeVar("T")


class Office:
    """One server's pages in a thread of their own, whose listener can be stopped and started."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.port = 0
        self._opened = opened(folder)
        self.lab: WebLab = self.do(self._opened.__aenter__())
        self.services = self.do(self._call(self.lab.services))
        self.start()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _call(self, work: Callable[[], T]) -> T:
        return work()

    def start(self) -> None:
        cert, key = ensure_web_certificate(self._folder, frozenset({HERE}), now_ms=SystemClock().now_ms())

        async def made() -> WebServer:
            server = WebServer(make_app(self.services), host=HERE, port=self.port, cert=cert, key=key)
            await server.start()
            return server

        self.server = self.do(made())
        self.port = self.server.port

    def stop(self) -> None:
        self.do(self.server.stop())

    def end(self) -> None:
        self.stop()
        self.do(self._opened.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    yield office
    office.end()


@pytest.fixture
def dialog(office: Office, context: BrowserContext, page: Page) -> Page:
    """The dialog on the page of golden images, an administrator logged in."""
    url = f"https://{HERE}:{office.port}"
    token = office.do(office.lab.token(ADMIN))
    context.add_cookies([{"name": auth.COOKIE, "value": token, "url": url, "secure": True}])
    page.goto(f"{url}/console/images")
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
