"""The grid port: one TLS listener for everything that servers say to each other.

* What a connection is for is its ALPN word: Raft frames, requests, or a join.
* Except for a join, the other end must show a certificate of the grid CA, and
  its server must not have been removed; not one byte is parsed before that.
* The first words of both ends are greetings (`fence`): servers of different
  epochs or protocols part again, each knowing why.
* `refresh()` cuts the connections of servers that were removed meanwhile; a
  removed server that calls is told so, and stops acting.
* A peer that is slow with its handshake or talks rubbish is cut off, and named
  in the log once.

Runs in the daemon's loop.
"""

import asyncio
import contextlib
import errno
import logging
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from weakref import WeakSet

from kmgr import __version__
from kmgr.errors import ConfigError, Unavailable
from kmgr.grid import authority, fence, identity
from kmgr.grid.contacts import Contacts, split_address
from kmgr.grid.fence import REMOVED, Adopt, Fenced, Greeting, Refuse
from kmgr.grid.gate import HANDSHAKE_S, Gate
from kmgr.grid.identity import Identity
from kmgr.ids import ServerId

logger = logging.getLogger(__name__)

RAFT = "kmgr-raft/1"
CALL = "kmgr-call/1"
JOIN = "kmgr-join/1"

# How long the console shows that a stranger was turned away.
SHOWN_S = 60.0
_MOST_SHOWN = 5
# Bytes buffered per direction of a connection; large, or image blocks are copied in many small steps.
BUFFER = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Connection:
    """One verified connection. `server` is None only for a newcomer that wants to join."""

    server: ServerId | None
    remote: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    greeting: Greeting | None = None

    @property
    def peer(self) -> ServerId:
        """Return the other server's id where a certificate was demanded."""
        assert self.server is not None  # noqa: S101 - the port admitted it by its certificate
        return self.server

    def cut(self) -> None:
        """End the connection at once; what is still buffered is lost."""
        _abort(self.writer)


Handler: TypeAlias = Callable[[Connection], Awaitable[None]]


class Guardian:
    """What the port asks about this server's own standing; the daemon's one knows the log."""

    def greeting(self) -> Greeting:
        """Return what this server says about itself."""
        return Greeting(__version__)

    async def adopt(self, epoch: int) -> None:
        """Take over the epoch of the grid before anything of its log arrives."""

    def fenced(self, words: str) -> None:
        """Hear that the grid went on without this server."""


class GridPort:
    """Listens on the grid port and dials other servers' ones; knows who is at the other end."""

    def __init__(
        self,
        own: Identity,
        data_dir: Path,
        *,
        contacts: Callable[[], Contacts],
        guardian: Guardian | None = None,
    ) -> None:
        self.server = own.server
        self.contacts = contacts
        self.guardian = guardian or Guardian()
        place = identity.folder(data_dir)
        self._files = files = (place / "server.crt", place / "server.key")
        self._listening = authority.server_context(*files, own.ca_cert_pem, alpn=[RAFT, CALL, JOIN])
        self._dialling = {
            word: authority.client_context(*files, own.ca_cert_pem, alpn=[word]) for word in (RAFT, CALL)
        }
        self.certificate_der = self._shown_certificate()
        self._handlers: dict[str, Handler] = {}
        # Weak: a stream belongs to whoever opened it; what nobody holds any more needs no cutting.
        self._connections: dict[tuple[ServerId, str], WeakSet[asyncio.StreamWriter]] = {}
        self._gate = Gate(self._listening, limit=BUFFER, inside=self._welcome, turned_away=self.complain)
        self._complained: set[str] = set()
        self._refused_by: dict[ServerId, str] = {}
        self._strangers: dict[str, tuple[float, str]] = {}

    def handle(self, alpn: str, handler: Handler) -> None:
        """Give connections of this kind to `handler`; they are closed when it returns."""
        self._handlers[alpn] = handler

    async def start(self, host: str, port: int) -> None:
        """Listen; raise `ConfigError` if the port cannot be had."""
        try:
            await self._gate.open(host, port)
        except OSError as error:
            raise ConfigError(_why_not_listening(host, port, error)) from error
        logger.info("the grid port is open", extra={"host": host, "port": self.port})

    @property
    def port(self) -> int:
        """Return the port number that it listens on."""
        return self._gate.port

    async def stop(self) -> None:
        """Stop listening, cut every connection, and wait until their handlers have ended."""
        for server, word in list(self._connections):
            self._cut(server, word)
        await self._gate.close()

    def problems(self) -> list[str]:
        """Return, for the console, who refuses this server and who was turned away lately."""
        known, now = self.contacts(), time.monotonic()
        self._strangers = {who: said for who, said in self._strangers.items() if now - said[0] < SHOWN_S}
        refused = [f"server {known.described(s)} refuses this one: {why}" for s, why in self._refused_by.items()]
        return refused + [f"grid port: {who.strip()} was cut off: {why}" for who, (_, why) in self._strangers.items()]

    def refresh(self) -> None:
        """Cut the connections of servers that may no longer use the grid port."""
        known = self.contacts()
        for server, word in list(self._connections):
            if not known.admits(server, log=word == RAFT):
                logger.info("connections of a removed server are cut", extra={"server": server, "kind": word})
                self._cut(server, word)
        self._refused_by = {server: why for server, why in self._refused_by.items() if known.admits(server)}

    def reload(self) -> None:
        """Show the certificate that lies in `identity/` now; connections that stand keep the old one."""
        for context in (self._listening, *self._dialling.values()):
            context.load_cert_chain(*self._files)
        self.certificate_der = self._shown_certificate()

    async def dial(self, server: ServerId, alpn: str, *, timeout_s: float = HANDSHAKE_S) -> Connection:
        """Connect to a server and make sure that it is the one; raise `Unavailable` otherwise."""
        known = self.contacts()
        address = known.addresses.get(server)
        if address is None:
            raise Unavailable(f"server {known.described(server)} cannot be reached: the grid has no address for it")
        try:
            host, port = split_address(address)
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_connection(
                    host, port, ssl=self._dialling[alpn], limit=BUFFER, ssl_handshake_timeout=HANDSHAKE_S
                )
                return await self._greeted(server, alpn, address, reader, writer)
        except (OSError, EOFError, ValueError) as error:
            raise Unavailable(f"server {known.described(server)} cannot be reached: {_reason(error)}") from error

    async def _greeted(
        self, server: ServerId, word: str, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Connection:
        """Exchange greetings on a connection that this server dialled."""
        described, good = self.contacts().described(server), False
        try:
            found = authority.peer_of(_tls(writer))
            if found != server:
                raise Unavailable(f"server {described} cannot be reached: {found} answers at its address")
            own = self.guardian.greeting()
            writer.write(fence.spell(own))
            other = await _greeting(reader)
            match fence.judge(own, other):
                case Fenced(words):
                    self.guardian.fenced(words)
                    raise Unavailable(f"server {described} refuses this one: {words}", code="fenced")
                case _ if other.refused is not None:
                    self._refused_by[server] = other.refused[1]
                    if other.refused[0] == REMOVED:
                        self.guardian.fenced(other.refused[1])
                    raise Unavailable(
                        f"server {described} refuses this one: {other.refused[1]}", code=other.refused[0]
                    )
                case Refuse(code, words):
                    raise Unavailable(f"server {described} was refused: {words}", code=code)
                case Adopt(epoch):
                    await self.guardian.adopt(epoch)
            good = True
        finally:
            if not good:
                _abort(writer)
        self._refused_by.pop(server, None)
        connection = Connection(server, address, reader, writer, other)
        writer.transport.set_write_buffer_limits(high=BUFFER)
        self._note(connection, word)
        return connection

    def complain(self, remote: str, cause: str) -> None:
        """Log what is wrong with a peer, once until it behaves, and show it on the console for a minute."""
        if remote in self._strangers or len(self._strangers) < _MOST_SHOWN:
            self._strangers[remote] = (time.monotonic(), cause)
        if remote not in self._complained and len(self._complained) < 1000:
            self._complained.add(remote)
            logger.warning("a connection to the grid port was cut", extra={"remote": remote, "cause": cause})

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        remote = str((writer.get_extra_info("peername") or ("unknown",))[0])
        word = _tls(writer).selected_alpn_protocol()
        server = authority.peer_of(_tls(writer))
        try:
            connection = await self._admitted(word, server, remote, reader, writer)
            if connection is not None:
                writer.transport.set_write_buffer_limits(high=BUFFER)
                self._note(connection, word or "")
                await self._handlers[word or ""](connection)
        except (OSError, EOFError, ValueError) as error:
            # An end in the middle is how connections of killed servers look; only rubbish is worth a line.
            if isinstance(error, ValueError):
                self.complain(f"{remote} {server or ''}", str(error))
            _abort(writer)
        finally:
            writer.close()

    async def _admitted(
        self,
        word: str | None,
        server: ServerId | None,
        remote: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> Connection | None:
        """Return the connection if the other end may use it; otherwise tell it why, if it is one of ours."""
        why = self._why_not(word, server)
        if why is not None:
            self.complain(remote, why)
            _abort(writer)
            return None
        if word == JOIN:
            return Connection(None, remote, reader, writer)
        own = self.guardian.greeting()
        known = self.contacts()
        if server is not None and not known.admits(server, log=word == RAFT):
            refusal = fence.leaving() if server in known.leaving else Refuse(REMOVED, fence.removed())
            self._send_away(writer, f"{remote} {server}", own, refusal)
            return None
        async with asyncio.timeout(HANDSHAKE_S):
            other = await _greeting(reader)
        match fence.judge(own, other):
            case Fenced(words):
                writer.write(fence.spell(own))
                self.guardian.fenced(words)
                return None
            case Refuse() as refusal:
                self._send_away(writer, f"{remote} {server}", own, refusal)
                return None
            case Adopt(epoch):
                await self.guardian.adopt(epoch)
        writer.write(fence.spell(own))
        return Connection(server, remote, reader, writer, other)

    def _send_away(self, writer: asyncio.StreamWriter, who: str, own: Greeting, refusal: Refuse) -> None:
        self.complain(who, f"it was refused, because {refusal.words}")
        writer.write(fence.spell(fence.refusing(own, refusal)))

    def _shown_certificate(self) -> bytes:
        return ssl.PEM_cert_to_DER_cert(self._files[0].read_text())

    def _note(self, connection: Connection, word: str) -> None:
        if connection.server is not None:
            self._connections.setdefault((connection.server, word), WeakSet()).add(connection.writer)

    def _cut(self, server: ServerId, word: str) -> None:
        for writer in list(self._connections.pop((server, word), ())):
            _abort(writer)

    def _why_not(self, word: str | None, server: ServerId | None) -> str | None:
        if word not in self._handlers:
            return f"nothing is offered under {word!r}"
        if word == JOIN:
            return None
        if server is None:
            return "it showed no certificate of this grid"
        if server == self.server:
            return "it showed this server's own certificate: was the data folder copied?"
        return None


async def _greeting(reader: asyncio.StreamReader) -> Greeting:
    size = int.from_bytes(await reader.readexactly(4))
    if size > fence.MOST_BYTES:
        raise ValueError("its first words are no greeting: it may run another version of kmgr")
    return fence.read(await reader.readexactly(size))


def _tls(writer: asyncio.StreamWriter) -> ssl.SSLObject:
    found: ssl.SSLObject = writer.get_extra_info("ssl_object")
    return found


def _abort(writer: asyncio.StreamWriter) -> None:
    # Python 3.11's TLS transport stumbles over its own missing protocol when it had ended by itself before.
    with contextlib.suppress(AttributeError):
        writer.transport.abort()


def _reason(error: Exception) -> str:
    match error:
        case TimeoutError():
            return "it does not answer"
        case ConnectionRefusedError():
            return "nothing listens there (is kmgr running?)"
        case ssl.SSLError():
            return f"its certificate was refused ({error.reason or error})"
        case OSError(strerror=str(text)):
            return text
    return str(error) or type(error).__name__


def _why_not_listening(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"grid_port: port {port} is in use by another program. Find it with `ss -ltnp 'sport = :{port}'` and "
            "stop it, or set another grid_port"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return f"grid_host: {host} is not an address of this machine: correct grid_host"
    return f"the grid port {host}:{port} cannot be opened: {error.strerror or error}"
