"""The grid port: one TLS listener for everything that servers say to each other.

* What a connection is for is its ALPN word: Raft frames, requests, or a join. The
  first get a `Line`, which the log's thread serves itself, the others streams.
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
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from weakref import WeakSet

from kmgr import __version__
from kmgr.errors import ConfigError, Unavailable
from kmgr.grid import authority, fence, identity, line
from kmgr.grid.contacts import Contacts, hosts, split_address
from kmgr.grid.ends import Ends, Streams, abort, greeting_of
from kmgr.grid.fence import REMOVED, Adopt, Fenced, Greeting, Refuse
from kmgr.grid.gate import HANDSHAKE_S, Gate
from kmgr.grid.identity import Identity
from kmgr.grid.line import Line
from kmgr.ids import ServerId

logger = logging.getLogger(__name__)

RAFT = "kmgr-raft/1"
CALL = "kmgr-call/1"
JOIN = "kmgr-join/1"

# How long the console shows that a stranger was turned away.
SHOWN_S = 60.0
_MOST_SHOWN = 5
# From so many addresses members may call without being in the table under them.
_MOST_PLACES = 1000
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
        abort(self.writer)


@dataclass(frozen=True, slots=True, eq=False)
class RaftConnection:
    """One verified connection for the log's frames."""

    server: ServerId
    line: Line


Handler: TypeAlias = Callable[[Connection], Awaitable[None]]
RaftHandler: TypeAlias = Callable[[RaftConnection], Awaitable[None]]


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
        self._raft: RaftHandler | None = None
        # Weak: a stream belongs to whoever opened it; what nobody holds any more needs no cutting.
        self._connections: dict[tuple[ServerId, str], WeakSet[asyncio.StreamWriter | Line]] = {}
        self._gate = Gate(
            self._listening,
            limit=BUFFER,
            line_word=RAFT,
            inside=self._welcome,
            inside_line=self._welcome_line,
            turned_away=self.complain,
            is_members=self._is_members,
        )
        self._complained: set[str] = set()
        self._refused_by: dict[ServerId, str] = {}
        self._strangers: dict[str, tuple[float, str]] = {}
        # Where members are by their addresses, of these contacts; and where some have called from.
        self._known: tuple[Contacts | None, frozenset[str]] = (None, frozenset())
        self._called_from: set[str] = set()

    def handle(self, alpn: str, handler: Handler) -> None:
        """Give connections of this kind to `handler`; they are closed when it returns."""
        self._handlers[alpn] = handler

    def handle_raft(self, handler: RaftHandler) -> None:
        """Give connections for the log's frames to `handler`; they are closed when it returns."""
        self._raft = handler

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
        with self._unreachable(server):
            async with asyncio.timeout(timeout_s):
                host, port = split_address(self._address(server))
                reader, writer = await asyncio.open_connection(
                    host, port, ssl=self._dialling[alpn], limit=BUFFER, ssl_handshake_timeout=HANDSHAKE_S
                )
                greeting = await self._greeted(server, Streams(reader, writer))
        writer.transport.set_write_buffer_limits(high=BUFFER)
        self._note(server, alpn, writer)
        return Connection(server, self._address(server), reader, writer, greeting)

    async def dial_raft(self, server: ServerId, *, timeout_s: float = HANDSHAKE_S) -> RaftConnection:
        """Connect to a server for the log's frames; the same errors as `dial`. Whoever gets the line closes it."""
        with self._unreachable(server):
            async with asyncio.timeout(timeout_s):
                dialled = await line.dial(*split_address(self._address(server)), self._dialling[RAFT])
                try:
                    await self._greeted(server, dialled)
                except BaseException:
                    dialled.close()
                    raise
        self._note(server, RAFT, dialled)
        return RaftConnection(server, dialled)

    def _is_members(self, remote: str) -> bool:
        """Whether a member is expected at, or has called from, this address."""
        known = self.contacts()
        if known is not self._known[0]:
            self._known = known, hosts(known)
        return remote in self._known[1] or remote in self._called_from

    def _address(self, server: ServerId) -> str:
        known = self.contacts()
        address = known.addresses.get(server)
        if address is None:
            raise Unavailable(f"server {known.described(server)} cannot be reached: the grid has no address for it")
        return address

    @contextlib.contextmanager
    def _unreachable(self, server: ServerId) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, ValueError) as error:
            described = self.contacts().described(server)
            raise Unavailable(f"server {described} cannot be reached: {_reason(error)}") from error

    async def _greeted(self, server: ServerId, ends: Ends) -> Greeting:
        """Exchange greetings on a connection that this server dialled."""
        described, good = self.contacts().described(server), False
        try:
            found = authority.peer_of(ends.tls)
            if found != server:
                raise Unavailable(f"server {described} cannot be reached: {found} answers at its address")
            own = self.guardian.greeting()
            ends.write(fence.spell(own))
            other = await greeting_of(ends)
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
                ends.cut()
        self._refused_by.pop(server, None)
        return other

    def complain(self, remote: str, cause: str) -> None:
        """Log what is wrong with a peer, once until it behaves, and show it on the console for a minute."""
        if remote in self._strangers or len(self._strangers) < _MOST_SHOWN:
            self._strangers[remote] = (time.monotonic(), cause)
        if remote not in self._complained and len(self._complained) < 1000:
            self._complained.add(remote)
            logger.warning("a connection to the grid port was cut", extra={"remote": remote, "cause": cause})

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        remote = str((writer.get_extra_info("peername") or ("unknown",))[0])
        ends = Streams(reader, writer)
        word, server = ends.tls.selected_alpn_protocol() or "", authority.peer_of(ends.tls)
        try:
            if (handler := self._handlers.get(word)) is None:
                self._turn_away(remote, f"nothing is offered under {word!r}", ends)
            elif word == JOIN:
                writer.transport.set_write_buffer_limits(high=BUFFER)
                await handler(Connection(None, remote, reader, writer))
            elif (found := await self._admitted(word, server, remote, ends)) is not None:
                server, greeting = found
                writer.transport.set_write_buffer_limits(high=BUFFER)
                self._note(server, word, writer)
                await handler(Connection(server, remote, reader, writer, greeting))
        except (OSError, EOFError, ValueError) as error:
            self._rubbish(f"{remote} {server or ''}", error)
            abort(writer)
        finally:
            writer.close()

    async def _welcome_line(self, connected: Line, remote: str) -> None:
        server = authority.peer_of(connected.tls)
        try:
            if self._raft is None or connected.tls.selected_alpn_protocol() != RAFT:
                self._turn_away(remote, f"nothing is offered under {RAFT!r}", connected)
            elif (found := await self._admitted(RAFT, server, remote, connected)) is not None:
                server, _ = found
                self._note(server, RAFT, connected)
                await self._raft(RaftConnection(server, connected))
            else:
                await connected.part()
        except (OSError, EOFError, ValueError) as error:
            self._rubbish(f"{remote} {server or ''}", error)
        finally:
            connected.close()

    async def _admitted(
        self, word: str, server: ServerId | None, remote: str, ends: Ends
    ) -> tuple[ServerId, Greeting] | None:
        """Return who the other end is if it may use the connection; one of ours is told why not."""
        if server is None:
            self._turn_away(remote, "it showed no certificate of this grid", ends)
            return None
        if server == self.server:
            self._turn_away(remote, "it showed this server's own certificate: was the data folder copied?", ends)
            return None
        own = self.guardian.greeting()
        known = self.contacts()
        if not known.admits(server, log=word == RAFT):
            refusal = fence.leaving() if server in known.leaving else Refuse(REMOVED, fence.removed())
            self._send_away(ends, f"{remote} {server}", own, refusal)
            return None
        async with asyncio.timeout(HANDSHAKE_S):
            other = await greeting_of(ends)
        match fence.judge(own, other):
            case Fenced(words):
                ends.write(fence.spell(own))
                self.guardian.fenced(words)
                return None
            case Refuse() as refusal:
                self._send_away(ends, f"{remote} {server}", own, refusal)
                return None
            case Adopt(epoch):
                await self.guardian.adopt(epoch)
        ends.write(fence.spell(own))
        if len(self._called_from) < _MOST_PLACES:
            self._called_from.add(remote)
        return server, other

    def _turn_away(self, remote: str, why: str, ends: Ends) -> None:
        self.complain(remote, why)
        ends.cut()

    def _rubbish(self, who: str, error: Exception) -> None:
        # An end in the middle is how connections of killed servers look; only rubbish is worth a line.
        if isinstance(error, ValueError):
            self.complain(who, str(error))

    def _send_away(self, ends: Ends, who: str, own: Greeting, refusal: Refuse) -> None:
        self.complain(who, f"it was refused, because {refusal.words}")
        ends.write(fence.spell(fence.refusing(own, refusal)))

    def _shown_certificate(self) -> bytes:
        return ssl.PEM_cert_to_DER_cert(self._files[0].read_text())

    def _note(self, server: ServerId, word: str, ends: asyncio.StreamWriter | Line) -> None:
        self._connections.setdefault((server, word), WeakSet()).add(ends)

    def _cut(self, server: ServerId, word: str) -> None:
        for ends in list(self._connections.pop((server, word), ())):
            if isinstance(ends, Line):
                ends.cut()
            else:
                abort(ends)


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
