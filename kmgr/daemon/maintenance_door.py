"""What `kmgr drain`, `undrain`, `remove` and `off` may ask of the running daemon through its local door."""

from collections.abc import Mapping
from typing import Any

from kmgr.balancer.maintenance import by_name, carry_out
from kmgr.balancer.redundancy import Drain, Remove
from kmgr.clock import Clock
from kmgr.control import Operation
from kmgr.grid.outcomes import applied
from kmgr.grid.port import Grid, VitalsBoard

_BY = "local"


def operations(grid: Grid, board: VitalsBoard, *, clock: Clock) -> Mapping[str, Operation]:
    """Return the operations by their word."""

    async def drain(body: Mapping[str, Any]) -> Mapping[str, Any]:
        action = Drain(by_name(grid, str(body.get("server", ""))))
        minutes = body.get("notice_minutes", 0)
        forced = body.get("force") is True
        await carry_out(grid, board, action, by=_BY, force=forced, notice_minutes=minutes, clock=clock)
        return {}

    async def undrain(body: Mapping[str, Any]) -> Mapping[str, Any]:
        server = by_name(grid, str(body.get("server", "")))
        applied(await grid.propose("server.undrain", {"server": server}, by=_BY))
        return {}

    async def remove(body: Mapping[str, Any]) -> Mapping[str, Any]:
        action = Remove(by_name(grid, str(body.get("server", ""))))
        await carry_out(grid, board, action, by=_BY, force=body.get("force") is True, clock=clock)
        return {}

    async def off(body: Mapping[str, Any]) -> Mapping[str, Any]:
        server = by_name(grid, str(body.get("server", "")), removed=True)
        applied(await grid.propose("tenure.end", {"server": server}, by=_BY))
        return {}

    return {"off": off, "drain": drain, "undrain": undrain, "remove": remove}
