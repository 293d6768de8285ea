"""A demonstration's grid whose servers stand at a switch of their own: their daemons' wires can be cut.

Each daemon runs in a network namespace; libvirt and its guests do not, so whoever looks at all hypervisors sees them
through any cut, and so does the console of each server from this machine's own place at the switch. Needs root.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from appliance.demo.cluster import Cluster
from appliance.demo.server import Place, Server
from tests.lab.links import Links, run

WEB_PORT, GRID_PORT = 443, 8440
_OWN = 200


class Wires(Links):
    """Places at a switch, this machine's own among them, and drops of packets where they arrive."""

    def __enter__(self) -> "Wires":
        """Make all of it."""
        super().__enter__()
        return self

    def cut_between(self, one: int, others: Iterable[int]) -> None:
        """Let nothing through between a place and others, in either direction."""
        for other in others:
            for here, there in ((one, other), (other, one)):
                self._rule(here, "-A", "INPUT", "-s", self.address(there), "-j", "DROP")

    def mend_all(self) -> None:
        """Let everything through again."""
        for place in range(self.size):
            self._rule(place, "-F", "INPUT")

    def _rule(self, place: int, *words: str) -> None:
        run(*self.inside(place, ("iptables", "-w", "5", *words)))

    def _open(self) -> None:
        super()._open()
        own = f"kmgr-w{os.getpid()}"
        run("ip", "link", "add", own, "type", "veth", "peer", "name", "console", "netns", self._switch)
        run("ip", "-n", self._switch, "link", "set", "console", "master", "switch", "up")
        run("ip", "addr", "add", f"{self.address(_OWN - 1)}/24", "dev", own)
        run("ip", "link", "set", own, "up")


class WiredServer(Server):
    """A server whose daemon runs at a place."""

    def at(self, wires: Wires, place: int) -> "WiredServer":
        """Give it its place."""
        self.prefix = tuple(wires.inside(place, ()))
        return self


class WiredCluster(Cluster):
    """A grid of servers at places, in their order."""

    def __init__(self, folder: Path, wires: Wires, *, grid: str) -> None:
        super().__init__(folder, grid=grid)
        self.wires = wires
        self.servers = [
            WiredServer(one.folder, one.name, accelerator=one.accelerator).at(wires, place)
            for place, one in enumerate(self.servers)
        ]

    def _places(self) -> dict[str, Place]:
        hosts = {server.name: self.wires.address(place) for place, server in enumerate(self.servers)}
        return {name: Place(host, WEB_PORT, GRID_PORT) for name, host in hosts.items()}
