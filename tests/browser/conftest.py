"""A grid with real graphical desktops, and Debian's chromium to look at it."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from appliance.demo.cluster import Cluster
from appliance.demo.progress import Progress
from appliance.demo.scene import Director
from appliance.image import kiosk
from tests.browser.office import Office
from tests.browser.show import SCENE
from tests.lab import grids
from tests.lab.ports import port

WEB_PORT = 300
GRID_PORT = 350
# What headless chromium needs in a container, and what keeps it from talking to anybody but the tests' servers.
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE_MS = 15_000


@pytest.fixture(scope="session")
def show() -> Iterator[Cluster]:
    """Three servers with the demonstration's golden image; the second is drained, so that desktops run elsewhere."""
    folder = Path(tempfile.mkdtemp(prefix="kmgr-", dir="/tmp"))
    web_port, grid_port = port(WEB_PORT), port(GRID_PORT)
    # A large guest boots for a minute in emulation: it boots once, not another time for its memory to be saved.
    own = {"instant_clones": "never"}
    grid = Cluster(folder / "show", grid="Riverside School", web_port=web_port, grid_port=grid_port, more=own)
    try:
        grid.start()
        boss = grid.admin()
        boss.ask("POST", f"/servers/{grid.server('two').id}/drain").ok()
        director = Director(boss, SCENE, Progress())
        director.image(kiosk.cached(), len(grid.servers))
        director.template()
        director.user(grid.password(SCENE.user))
        yield grid
    finally:
        grid.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def standby(show: Cluster) -> grids.Item:
    """A desktop that stands by, on another server than the second."""
    found = grids.standby(grids.admin(show, show.servers[1]), timeout_s=300)[0]
    assert found["server"] != show.server("two").id
    return found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's chromium, headless; it ends with each file, since other tests need its driver's event loop gone."""
    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    """A person's browser: nothing remembered, certificates of the grid's own accepted."""
    context = chromium.new_context(ignore_https_errors=True, viewport={"width": 1280, "height": 840})
    context.set_default_timeout(PATIENCE_MS)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """One tab; a script's error or a broken rule of the content policy fails the test."""
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if "Content Security Policy" in line.text else None)
    yield page
    assert not wrong, wrong


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    """One server's pages in a thread of their own."""
    made = Office(tmp_path)
    yield made
    made.end()
