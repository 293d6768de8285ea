"""What the web is given to work with: one bundle for a server of a grid, one for a server without a grid.

The daemon fills them in; handlers take what they need from `request.app[SERVICES]`.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from aiohttp import web

from kmgr.clock import Clock
from kmgr.config import Config
from kmgr.grid.discovery import Found
from kmgr.grid.identity import Identity
from kmgr.grid.join import Invitation
from kmgr.grid.port import Grid, Requests, VitalsBoard
from kmgr.grid.preflight import Finding
from kmgr.ids import DesktopId
from kmgr.replica.images import Images
from kmgr.templates.folder import Folder
from kmgr.templates.importer import Importer
from kmgr.templates.reception import Reception
from kmgr.users.broker import Broker
from kmgr.users.model import DirectoryConfig
from kmgr.users.sessions import Sessions

Invite: TypeAlias = Callable[[str], Awaitable[Invitation]]
FetchSum: TypeAlias = Callable[[str, str], Awaitable[str]]
TryDirectory: TypeAlias = Callable[[DirectoryConfig, str, str], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Services:
    """A server of a grid, as the web sees it.

    `invite(by)` makes an invitation for one new server. `try_directory(config, name, password)` logs a person in at a
    directory that is not saved yet and returns who that is in words; it raises what the directory says.
    `fetch_sum(url, name)` reads a file's SHA-256 from a file of checksums.
    `waiting(desktop)` says what a desktop on this server waits for, empty if nothing.
    """

    config: Config
    own: Identity
    version: str
    clock: Clock
    grid: Grid
    requests: Requests
    board: VitalsBoard
    sessions: Sessions
    broker: Broker
    importer: Importer
    reception: Reception
    fetch_sum: FetchSum
    folder: Folder
    images: Images
    invite: Invite
    try_directory: TryDirectory
    waiting: Callable[[DesktopId], str]


@dataclass(frozen=True, slots=True)
class NewGridAnswers:
    """The wizard's answers for a new grid: its name, this server's name, the first administrator."""

    grid: str
    server: str
    admin: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class JoinAnswers:
    """The wizard's answers for joining: a server's grid address (`host:port`), the phrase, this server's name."""

    address: str
    phrase: str = field(repr=False)
    server: str


@dataclass(frozen=True, slots=True)
class SetupServices:
    """A server without a grid, as the wizard sees it.

    `browse()` listens for grids for about two seconds. `create` and `join` write this server's identity and return
    when that is done (`join` with what its preflight warned of); soon afterwards this listener stops and the grid's
    own takes its place at the same port.
    """

    config: Config
    version: str
    fingerprint: str
    browse: Callable[[], Awaitable[Found]]
    create: Callable[[NewGridAnswers], Awaitable[None]]
    join: Callable[[JoinAnswers], Awaitable[Sequence[Finding]]]


SERVICES: web.AppKey[Services] = web.AppKey("services", Services)
SETUP: web.AppKey[SetupServices] = web.AppKey("setup", SetupServices)
