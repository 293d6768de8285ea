"""What `kmgr grid backup` and `kmgr set` may ask of the running daemon through its local door."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kmgr.clock import Clock
from kmgr.control import Operation
from kmgr.entropy import new_id
from kmgr.errors import Refused
from kmgr.grid import backup
from kmgr.grid.outcomes import applied
from kmgr.grid.port import Grid
from kmgr.grid.raft.grid import RaftGrid
from kmgr.grid.zone import check_zone
from kmgr.settings import check

ADDRESS = "grid_address_ip"
ZONE = "time_zone"


def operations(grid: Grid, log: RaftGrid, data_dir: Path, *, clock: Clock) -> Mapping[str, Operation]:
    """Return the operations by their word."""

    async def copy_state(_: Mapping[str, Any]) -> Mapping[str, Any]:
        status = log.status()
        if status.leader is None:
            raise Refused(
                "this server does not know what the others agreed on lately: back up on a server that has a majority"
            )
        target = data_dir / "tmp" / f"backup-{new_id('b')}.sqlite"
        upto = await asyncio.to_thread(backup.copy_state, data_dir / "state.sqlite", target)
        return {
            "path": str(target),
            "applied": upto,
            "term": status.term,
            "epoch": log.epoch,
            "at": clock.now_ms(),
        }

    async def change(body: Mapping[str, Any]) -> Mapping[str, Any]:
        name, value = str(body.get("name", "")), str(body.get("value", ""))
        if name == ADDRESS:
            return applied(await grid.propose("grid.address", {"address": value}, by="local"))
        if name == ZONE:
            return applied(await grid.propose("grid.zone", {"zone": check_zone(value)}, by="local"))
        wanted = check(name, int(value) if value.lstrip("-").isdecimal() else value)
        return applied(await grid.propose("setting.set", {"name": name, "value": wanted}, by="local"))

    return {"copy-state": copy_state, "set": change}
