"""The grid address as the web shows and changes it, for API and pages alike."""

from kmgr.grid.address import holder
from kmgr.grid.outcomes import applied
from kmgr.grid.queries import servers
from kmgr.grid.standing import floating_address
from kmgr.web.records import Item
from kmgr.web.services import Services

FRESH_S = 5.0


def shown(services: Services) -> Item:
    """Return the grid address, who holds it now (by their own words), empty and null if nobody."""
    with services.grid.view() as db:
        address = floating_address(db)
        names = {server.id: server.name for server in servers(db)}
    now = services.clock.monotonic()
    said = {
        server: bool(vitals.extra.get("holds_grid_address"))
        for server, vitals in services.board.all().items()
        if server in names and now - vitals.heard_at < FRESH_S
    }
    found = holder(said) if address else None
    return {"address": address, "server": found, "server_name": names[found] if found else ""}


async def change(services: Services, by: str, address: str) -> Item:
    """Choose another grid address, or none."""
    applied(await services.grid.propose("grid.address", {"address": address.strip()}, by=by))
    return shown(services)
