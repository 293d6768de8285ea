"""A user who does nothing at their desktop: asked in the browser, staying with a click, closed without one."""

import pytest
from playwright.sync_api import Page, expect

from appliance.demo.cluster import Cluster
from tests.browser.show import SCENE, log_in
from tests.lab import grids

pytestmark = pytest.mark.libvirt

# The shortest rule there is: asked after ten seconds, closed after a minute.
RULE = {"idle_s": 60, "idle_warning_s": 50, "keep_s": 900}


def test_who_does_nothing_is_asked_and_who_does_not_answer_is_closed(
    show: Cluster, standby: grids.Item, page: Page
) -> None:
    two = show.server("two")
    boss = grids.admin(show, two)
    template = next(one for one in boss.items("templates") if one["name"] == SCENE.template)
    rules = f"/templates/{template['id']}/policy"
    boss.ask("PATCH", rules, RULE).ok()
    try:
        boss.ask("DELETE", f"/sessions/of/{SCENE.user}").ok()
        log_in(page, two.portal, SCENE.user, show.password(SCENE.user))
        page.get_by_role("listitem", name=SCENE.template).get_by_role("button", name="Open").click()
        page.locator('body[data-state="connected"]').wait_for(timeout=60_000)
        warning = page.get_by_role("alertdialog", name="Are you still there?")
        expect(warning).to_be_visible(timeout=40_000)
        expect(warning).to_contain_text("If nobody does anything for 1 minute, its screen closes")

        page.get_by_role("button", name="I am here, go on").click()
        expect(warning).to_be_hidden()
        expect(page.locator("body")).to_have_attribute("data-state", "connected")
        expect(warning).to_be_visible(timeout=40_000)

        page.locator("#screen canvas").click(position={"x": 100, "y": 100})
        expect(warning).to_be_hidden(timeout=10_000)

        closed = page.get_by_role("heading", name="Closed, because nobody was there")
        expect(closed).to_be_visible(timeout=90_000)
        expect(page.locator("#veil-text")).to_contain_text("It is kept for you for 15 minutes.")
        page.wait_for_timeout(7_000)  # longer than a page waits before it connects again by itself
        expect(closed).to_be_visible()

        page.get_by_role("button", name="Try again").click()
        page.locator('body[data-state="connected"]').wait_for(timeout=30_000)
    finally:
        boss.ask("PATCH", rules, {"idle_s": None, "keep_s": None}).ok()
        boss.ask("DELETE", f"/sessions/of/{SCENE.user}").ok()
