"""Small pictures of desktops: they are seen, asked for anew by themselves, and a missing one leaves words."""

import struct
import zlib

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect

from kmgr.ids import DesktopId
from tests.browser.office import Office
from tests.lab.hypervisors import plain
from tests.lab.people import SERVERS

# As large as the picture that a browser has drawn; 0: none.
WIDTH = "image => image.complete ? image.naturalWidth : 0"


def png(width: int) -> bytes:
    """Return a grey picture of one line."""
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, 1, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" + b"\x80" * width)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


@pytest.fixture
def desktop(office: Office) -> DesktopId:
    """A standby whose guest shows something."""

    async def made() -> DesktopId:
        found = DesktopId(await office.lab.office.standby())
        hypervisor = office.lab.hypervisors[SERVERS[0]]
        hypervisor.picture = png(3)
        await hypervisor.define(plain(office.lab.folder, found, 1))
        await hypervisor.start(found)
        return found

    return office.do(made())


def shows(picture: Locator, width: int) -> None:
    expect(picture).to_be_visible()
    picture.page.wait_for_function(
        f"([id, width]) => ({WIDTH})(document.getElementById(id)) === width",
        arg=[picture.get_attribute("id"), width],
        timeout=30_000,
    )


@pytest.mark.parametrize("where", ["/console/desktops?view=screens", "/console/desktops/{}"])
def test_a_screen_is_seen_and_seen_anew(
    office: Office, context: BrowserContext, page: Page, desktop: DesktopId, where: str
) -> None:
    page.clock.install()
    office.show(context, page, where.format(desktop))
    picture = page.locator(f"#shot-{desktop}")
    shows(picture, 3)
    office.lab.hypervisors[SERVERS[0]].picture = png(7)
    page.clock.run_for(20_000)
    shows(picture, 7)
    # It goes off: words take the picture's place, until there is one again.
    office.lab.hypervisors[SERVERS[0]].power_off(desktop)
    page.clock.run_for(20_000)
    expect(picture).to_be_hidden(timeout=30_000)
    expect(page.get_by_text("No picture").first).to_be_visible()


def test_nobody_elses_screen_is_shown(
    office: Office, context: BrowserContext, page: Page, desktop: DesktopId
) -> None:
    office.do(office.lab.office.do("desktop.claim", user="anna", template="tpl-office"))
    office.show(context, page, "/console/desktops?view=screens")
    expect(page.locator(f"#screen-{desktop}")).to_contain_text("Only anna sees it")
    expect(page.locator(f"#shot-{desktop}")).to_have_count(0)
