"""All servers get other addresses at once: with the old ones kept for a moment they find each other."""

import re
from collections.abc import Callable

from appliance.demo.cluster import Cluster
from tests.lab import grids
from tests.lab.api import wait_for


def test_all_servers_move_at_once_and_keep_their_old_addresses_for_a_moment(
    make_grid: Callable[..., Cluster],
) -> None:
    grid = make_grid("moved", names=("one", "two", "three"), desktops=False, more={"grid_host": "0.0.0.0"})  # noqa: S104
    grid.start()
    grids.caught_up(grid.servers)
    for server in grid.servers:
        server.stop_daemon()
        settings = server.data / "kmgr.toml"
        # On loopback every machine has all addresses: the old one is there as well.
        text = settings.read_text()
        moved = re.sub(r'(grid_address = ")127\.0\.0\.1:', r"\g<1>127.0.0.9:", text)
        assert moved != text
        settings.write_text(moved)
    for server in grid.servers:
        server.start()
    boss = grids.admin(grid, grid.servers[0])

    def all_new() -> bool:
        return all(one["grid_address"].startswith("127.0.0.9:") for one in boss.items("servers"))

    wait_for("the new addresses are in the log", all_new, timeout_s=60)
    wait_for("all are up", lambda: set(grids.states(boss).values()) == {"up"}, timeout_s=60)
    grids.caught_up(grid.servers)
