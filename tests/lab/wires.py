"""Servers with certificates of one grid, for tests on loopback."""

from pathlib import Path

from kmgr.grid import authority, identity
from kmgr.grid.contacts import Contacts
from kmgr.grid.identity import Identity
from kmgr.grid.wire import GridPort
from kmgr.ids import ServerId

NOW = 1_700_000_000_000


class Wires:
    """Hands out identities signed by one CA and ports that know each other's addresses."""

    def __init__(self, folder: Path, name: str = "office") -> None:
        self.folder = folder
        self.name = name
        self.ca = authority.create_ca(name, now_ms=NOW)
        self.addresses: dict[ServerId, str] = {}
        self.removed: frozenset[ServerId] = frozenset()
        self.leaving: frozenset[ServerId] = frozenset()
        self.ports: list[GridPort] = []

    def identity(self, server: ServerId) -> Identity:
        """Sign a new server in and write its identity folder."""
        key = authority.new_key()
        request = authority.certificate_request(key, server)
        cert = authority.sign_request(request, server, self.ca, now_ms=NOW)
        own = Identity(server, server[4:], "grid-1", self.name, key, cert, self.ca.cert_pem, b"s" * 32)
        identity.write(self.folder / server, own)
        return own

    def port(self, server: ServerId) -> GridPort:
        """Return a port that is not listening yet."""
        port = GridPort(self.identity(server), self.folder / server, contacts=self.contacts)
        self.ports.append(port)
        return port

    async def start(self, port: GridPort) -> None:
        """Listen on a free port and tell everybody the address."""
        await port.start("127.0.0.1", 0)
        self.addresses[port.server] = f"127.0.0.1:{port.port}"

    def contacts(self) -> Contacts:
        """Return what every server knows about the others."""
        return Contacts(dict(self.addresses), {s: s[4:] for s in self.addresses}, self.removed, self.leaving)

    async def stop(self) -> None:
        """Stop all ports."""
        for port in self.ports:
            await port.stop()
