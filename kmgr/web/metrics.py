"""`GET /metrics`: what a monitoring system watches, in the words of this server.

For administrators, and for whoever knows the word in `metrics.token` in the data
folder; without that file the address is for administrators only. The figures are
those of the console: each server shows the whole grid as it sees it.
"""

import asyncio
import hmac
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from aiohttp import web

from kmgr.errors import NotAllowed, NotLoggedIn
from kmgr.grid.model import RUNNING, Server, ServerState, Vitals
from kmgr.grid.queries import servers, settings
from kmgr.ids import TemplateId
from kmgr.provision.model import Desktop, DesktopState
from kmgr.provision.queries import desktops
from kmgr.replica.queries import holdings, images, versions
from kmgr.templates.queries import templates
from kmgr.web import auth, present_copies
from kmgr.web.exposition import CONTENT_TYPE, Gauge, Sample, spelled
from kmgr.web.services import SERVICES, Services

TOKEN_FILE = "metrics.token"  # noqa: S105 - a file's name
# Shorter ones can be guessed.
LEAST_TOKEN = 16
_MIB = 1 << 20


def add_routes(app: web.Application) -> None:
    """Add the address."""
    app.router.add_get("/metrics", metrics)


async def metrics(request: web.Request) -> web.Response:
    """Answer with all figures."""
    services = request.app[SERVICES]
    if not await asyncio.to_thread(_knows, services.config.data_dir / TOKEN_FILE, auth.token_of(request)):
        try:
            auth.require_admin(request)
        except (NotAllowed, NotLoggedIn) as error:
            # A program asks: no page to log in at.
            status = 401 if isinstance(error, NotLoggedIn) else 403
            return web.Response(status=status, text=f"{error.message}\n", headers={"WWW-Authenticate": "Bearer"})
    page = await asyncio.to_thread(lambda: spelled(gauges(services)))
    return web.Response(text=page, headers={"Content-Type": CONTENT_TYPE})


def gauges(services: Services) -> tuple[Gauge, ...]:
    """Return all figures as they are now."""
    status, board = services.grid.status(), services.board.all()
    with services.grid.view() as db:
        known, every = servers(db), desktops(db)
        names = {template.id: template.name for template in templates(db)}
        sight = present_copies.look(services, db)
        target_s = settings(db)["copy_target_s"]
        titles = {image.id: image.name for image in images(db)}
        held = Counter(holding.version for holding in holdings(db) if not holding.damaged)
        held_badly = Counter(holding.version for holding in holdings(db) if holding.damaged)
        counted = [
            ({"image": titles.get(one.image, one.image), "version": str(one.number)}, one.id) for one in versions(db)
        ]
    alone = {"server": services.own.name, "grid": services.own.grid_name, "version": services.version}
    return (
        _one("kmgr_info", "This server", 1, alone),
        _one("kmgr_log_applied_index", "The last change of the grid that is applied here", status.applied),
        _one("kmgr_log_term", "The term of the log", status.term),
        _one("kmgr_majority", "1 if a majority of the voters is there", status.majority),
        _one("kmgr_island", "1 while this server goes on by itself without a majority", status.island),
        _one("kmgr_leader", "1 on the server that orders the changes", status.leader == services.own.server),
        Gauge("kmgr_voters", "How many servers vote", (Sample(len(status.voters)),)),
        *_servers(known, [board[server.id] for server in known if server.id in board]),
        _desktops(every, names),
        *_copies(every, sight),
        _one("kmgr_copy_target_seconds", "How old a safe copy should be at most (copy_target_s)", target_s),
        Gauge(
            "kmgr_image_copies", "On how many servers a version of a golden image is whole",
            tuple(Sample(held[version], labels) for labels, version in counted),
        ),
        Gauge(
            "kmgr_image_copies_damaged", "On how many servers a version has blocks that are wrong and not mended",
            tuple(Sample(held_badly[version], labels) for labels, version in counted),
        ),
    )  # fmt: skip


def _servers(known: Iterable[Server], heard: Iterable[Vitals]) -> tuple[Gauge, ...]:
    names = {server.id: server.name for server in known}
    count = Counter(server.state for server in known)
    heard = [vitals for vitals in heard if vitals.server in names]

    def each(name: str, help: str, value: str, factor: int = 1) -> Gauge:
        samples = (Sample(getattr(v, value) * factor, {"server": names[v.server]}) for v in heard)
        return Gauge(name, help, tuple(samples))

    states = [state for state in ServerState if state is not ServerState.REMOVED]
    return (
        Gauge("kmgr_servers", "Servers by state", tuple(Sample(count[s], {"state": str(s)}) for s in states)),
        Gauge(
            "kmgr_server_up", "1 if the grid hears from a server",
            tuple(Sample(server.state in RUNNING, {"server": server.name}) for server in known),
        ),
        Gauge(
            "kmgr_server_problems", "What a person should look after on a server, as its console card says",
            tuple(Sample(len(v.problems), {"server": names[v.server]}) for v in heard),
        ),
        each("kmgr_server_load_percent", "How busy a server's processors are", "load_percent"),
        each("kmgr_server_memory_free_bytes", "Memory that is free on a server", "memory_free_mib", _MIB),
        each("kmgr_server_disk_free_bytes", "Room on the disk of a server's data folder", "disk_free_mib", _MIB),
    )  # fmt: skip


def _desktops(every: Iterable[Desktop], names: Mapping[TemplateId, str]) -> Gauge:
    count = Counter((names.get(one.template, one.template), one.state) for one in every)
    rows = sorted({*names.values(), *(template for template, _ in count)})
    samples = (
        Sample(count[template, state], {"template": template, "state": str(state)})
        for template in rows
        for state in DesktopState
    )
    return Gauge("kmgr_desktops", "Desktops by template and state", tuple(samples))


def _copies(every: Iterable[Desktop], sight: present_copies.Sight) -> tuple[Gauge, Gauge]:
    ages, bare = [], 0
    for one in every:
        told = sight.protection(one)
        if told is None:
            continue
        if told["age_s"] is None:
            bare += 1
        else:
            labels = {"desktop": one.name, "server": sight.names.get(one.server, one.server)}
            ages.append(Sample(told["age_s"], {**labels, "copy_on": told["server_name"]}))
    return (
        Gauge("kmgr_copy_age_seconds", "How old the safe copy of a personal desktop is", tuple(ages)),
        Gauge("kmgr_desktops_without_copy", "Personal desktops without a complete safe copy", (Sample(bare),)),
    )


def _one(name: str, help: str, value: float, labels: dict[str, str] | None = None) -> Gauge:
    return Gauge(name, help, (Sample(float(value), labels or {}),))


def _knows(file: Path, token: str) -> bool:
    """Tell whether a request carries the word of the file; blocks."""
    try:
        known = file.read_text().strip()
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise NotAllowed(f"{file} cannot be read: {error}") from error
    return len(known) >= LEAST_TOKEN and hmac.compare_digest(known.encode(), token.encode())
