"""A user's desktop in the browser: seen, typed into, and it was the guest that got the keys."""

import os
import secrets
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from appliance.demo.cluster import Cluster
from tests.browser.guest import GuestAgent
from tests.browser.show import SCENE, log_in
from tests.lab import grids
from tests.lab.api import wait_for

pytestmark = pytest.mark.libvirt

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "desktop.png"

# Distinct colours of the screen, and the share (percent) of the most frequent one.
COLOURS = """() => {
    const canvas = document.querySelector('#screen canvas');
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    const seen = new Map();
    for (let at = 0; at < data.length; at += 4) {
        const colour = (data[at] << 16) | (data[at + 1] << 8) | data[at + 2];
        seen.set(colour, (seen.get(colour) || 0) + 1);
    }
    const most = Math.max(...seen.values());
    return {width: canvas.width, height: canvas.height, colours: seen.size, share: 400 * most / data.length};
}"""


def test_a_user_works_at_the_second_server_on_a_desktop_of_another(
    show: Cluster, standby: grids.Item, page: Page
) -> None:
    two = show.server("two")
    boss = grids.admin(show, two)
    # A desktop goes with its user's last session: those of other tests must not keep it.
    boss.ask("DELETE", f"/sessions/of/{SCENE.user}").ok()
    log_in(page, two.portal, SCENE.user, show.password(SCENE.user))
    # As after minutes in which nobody was there: opening it wakes it, or the screen below would show nothing.
    asleep = next(server for server in show.servers if server.id == standby["server"])
    assert asleep.libvirt is not None
    waiting = GuestAgent(asleep.libvirt.uri, f"kmgr-{standby['id']}")
    waiting.run("/usr/bin/env", "DISPLAY=:0", "/usr/bin/xset", "s", "activate")
    offer = page.get_by_role("listitem", name=SCENE.template)
    offer.get_by_role("button", name="Open").click()
    page.locator('body[data-state="connected"]').wait_for(timeout=30_000)
    desktop = page.locator("body").get_attribute("data-desktop")
    mine = boss.ask("GET", f"/desktops/{desktop}").ok()
    assert mine["user"] == SCENE.user
    assert mine["server"] != two.id

    seen = wait_for("the screen shows something", lambda: _drawn(page), timeout_s=30)
    assert seen["width"] >= 640, seen

    home = next(server for server in show.servers if server.id == mine["server"])
    assert home.libvirt is not None
    guest = GuestAgent(home.libvirt.uri, f"kmgr-{desktop}")
    name = f"typed-{secrets.token_hex(4)}"
    page.locator("#screen canvas").click(position={"x": 400, "y": 300})
    page.keyboard.type(f"touch /tmp/{name}; ls -l /tmp; uname -a\n", delay=30)
    wait_for("the guest got the keys", lambda: name in guest.run("/bin/ls", "/tmp").split(), timeout_s=30)
    if os.environ.get("KMGR_PICTURES"):
        PICTURE.parent.mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(3000)  # only for the picture: the guest draws what it answered
        page.screenshot(path=PICTURE)

    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Name")).to_be_visible()
    wait_for(
        "the used desktop is thrown away",
        lambda: all(d["id"] != desktop for d in boss.items("desktops")),
        timeout_s=60,
    )


def test_a_wrong_password_is_said_and_the_name_stays(show: Cluster, page: Page) -> None:
    log_in(page, show.server("three").portal, SCENE.user, "certainly not")
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.get_by_label("Name")).to_have_value(SCENE.user)


def _drawn(page: Page) -> dict[str, float] | None:
    """Return what is on the screen, None while it is blank: one colour, or nearly so."""
    found: dict[str, float] = page.evaluate(COLOURS)
    return found if found["colours"] >= 8 and found["share"] < 97 else None
