"""All packages' tables and appliers, put together: what the log means in this version."""

from collections.abc import Mapping

import kmgr.grid.commands
import kmgr.grid.standing
import kmgr.grid.zone
import kmgr.provision.ask_commands
import kmgr.provision.attendance_commands
import kmgr.provision.capture_commands
import kmgr.provision.commands
import kmgr.provision.copy_commands
import kmgr.provision.drain_commands
import kmgr.provision.island
import kmgr.provision.move_commands
import kmgr.provision.put_back_commands
import kmgr.provision.quota_commands
import kmgr.provision.tenure_commands
import kmgr.provision.version_commands
import kmgr.replica.commands
import kmgr.templates.commands
import kmgr.templates.install_commands
import kmgr.templates.version_commands
import kmgr.users.commands
import kmgr.users.island
from kmgr.grid.fsm import Applier
from kmgr.grid.schema import SCHEMA as GRID
from kmgr.grid.settle import SETTLE, IslandRules, settling
from kmgr.provision.schema import SCHEMA as PROVISION
from kmgr.replica.schema import SCHEMA as REPLICA
from kmgr.templates.schema import SCHEMA as TEMPLATES
from kmgr.users.schema import SCHEMA as USERS

SCHEMAS: tuple[str, ...] = (GRID, REPLICA, TEMPLATES, PROVISION, USERS)

# What a server that is cut off from the majority may do by itself.
ISLAND: IslandRules = {**kmgr.provision.island.ISLAND, **kmgr.users.island.ISLAND}

APPLIERS: Mapping[str, Applier] = {
    **kmgr.grid.commands.APPLIERS,
    **kmgr.grid.standing.APPLIERS,
    **kmgr.grid.zone.APPLIERS,
    **kmgr.replica.commands.APPLIERS,
    **kmgr.templates.commands.APPLIERS,
    **kmgr.templates.version_commands.APPLIERS,
    **kmgr.templates.install_commands.APPLIERS,
    **kmgr.provision.commands.APPLIERS,
    **kmgr.provision.ask_commands.APPLIERS,
    **kmgr.provision.capture_commands.APPLIERS,
    **kmgr.provision.attendance_commands.APPLIERS,
    **kmgr.provision.copy_commands.APPLIERS,
    **kmgr.provision.put_back_commands.APPLIERS,
    **kmgr.provision.quota_commands.APPLIERS,
    **kmgr.provision.tenure_commands.APPLIERS,
    **kmgr.provision.version_commands.APPLIERS,
    **kmgr.provision.move_commands.APPLIERS,
    **kmgr.provision.drain_commands.APPLIERS,
    **kmgr.users.commands.APPLIERS,
    SETTLE: settling(ISLAND),
}
