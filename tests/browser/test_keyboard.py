"""Without a mouse: a dialog is opened from a menu and given up, and the reader is back there, whatever else came."""

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.office import Office

# While the dialog is on its way, and while it is open.
MOMENTS = ("before", "after")


@pytest.mark.parametrize("moment", MOMENTS)
def test_who_gives_a_dialog_up_is_back_at_the_menu_although_the_page_was_renewed(
    office: Office, context: BrowserContext, page: Page, moment: str
) -> None:
    office.show(context, page, "/console/servers")
    menu = page.locator("details.menu summary").first
    menu.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    if moment == "before":
        _renew(page)
    expect(page.get_by_role("dialog")).to_be_visible()
    if moment == "after":
        _renew(page)
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).not_to_be_visible()
    expect(menu).to_be_focused()


def _renew(page: Page) -> None:
    """Replace the cards by what the server says now, all of them, as if a server had come or gone."""
    page.evaluate(
        """() => { const part = document.querySelector("details.menu").closest("[data-live]");
        part.innerHTML = part.innerHTML; }"""
    )
