"""A whole server in the fault lab: all that `kmgr run` runs but libvirt, with the lab's registers beside its state.

`python -m tests.faults.daemon FOLDER SETUP`, orders and troubles as for `tests.faults.server`. Pages, agents,
balancer, island, control socket and grid address run as on any server; there are no desktops.
"""

import asyncio
import json
import sqlite3
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop

from kmgr import log, registry
from kmgr.cli.outcome import exit_status
from kmgr.config import Config
from kmgr.errors import ConfigError, KmgrError
from kmgr.grid import authority, identity
from kmgr.grid.contacts import split_address
from kmgr.grid.identity import BOOTSTRAP, Identity
from tests.faults import registers
from tests.faults.child import obey, say
from tests.faults.server import TIMING, JumpingClock, LabServer, SlowDisk

# Before anything takes them from there.
registry.APPLIERS = {**registry.APPLIERS, **registers.APPLIERS}
registry.SCHEMAS = (*registry.SCHEMAS, registers.SCHEMA)

from kmgr.daemon import trunk  # noqa: E402 - see above
from kmgr.daemon.member import Member  # noqa: E402
from kmgr.daemon.supervise import Loops  # noqa: E402
from kmgr.grid.raft.grid import RaftGrid  # noqa: E402

WEB_PORT = 443


class WholeServer(LabServer):
    """The daemon, and the lab's orders to it."""

    def __init__(self, folder: Path, setup: Mapping[str, Any]) -> None:
        self._setup = setup
        self._own = _prepared(folder, setup)
        host, port = split_address(setup["address"])
        self._config = Config(
            data_dir=folder,
            name=self._own.name,
            web_host=host,
            web_port=WEB_PORT,
            grid_host=host,
            grid_port=port,
            libvirt_uri="",
            mdns=False,
        )
        self.clock, self.disk = JumpingClock(), SlowDisk(setup["seed"])
        self.disk.install()

    async def run(self) -> None:
        """Start, serve, and stop when standard input ends, or when this server has to."""
        loops, stop = Loops(self.clock), asyncio.Event()
        async with AsyncExitStack() as stack:
            member = Member(self._config, self._own, clock=self.clock, loops=loops)
            self.grid = member._trunk.grid
            await member.start(stack)
            obeying = asyncio.create_task(obey(self.do))
            obeying.add_done_callback(lambda _: stop.set())
            await loops.until(stop)
            obeying.cancel()


def _prepared(folder: Path, setup: Mapping[str, Any]) -> Identity:
    own = identity.load(folder)
    assert own is not None
    if not own.peers:
        own = identity.remember_peers(folder, own, setup["hints"])
    place = identity.folder(folder)
    if setup["founder"] and not (folder / "raft").exists() and not (place / BOOTSTRAP).exists():
        # Its key only signs certificates, which nobody asks for here.
        sealed = authority.seal(own.secret, authority.new_key())
        body = {"grid": own.grid, "name": own.grid_name, "ca_cert_pem": own.ca_cert_pem.decode()}
        first = {"id": "cmd-lab-first", "type": "grid.create", "body": {**body, "ca_key_sealed": sealed}}
        identity.atomic_write(place / BOOTSTRAP, json.dumps([first]).encode())
    return own


def main() -> None:
    """Run the server that the command line names."""
    log.set_up("info")
    setup = json.loads(sys.argv[2])
    timing = replace(TIMING, compact_entries=setup["compact"])

    def quick(*args: Any, **more: Any) -> RaftGrid:
        return RaftGrid(*args, **{**more, "timing": timing})

    vars(trunk)["RaftGrid"] = quick
    try:
        uvloop.run(WholeServer(Path(sys.argv[1]), setup).run())
    except ConfigError as error:
        say({"refused": error.message})
        sys.exit(exit_status(error))
    except (KmgrError, OSError, sqlite3.Error) as error:
        # `kmgr run` says so in one line and is started again by systemd.
        say({"fatal": str(error)})
        sys.exit(70)


if __name__ == "__main__":
    main()
