"""A server without a grid, set up in the browser by its two questions."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.show import log_in
from tests.lab.daemons import Daemon
from tests.lab.ports import port

FIRST_PORT = 400
PASSWORD = "correct-horse-7"


@pytest.fixture
def fresh() -> Iterator[Daemon]:
    """A daemon that waits for its wizard's answers."""
    folder = Path(tempfile.mkdtemp(prefix="kmgr-", dir="/tmp"))
    web = port(FIRST_PORT)
    values = {
        "name": "fresh", "web_host": "127.0.0.1", "web_port": web, "grid_host": "127.0.0.1",
        "grid_port": port(FIRST_PORT, {web}), "libvirt_uri": "", "mdns": False,
    }  # fmt: skip
    daemon = Daemon(folder / "data", values)
    daemon.start()
    yield daemon
    status = daemon.stop()
    log = daemon.log
    shutil.rmtree(folder, ignore_errors=True)
    assert status == 0, log[-2000:]


def test_two_questions_in_the_browser_make_a_grid_of_one_server(fresh: Daemon, page: Page) -> None:
    page.goto(f"https://{fresh.api.address}/")
    expect(page).to_have_url(f"https://{fresh.api.address}/setup")
    page.get_by_label("Start a new grid").check()
    page.get_by_label("Name of the grid").fill("Village school")
    page.get_by_label("Password", exact=False).first.fill(PASSWORD)
    page.get_by_label("The same again").fill("something else")
    page.get_by_label("Name of this server").fill("attic")
    page.get_by_role("button", name="Set up this server").click()
    expect(page.locator("#setup-error")).to_contain_text("password")
    assert fresh.api.ask("GET", "/setup").status == 200

    page.get_by_label("The same again").fill(PASSWORD)
    page.get_by_role("button", name="Set up this server").click()
    # The wizard makes way for the grid, and the page goes to the log-in form by itself.
    page.wait_for_url("**/login", timeout=30_000)
    log_in(page, fresh.api.address, "admin", PASSWORD)
    page.wait_for_url("**/console")
    expect(page.get_by_role("navigation", name="Console")).to_be_visible()
    page.goto(f"https://{fresh.api.address}/console/servers")
    expect(page.get_by_role("article", name="Server attic").locator("[data-state]")).to_have_attribute(
        "data-state", "up"
    )
    expect(page).to_have_title("Servers · Village school")
