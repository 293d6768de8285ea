"""A user who does nothing at their desktop: asked in the browser, staying with a click, closed without one.

And what the page says when an administrator has a message, and when the desktop's server drains.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from appliance.demo.cluster import Cluster
from appliance.demo.progress import Progress
from appliance.demo.scene import Director, Scene
from appliance.image import tiny
from tests.browser.show import log_in
from tests.lab import grids
from tests.lab.ports import port

pytestmark = pytest.mark.libvirt

SCENE = Scene(image="test-guest", template="office", memory_mib=192, standby=1, maximum=2)
WEB_PORT = 320
GRID_PORT = 370
# The shortest rule there is: asked after ten seconds, closed after a minute.
RULE = {"idle_s": 60, "idle_warning_s": 50, "keep_s": 900}


@pytest.fixture
def grid() -> Iterator[Cluster]:
    """One server with a small guest that stands by: a screen is all that is needed."""
    folder = Path(tempfile.mkdtemp(prefix="kmgr-", dir="/tmp"))
    web, own = port(WEB_PORT), port(GRID_PORT)
    more = {"instant_clones": "never"}
    made = Cluster(folder / "idle", names=("one",), grid="idle", web_port=web, grid_port=own, more=more)
    try:
        made.start()
        director = Director(made.admin(), SCENE, Progress())
        director.image(tiny.quick(), 1)
        director.template()
        director.user(made.password(SCENE.user))
        director.ready()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


def test_who_does_nothing_is_asked_and_who_does_not_answer_is_closed(grid: Cluster, page: Page) -> None:
    one = grid.server("one")
    boss = grids.admin(grid, one)
    template = next(one for one in boss.items("templates") if one["name"] == SCENE.template)
    rules = f"/templates/{template['id']}/policy"
    boss.ask("PATCH", rules, RULE).ok()
    log_in(page, one.portal, SCENE.user, grid.password(SCENE.user))
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

    boss.ask("PATCH", rules, {**RULE, "idle_s": 3600}).ok()
    desktop = page.url.rpartition("/")[2]
    boss.ask("POST", f"/desktops/{desktop}/message", {"text": "The printer is back."}).ok()
    message = page.locator("#message")
    expect(message).to_be_visible(timeout=90_000)
    expect(message).to_contain_text("The printer is back.")
    message.locator("summary").click()
    expect(page.locator("#message-text")).to_be_hidden()

    # Its server drains, and nothing else can take it: the page says so, as long as that is true.
    boss.ask("POST", f"/servers/{one.id}/drain", {"force": True, "notice_minutes": 30}).ok()
    farewell = page.locator("#farewell")
    expect(farewell).to_be_visible(timeout=90_000)
    expect(farewell).to_contain_text("the desktop ends at")
    farewell.locator("summary").click()
    expect(page.locator("#farewell-text")).to_be_hidden()
    boss.ask("POST", f"/servers/{one.id}/undrain", {}).ok()
    expect(farewell).to_be_hidden(timeout=90_000)
