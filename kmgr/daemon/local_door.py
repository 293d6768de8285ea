"""What `kmgr` commands may ask of the running daemon through its local door."""

from collections.abc import Mapping
from typing import Any

from kmgr.clock import Clock
from kmgr.control import Operation
from kmgr.errors import Refused
from kmgr.grid import join
from kmgr.grid.identity import Identity
from kmgr.grid.outcomes import applied
from kmgr.grid.port import Grid, VitalsBoard
from kmgr.grid.queries import server, servers
from kmgr.users.passwords import hash_password
from kmgr.users.sessions import normalised


def operations(grid: Grid, own: Identity, board: VitalsBoard, *, clock: Clock) -> Mapping[str, Operation]:
    """Return the operations of a server of a grid, by their word."""

    async def status(_: Mapping[str, Any]) -> Mapping[str, Any]:
        now = grid.status()
        with grid.view() as db:
            known = servers(db)
        names = {s.id: s.name for s in known}
        vitals, monotonic = board.all(), clock.monotonic()
        problems = [f"{names[s]}: {text}" for s in sorted(vitals) if s in names for text in vitals[s].problems]
        return {
            "grid": own.grid_name,
            "server": own.server,
            "majority": now.majority,
            "island_since": now.island_since,
            "leader": names.get(now.leader, now.leader) if now.leader else None,
            "term": now.term,
            "applied": now.applied,
            "voters": [names.get(voter, voter) for voter in now.voters],
            "servers": [
                {
                    "id": s.id,
                    "name": s.name,
                    "role": s.role.value,
                    "state": s.state.value,
                    "voter": s.id in now.voters,
                    "web_address": s.web_address,
                    "heard_s_ago": max(0, round(monotonic - vitals[s.id].heard_at)) if s.id in vitals else None,
                }
                for s in known
            ],
            "problems": problems,
        }

    async def invite(_: Mapping[str, Any]) -> Mapping[str, Any]:
        invitation = await join.invite(grid, secret=own.secret, by="local", clock=clock)
        with grid.view() as db:
            row = server(db, own.server)
        return {
            "phrase": invitation.phrase,
            "replaced": invitation.replaced,
            "expires_at": invitation.expires_at,
            "address": row.grid_address if row is not None else "",
        }

    async def reset_password(body: Mapping[str, Any]) -> Mapping[str, Any]:
        name, password = body.get("name"), body.get("password")
        if not isinstance(name, str) or not isinstance(password, str):
            raise Refused("say which account gets which password")
        hashed = await hash_password(password)
        change = {"name": normalised(name), "password_hash": hashed}
        applied(await grid.propose("account.password", change, by="local"))
        return {}

    return {"status": status, "invite": invite, "reset-password": reset_password}
