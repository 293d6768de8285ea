"""The web of a fake grid, for tests of API and pages: real appliers, real handlers, a clock moved by hand.

    async with opened(tmp_path) as lab: ...
    site = await lab.site()          # the web of server one; lab.site(SERVERS[1]) is another's
    status, body = await site.ask("GET", "/templates", who="root")
    page = await site.page("/", who="anna")
    answer = await site.submit("/open/office", {}, who="anna")     # a form, with cookie and csrf

`root` is an administrator, `anna` and `ben` are users; `office` is a template given to anna.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import ClientResponse, DummyCookieJar, web
from aiohttp.test_utils import TestClient, TestServer

from kmgr.config import Config
from kmgr.grid.identity import Identity
from kmgr.grid.join import Invitation
from kmgr.grid.local import LocalGrid, LocalNetwork
from kmgr.grid.model import Processor, Vitals
from kmgr.grid.vitals import Board
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.attendance import Attendance
from kmgr.provision.display import serve_display
from kmgr.provision.fake import FakeHypervisor
from kmgr.replica.images import Images
from kmgr.templates.arrivals import Arrivals
from kmgr.templates.download import Downloader
from kmgr.templates.folder import Folder
from kmgr.templates.importer import Importer
from kmgr.templates.reception import Reception
from kmgr.users.broker import Broker
from kmgr.users.directories import directories_of
from kmgr.users.directory import WrongPassword
from kmgr.users.model import DirectoryConfig
from kmgr.users.sessions import Sessions, hash_of
from kmgr.web import auth
from kmgr.web.api.openapi import describe
from kmgr.web.api.routes import ROUTES
from kmgr.web.app import make_app
from kmgr.web.outgoing import WebOutgoing
from kmgr.web.services import Services
from tests.lab.people import RIGHT, SERVERS, Office
from tests.lab.schemas import answer_misfits, route_of

DESCRIBED = describe(ROUTES, version="0.1.0")
ADMIN, USER, OTHER = "root", "anna", "ben"


class WebLab:
    """Three servers on one log, each with services; `site()` starts the web of one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "grids").mkdir()
        self.office = Office(folder / "grids")
        self.clock = self.office.clock
        self.network = LocalNetwork()
        self.hypervisors = {server: FakeHypervisor(self.clock, boot_s=0) for server in SERVERS}
        self.boards = {server: Board() for server in SERVERS}
        self.attendances: dict[ServerId, Attendance] = {}
        self.waiting: dict[DesktopId, str] = {}
        self._sites: list[Site] = []
        self._tokens: dict[str, str] = {}
        self._screens: list[asyncio.StreamWriter] = []

    async def open(self) -> None:
        """Fill in the grid, its people and one template."""
        await self.office.do("grid.create", grid="grd-1", name="Office grid", ca_cert_pem="", ca_key_sealed="")
        await self.office.open()
        await self.office.account(ADMIN, role="admin")
        await self.office.account(USER)
        await self.office.account(OTHER, groups=["students"])
        await self.office.do("assignment.add", template="tpl-office", kind="user", subject=USER)
        for server, grid in zip(SERVERS, self.office.grids, strict=True):
            port, attendance = self.network.port(server), Attendance(grid, clock=self.clock)
            attendance.serve(port)
            serve_display(port, grid, self.hypervisors[server], socket=self.screen, attendance=attendance)
            self.attendances[server] = attendance
            for board in self.boards.values():
                board.put(self.vitals(server))

    async def close(self) -> None:
        """Stop what was started."""
        for site in self._sites:
            await site.close()
        self.office.close()

    own_allowed = False

    def grid(self, server: ServerId = SERVERS[0]) -> LocalGrid:
        """Return one server's grid."""
        return self.office.grids[SERVERS.index(server)]

    def screen(self, desktop: DesktopId) -> Path:
        """Return where the display socket of a desktop is."""
        return self.folder / f"{desktop}.vnc"

    def vitals(self, server: ServerId, **changed: Any) -> Vitals:
        """Return what a healthy server reports now."""
        plain = {
            "cpus": 4, "load_percent": 10, "memory_mib": 8192, "memory_free_mib": 6000, "disk_mib": 100_000,
            "disk_free_mib": 60_000, "accelerator": "kvm", "can_run_desktops": True,
            "processor": Processor("AMD", "family 25 model 17", frozenset({"avx2"})),
            "extra": {"builds": {"limit": 3, "most": 8, "why": ""}},
        }  # fmt: skip
        return Vitals(server, self.clock.monotonic(), **{**plain, **changed})

    def services(self, server: ServerId = SERVERS[0]) -> Services:
        """Return what the web of a server is given."""
        grid = self.grid(server)
        data_dir = self.folder / f"data-{server}"
        data_dir.mkdir(exist_ok=True)
        images = Images(data_dir)
        importer = Importer(grid, images, self.clock)
        arrivals = Arrivals(images, self.clock, keep_hours=lambda: 24)
        downloader = Downloader(WebOutgoing(), self.clock, own_allowed=lambda: self.own_allowed)

        async def invite(by: str) -> Invitation:
            return Invitation("word-word-word-word", self.clock.now_ms() + 900_000)

        async def try_directory(config: DirectoryConfig, name: str, password: str) -> str:
            if password != RIGHT:
                raise WrongPassword
            return f"{name} of {config.id}, a user"

        return Services(
            config=Config(data_dir=data_dir, name=server[4:]),
            own=Identity(server, server[4:], "grd-1", "Office grid", b"", b"", b"", b""),
            version="0.1.0",
            clock=self.clock,
            grid=grid,
            requests=self.network.port(server),
            board=self.boards[server],
            sessions=Sessions(grid, directories_of(grid), clock=self.clock),
            broker=Broker(grid, clock=self.clock),
            importer=importer,
            reception=Reception(importer, arrivals, self.clock, download=downloader),
            fetch_sum=downloader.checksum,
            folder=Folder(self.folder / "imports"),
            images=images,
            invite=invite,
            try_directory=try_directory,
            waiting=lambda desktop: self.waiting.get(desktop, ""),
        )

    async def site(
        self,
        server: ServerId = SERVERS[0],
        *,
        make: Callable[[Services], web.Application] = make_app,
    ) -> "Site":
        """Start the web of a server on loopback."""
        site = Site(self, TestClient(TestServer(make(self.services(server))), cookie_jar=DummyCookieJar()))
        await site.client.start_server()
        self._sites.append(site)
        return site

    async def token(self, who: str) -> str:
        """Return the token of a session of a person, opened at the first call."""
        if who not in self._tokens:
            token = f"token-of-{who}"
            body = {
                "hash": hash_of(token), "name": who, "display_name": who.title(), "source": "built-in",
                "groups": ["students"] if who == OTHER else [], "role": "admin" if who == ADMIN else "user",
                "address": "127.0.0.1", "server": SERVERS[0], "expires_at": self.clock.now_ms() + 3_600_000,
            }  # fmt: skip
            await self.office.do("session.open", **body)
            self._tokens[who] = token
        return self._tokens[who]

    async def running(self, desktop: str) -> asyncio.Server:
        """Put a screen behind a desktop: everything that is sent comes back."""

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._screens.append(writer)
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.close()

        return await asyncio.start_unix_server(echo, self.screen(DesktopId(desktop)))

    def power_off(self) -> None:
        """End all screens, as when QEMU ends."""
        for writer in self._screens:
            writer.close()


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[WebLab]:
    """Lend an open lab."""
    lab = WebLab(folder)
    await lab.open()
    try:
        yield lab
    finally:
        await lab.close()


@dataclass(frozen=True, slots=True)
class Said:
    """An answer: status, headers, text; `json` if it is one."""

    status: int
    headers: Mapping[str, str]
    cookies: Mapping[str, Any]
    text: str

    @property
    def json(self) -> Any:
        """Return the parsed body."""
        return json.loads(self.text)


class Site:
    """The web of one server, as somebody in particular."""

    def __init__(self, lab: WebLab, client: TestClient[web.Request, web.Application]) -> None:
        self.lab = lab
        self.client = client
        self.answered: set[tuple[str, str]] = set()

    async def ask(self, method: str, path: str, body: Any = None, *, who: str = "", **more: Any) -> tuple[int, Any]:
        """Ask the API with a bearer token; returns status and parsed body (None if there is none).

        Whatever it answers must fit the API's own description.
        """
        headers = {"Authorization": f"Bearer {await self.lab.token(who)}"} if who else {}
        if body is not None:
            more["json"] = body
        headers |= more.pop("headers", {})
        said = await self.send(method, f"/api/v1{path}", headers=headers, **more)
        parsed = said.json if said.text else None
        assert not answer_misfits(DESCRIBED, method, f"/api/v1{path}", said.status, parsed)
        if said.status < 400:
            self.answered.add((method, route_of(DESCRIBED, method, f"/api/v1{path}").removeprefix("/api/v1")))
        return said.status, parsed

    async def page(self, path: str, *, who: str = "", **headers: str) -> Said:
        """Load a page with the cookie of a browser."""
        return await self.send("GET", path, headers={**await self.cookie(who), **headers})

    async def submit(self, path: str, form: Mapping[str, Any], *, who: str = "", **headers: str) -> Said:
        """Send a form as a browser would, with its hidden word."""
        cookie = await self.cookie(who)
        return await self.send("POST", path, headers={**cookie, **headers}, data={**form, **await self.csrf(who)})

    async def cookie(self, who: str) -> dict[str, str]:
        """Return the cookie header of a person, or of a form if nobody is logged in."""
        return {"Cookie": f"{auth.COOKIE}={await self.lab.token(who)}" if who else f"{auth.FORM_COOKIE}=form-secret"}

    async def csrf(self, who: str) -> dict[str, str]:
        """Return the hidden field of a person's forms."""
        return {auth.CSRF_FIELD: auth.word(await self.lab.token(who) if who else "form-secret")}

    async def send(self, method: str, path: str, **more: Any) -> Said:
        """Send any request; redirects are not followed."""
        async with self.client.request(method, path, allow_redirects=False, **more) as answer:
            return await _read(answer)

    async def close(self) -> None:
        """Stop the web."""
        await self.client.close()


async def _read(answer: ClientResponse) -> Said:
    return Said(answer.status, answer.headers, answer.cookies, await answer.text(errors="replace"))


async def second_version(lab: WebLab, notes: str = "") -> None:
    """Bring a second version of the golden image in, which no template has yet."""
    await lab.office.do(
        "version.add", version="ver-2", image="img-1", notes=notes, server=SERVERS[0],
        size_bytes=1 << 20, used_bytes=1, block_bytes=1 << 18, manifest_hash="b" * 64,
    )  # fmt: skip
