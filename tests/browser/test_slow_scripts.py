"""A page whose scripts are late, in a real browser: what is pressed meanwhile is done when they are there."""

from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.browser.office import Office


def test_a_button_pressed_before_the_scripts_are_there_is_not_lost(
    office: Office, context: BrowserContext, page: Page
) -> None:
    office.show(context, page, "/console/templates")
    late: list[Route] = []
    page.route("**/htmx.min.js*", lambda route: late.append(route))  # noqa: PLW0108 - a route takes no built-in
    page.get_by_role("link", name="New desktops").click()
    page.get_by_role("button", name="Import a disk or an ISO").click()
    assert len(late) == 1
    expect(page.get_by_role("dialog")).to_be_hidden()
    late[0].continue_()
    expect(page.get_by_role("dialog").get_by_label("Disk image (")).to_be_visible()
