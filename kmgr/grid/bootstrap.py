"""The birth of a grid: one server writes its identity and the first commands, then starts as usual.

`create_grid` touches only files, so `kmgr init` and the setup page can do it
before any daemon runs. The first commands wait in `identity/bootstrap.json`, each
with its id fixed, until `propose_pending` has put them into the log: killed
between any two of them, the next start goes on where it was.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kmgr.entropy import new_id
from kmgr.errors import InvariantBroken
from kmgr.grid import authority, identity
from kmgr.grid.authority import KeyAndCertificate
from kmgr.grid.envelope import Rejected
from kmgr.grid.identity import BOOTSTRAP, Identity
from kmgr.grid.port import Grid
from kmgr.ids import CommandId, ServerId

logger = logging.getLogger(__name__)


def create_grid(
    data_dir: Path,
    *,
    grid_name: str,
    name: str,
    grid_address: str,
    web_address: str,
    version: str,
    now_ms: int,
    extra_commands: Sequence[tuple[str, Mapping[str, Any]]] = (),
) -> Identity:
    """Make this server the first of a new grid; `extra_commands` (type, body) follow the grid's own ones.

    Raises `Conflict` naming the grid that lives in the data folder, if one does.
    """
    identity.refuse_if_used(data_dir)
    identity.discard_unfinished(data_dir)
    server, grid = ServerId(new_id("srv")), new_id("grid")
    ca = authority.create_ca(grid, now_ms=now_ms)
    own = _first_identity(server, name, grid=grid, grid_name=grid_name, ca=ca, now_ms=now_ms)
    created = {
        "grid": grid,
        "name": grid_name,
        "ca_cert_pem": ca.cert_pem.decode(),
        "ca_key_sealed": authority.seal(own.secret, ca.key_pem),
    }
    added = {
        "server": server,
        "name": name,
        "grid_address": grid_address,
        "web_address": web_address,
        "version": version,
        "fingerprint": own.fingerprint,
    }
    commands: list[tuple[str, Mapping[str, Any]]] = [
        ("grid.create", created),
        ("server.add", added),
        ("server.up", {"server": server}),
        *extra_commands,
    ]
    pending = [{"id": new_id("cmd"), "type": word, "body": dict(body)} for word, body in commands]
    identity.write(data_dir, own, bootstrap=json.dumps(pending).encode())
    return own


async def propose_pending(grid: Grid, data_dir: Path) -> bool:
    """Put the first commands into the log if they are not there yet; True if there were any.

    Raises `Unavailable` or `OutcomeUnknown` while the log takes none: call it again.
    """
    path = identity.folder(data_dir) / BOOTSTRAP
    try:
        pending = json.loads(path.read_bytes())
    except FileNotFoundError:
        return False
    for command in pending:
        outcome = await grid.propose(
            command["type"], command["body"], by=grid.server, id=CommandId(command["id"]), timeout_s=30
        )
        if isinstance(outcome, Rejected):
            raise InvariantBroken(f"the new grid refused its own first {command['type']}: {outcome.detail}")
    path.unlink()
    logger.info("the grid is created", extra={"commands": len(pending)})
    return True


def _first_identity(
    server: ServerId, name: str, *, grid: str, grid_name: str, ca: KeyAndCertificate, now_ms: int
) -> Identity:
    key_pem = authority.new_key()
    request = authority.certificate_request(key_pem, server)
    return Identity(
        server=server,
        name=name,
        grid=grid,
        grid_name=grid_name,
        key_pem=key_pem,
        cert_pem=authority.sign_request(request, server, ca, now_ms=now_ms),
        ca_cert_pem=ca.cert_pem,
        secret=authority.new_secret(),
    )
