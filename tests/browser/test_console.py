"""The console, clicked through: what the grid is made of, a change, and news that arrive without a reload."""

import re
import signal

import pytest
from playwright.sync_api import Page, expect

from appliance.demo.cluster import ADMIN, Cluster
from tests.browser.show import SCENE, log_in
from tests.lab import grids
from tests.lab.api import wait_for

pytestmark = pytest.mark.libvirt

LOST_WITHIN_MS = 10_000


@pytest.fixture
def console(show: Cluster, page: Page) -> Page:
    """The console at the first server, the administrator logged in."""
    log_in(page, show.server("one").portal, ADMIN, show.password(ADMIN))
    page.wait_for_url("**/console")
    return page


def go(page: Page, name: str) -> None:
    page.get_by_role("navigation", name="Console").get_by_role("link", name=name).click()
    expect(page.get_by_role("heading", level=1, name=name)).to_be_visible()


def test_every_part_of_the_grid_has_its_page(show: Cluster, standby: grids.Item, console: Page) -> None:
    go(console, "Servers")
    for server in show.servers:
        card = console.get_by_role("article", name=f"Server {server.name}")
        expect(card.locator("[data-state]")).to_have_attribute(
            "data-state", "draining" if server.name == "two" else "up"
        )
        expect(card).to_contain_text(server.portal)

    go(console, "Golden images")
    image = console.get_by_role("region", name=f"Golden image {SCENE.image}")
    # A light for each server, and all of them green.
    expect(image.locator(".light-full")).to_have_count(len(show.servers))
    expect(image.locator(".light-part, .light-none")).to_have_count(0)

    go(console, "Templates")
    expect(console.get_by_role("article", name=f"Template {SCENE.template}")).to_contain_text(SCENE.image)

    go(console, "Desktops")
    row = console.locator(f"#desktop-{standby['id']}")
    expect(row).to_contain_text(SCENE.template)
    row.get_by_role("link").first.click()
    expect(console.get_by_role("heading", level=1)).to_contain_text(standby["name"])

    go(console, "Users")
    expect(console.get_by_role("main")).to_contain_text(SCENE.user)

    go(console, "Events")
    expect(console.get_by_role("main")).to_contain_text(f"template {SCENE.template}")


def test_a_template_is_changed_in_a_dialog_and_wrong_values_are_told_there(show: Cluster, console: Page) -> None:
    go(console, "Templates")
    card = console.get_by_role("article", name=f"Template {SCENE.template}")
    card.get_by_label(f"Actions for template {SCENE.template}").click()
    card.get_by_role("button", name="Change").click()
    dialog = console.get_by_role("dialog")
    expect(dialog).to_be_visible()
    ready = dialog.get_by_role("spinbutton", name="Kept ready")
    # More kept ready than there may be in all: the grid refuses, the dialog says why and keeps what was typed.
    ready.fill("9")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog.get_by_role("alert").first).to_contain_text(re.compile("standby|kept ready|at most", re.IGNORECASE))
    expect(ready).to_have_value("9")
    ready.fill("1")
    dialog.get_by_label("Description").fill("Writing and browsing")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog).to_be_hidden()
    expect(card).to_contain_text("Writing and browsing")
    everywhere = [grids.admin(show, server).items("templates")[0]["notes"] for server in show.servers]
    assert "Writing and browsing" in everywhere


def test_what_somebody_else_does_at_another_server_appears_without_a_reload(show: Cluster, console: Page) -> None:
    go(console, "Templates")
    console.evaluate("window.neverReloaded = true")
    other = grids.admin(show, show.server("three"))
    template = other.items("templates")[0]
    other.ask("PATCH", f"/templates/{template['id']}", {"notes": "Changed elsewhere"}).ok()
    card = console.get_by_role("article", name=f"Template {SCENE.template}")
    expect(card).to_contain_text("Changed elsewhere", timeout=3_000)
    assert console.evaluate("window.neverReloaded")


def test_a_killed_server_is_shown_as_lost_in_the_open_page_and_as_back_again(show: Cluster, console: Page) -> None:
    go(console, "Servers")
    console.evaluate("window.neverReloaded = true")
    two = show.server("two")
    state = console.get_by_role("article", name="Server two").locator("[data-state]")
    expect(state).to_have_attribute("data-state", "draining")
    daemon = two.daemon
    assert daemon is not None
    daemon.send(signal.SIGKILL)
    expect(state).to_have_attribute("data-state", "lost", timeout=LOST_WITHIN_MS)
    two.start()
    expect(state).to_have_attribute("data-state", "draining", timeout=30_000)
    assert console.evaluate("window.neverReloaded")
    wait_for("all three agree", lambda: grids.caught_up(show.servers), timeout_s=30)


def test_the_console_is_closed_to_users(show: Cluster, page: Page) -> None:
    portal = show.server("three").portal
    log_in(page, portal, SCENE.user, show.password(SCENE.user))
    expect(page.get_by_role("heading", level=1, name="My desktops")).to_be_visible()
    answer = page.goto(f"https://{portal}/console")
    assert answer is not None
    assert answer.status == 403
    expect(page.get_by_role("main")).to_contain_text("admin")
