"""Every page on a phone: nothing makes it wider than its screen, and remarks below the servers look like text."""

from playwright.sync_api import BrowserContext, Page, ViewportSize

from tests.browser.office import Office
from tests.lab.people import SERVERS

PHONE = ViewportSize(width=360, height=740)
PAGES = (
    "/console", "/console/servers", "/console/images", "/console/templates", "/console/templates/tpl-office",
    "/console/desktops", "/console/users", "/console/events", "/console/settings", "/console/help", "/",
)  # fmt: skip
WHY = "its processors were busy (93 % of the time somebody waited for one)"


def test_no_page_is_wider_than_a_phone(office: Office, context: BrowserContext, page: Page) -> None:
    page.set_viewport_size(PHONE)
    office.lab.boards[SERVERS[0]].put(office.lab.vitals(SERVERS[1], extra={"builds": {"limit": 1, "why": WHY}}))
    for path in PAGES:
        office.show(context, page, path)
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"], path


def test_the_icon_of_a_remark_is_at_the_height_of_its_text(
    office: Office, context: BrowserContext, page: Page
) -> None:
    office.show(context, page, "/console/servers")
    icon, button = page.locator("#grid-address > .icon"), page.locator("#grid-address > button")
    icon.wait_for()
    middles = [box["y"] + box["height"] / 2 for box in (icon.bounding_box(), button.bounding_box()) if box]
    assert abs(middles[0] - middles[1]) < 2.5, middles
