"""Whom the wire may speak to, and where: read from the state, helped out by what was known at the join.

A certificate of the grid CA is made only after the log took its server in, and
rows of removed servers stay for good. So a certified server that this copy of
the state has never heard of is newer than the copy: it is let in, or a server
that slept through a join could never be told about it. A removed one is not;
only its frames of the log pass until its vote has ended, a moment later: a leader
that was removed could not hand over otherwise.

Pure.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from kmgr.grid.model import Server, ServerState
from kmgr.ids import ServerId


@dataclass(frozen=True, slots=True)
class Contacts:
    """Addresses (`host:port`) and names of the other servers, and who is no longer welcome."""

    addresses: Mapping[ServerId, str]
    names: Mapping[ServerId, str] = field(default_factory=dict)
    removed: frozenset[ServerId] = frozenset()
    leaving: frozenset[ServerId] = frozenset()

    def admits(self, server: ServerId, *, log: bool = False) -> bool:
        """Tell whether a server with a certificate of this grid may use the grid port, or just speak of the `log`."""
        return server not in self.removed or (log and server in self.leaving)

    def described(self, server: ServerId) -> str:
        """Return name and address for messages to people."""
        address = self.addresses.get(server, "address unknown")
        return f"{self.names.get(server, server)} ({address})"


def contacts(servers: Sequence[Server], hints: Mapping[ServerId, str], voters: Collection[ServerId] = ()) -> Contacts:
    """Merge the servers table (removed ones included) with addresses known before the first entry arrived."""
    members = {server.id: server for server in servers if server.state is not ServerState.REMOVED}
    removed = frozenset(server.id for server in servers) - frozenset(members)
    addresses = {server: address for server, address in hints.items() if server not in removed}
    leaving = removed & frozenset(voters)
    known = {server.id: server for server in servers if server.id in members or server.id in leaving}
    addresses |= {server.id: server.grid_address for server in known.values()}
    names = {server.id: server.name for server in known.values()}
    return Contacts(addresses=addresses, names=names, removed=removed, leaving=leaving)


def hosts(known: Contacts) -> frozenset[str]:
    """Return the hosts of all addresses, as the system spells them."""
    return frozenset(_spelled(address) for address in known.addresses.values())


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port` or `[v6]:port`; raise ValueError with the reason."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is not of the form host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _spelled(address: str) -> str:
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return str(ip_address(host))
    except ValueError:
        return host
