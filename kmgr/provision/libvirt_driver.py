"""libvirt behind the `Hypervisor` protocol. Of the files that import libvirt, the one that owns the connections.

libvirt-python blocks, so every call runs on a thread with a deadline (`timely`).
A connection that broke (libvirtd was restarted) is made anew, and the call is
tried again: all of them may be done twice. If that fails as well, `Unavailable`
says why and nothing is concluded about domains.
"""

import contextlib
import functools
import hashlib
import io
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from kmgr.errors import NotFound, Refused, Unavailable
from kmgr.ids import DesktopId
from kmgr.provision import domainxml, libvirt_warm
from kmgr.provision.guest import FLOODS, returned
from kmgr.provision.hypervisor import DomainSpec, DomainState, DomainStatus, Hypervisor, NoHypervisor
from kmgr.provision.timely import Timely

try:
    import libvirt
    import libvirt_qemu
except ImportError:  # a server without libvirt still belongs to the grid
    libvirt = None

logger = logging.getLogger(__name__)

T = TypeVar("T")

DEADLINE_S = 30.0
AGENT_S = 3
# Saving and loading memory takes as long as the disk needs for it.
_MEMORY_S = 600.0
_AGENTS = "libvirt, asked for guests that run here,"
# libvirtd takes five calls of one connection at a time; the others would wait there, unseen.
_AGENTS_AT_ONCE = 4
_PROCESSOR = Path("/proc/cpuinfo")
_PING = '{"execute":"guest-ping"}'
# screendump of a large screen; more is not a picture.
_MOST_PICTURE = 16 << 20


def connect(uri: str, *, grid: str, deadline_s: float = DEADLINE_S) -> Hypervisor:
    """Return the driver for a libvirt address, or the reason why this server has none."""
    if not uri:
        return NoHypervisor("This server runs no desktops: libvirt_uri in its kmgr.toml is empty.")
    if libvirt is None:
        return NoHypervisor(
            "This server cannot run desktops: the Python package libvirt-python is missing. "
            "Install libvirt and kmgr[desktops], then restart kmgr."
        )
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    return LibvirtDriver(uri, grid=grid, deadline_s=deadline_s)


class LibvirtDriver:
    """One libvirt, over two connections that are opened when they are first needed; `open` opens one."""

    def __init__(
        self, uri: str, *, grid: str, deadline_s: float = DEADLINE_S, open: Callable[[str], Any] | None = None
    ) -> None:
        self._grid = grid
        self._line = _Line(uri, open)
        self._timely = Timely("libvirt", deadline_s=deadline_s, advice=_LOOK)
        self._patient = Timely("libvirt", deadline_s=max(deadline_s, _MEMORY_S), advice=_LOOK)
        # Guests that hang keep whoever asks them waiting: they get threads and a connection of their own, of which
        # libvirtd serves a few calls at a time, so that nobody else stands in that queue.
        self._agents_line = _Line(uri, open)
        self._agents = Timely(_AGENTS, deadline_s=deadline_s, advice=_LOOK, at_once=_AGENTS_AT_ONCE)

    async def domains(self) -> Sequence[DomainStatus]:
        """Return this grid's domains, by desktop."""

        def look(connection: Any) -> list[DomainStatus]:
            found = []
            for domain in connection.listAllDomains():
                status = self._status(domain)
                if status is not None:
                    found.append(status)
            return sorted(found, key=lambda status: status.desktop)

        return tuple(await self._call(look))

    async def define(self, spec: DomainSpec) -> None:
        """Define the domain; one of an older generation is removed first."""

        def define(connection: Any) -> None:
            domain = _lookup(connection, spec.desktop)
            if domain is not None:
                known = domainxml.ours(domain.XMLDesc(0), grid=self._grid)
                if known is None:
                    raise Refused(_NOT_OURS.format(domain.name()))
                if known[1] == spec.generation and domain.isPersistent():
                    return
                if known[1] == spec.generation:  # restored from memory a moment ago: it stays, from now on
                    connection.defineXML(domainxml.render(spec))
                    return
                _undefine(domain)
            connection.defineXML(domainxml.render(spec))

        await self._call(define)

    async def redefine(self, spec: DomainSpec) -> None:
        """Change the domain's definition; one that runs goes on with its former one."""

        def redefine(connection: Any) -> None:
            self._one(connection, spec.desktop)  # ours, and there
            connection.defineXML(domainxml.render(spec))

        await self._call(redefine)

    async def start(self, desktop: DesktopId) -> None:
        """Start or resume the domain."""

        def start(connection: Any) -> None:
            domain = self._one(connection, desktop)
            try:
                _set_going(domain)
            except libvirt.libvirtError:
                # Somebody else may have started it at the same moment: that is all we want.
                if _state(domain.state()[0]) is not DomainState.RUNNING:
                    raise

        await self._call(start)

    async def suspend(self, desktop: DesktopId) -> None:
        """Halt the domain if it runs."""

        def halt(connection: Any) -> None:
            domain = self._find(connection, desktop)
            if domain is None or _state(domain.state()[0]) is not DomainState.RUNNING:
                return
            try:
                domain.suspend()
            except libvirt.libvirtError:
                # It may have gone off, or been halted, at the same moment.
                if _state(domain.state()[0]) is DomainState.RUNNING:
                    raise

        await self._call(halt)

    async def shut_down(self, desktop: DesktopId) -> None:
        """Have libvirt ask: the agent if it is connected, else the power button."""

        def ask(connection: Any) -> None:
            domain = self._find(connection, desktop)
            if domain is None or _state(domain.state()[0]) is not DomainState.RUNNING:
                return
            try:
                domain.shutdown()
            except libvirt.libvirtError:
                # It may have gone off, or been halted, at the same moment.
                if _state(domain.state()[0]) is DomainState.RUNNING:
                    raise

        await self._call_guest(ask)  # an agent that does not say what comes of it keeps libvirt waiting for a minute

    async def remove(self, desktop: DesktopId) -> None:
        """Destroy and undefine the domain, if it is ours."""

        def remove(connection: Any) -> None:
            # By its mark, not by its name: somebody may have renamed it.
            for domain in connection.listAllDomains():
                status = self._status(domain)
                if status is not None and status.desktop == desktop:
                    _undefine(domain)

        await self._call(remove)

    async def answers(self, desktop: DesktopId) -> bool:
        """Ping the guest agent."""

        def ping(connection: Any) -> bool:
            domain = self._find(connection, desktop)
            if domain is None or not domain.isActive():
                return False
            try:
                libvirt_qemu.qemuAgentCommand(domain, _PING, AGENT_S, 0)
            except libvirt.libvirtError as error:
                if _broken(error) and not _too_long(error):
                    raise
                return False  # no agent (yet), none in this driver, a domain that went: all of it is no answer
            return True

        return await self._call_guest(ping)

    async def agent(
        self, desktop: DesktopId, command: str, arguments: Mapping[str, Any], timeout_s: float
    ) -> Mapping[str, Any]:
        """Call the guest agent."""
        asked = json.dumps({"execute": command, **({"arguments": dict(arguments)} if arguments else {})})

        def call(connection: Any) -> Mapping[str, Any]:
            domain = self._one(connection, desktop)
            if _state(domain.state()[0]) is not DomainState.RUNNING:
                raise Unavailable("the guest agent does not answer: the desktop does not run")
            try:
                answer = libvirt_qemu.qemuAgentCommand(domain, asked, max(1, math.ceil(timeout_s)), 0)
            except libvirt.libvirtError as error:
                if _too_long(error):  # the answer is lost: asking again brings nothing
                    raise Refused(f"{FLOODS}: {_words(error)}") from error
                if _given_up(error):
                    raise Unavailable(f"{FLOODS}: {_words(error)}") from error
                if _no_agent(error):
                    raise Unavailable(f"the guest agent does not answer: {_words(error)}") from error
                raise
            return returned(answer)

        return await self._call_guest(call)

    async def hardware(self) -> str:
        """Return versions and processor."""

        def look(connection: Any) -> str:
            return f"{connection.getType()} {connection.getVersion()}, {connection.getInfo()[0]}, {_processor()}"

        return await self._call(look)

    async def save_warm(self, desktop: DesktopId, to: str) -> None:
        """Save the domain's memory, and forget it."""

        def save(connection: Any) -> None:
            domain = self._one(connection, desktop)
            libvirt_warm.save(domain, to)
            _undefine(domain)

        await self._patient.call(lambda: self._line.run(save))

    async def restore_warm(self, spec: DomainSpec, memory: str) -> None:
        """Restore a transient domain; one that is there already under this name is removed first."""

        def restore(connection: Any) -> None:
            domain = _lookup(connection, spec.desktop)
            if domain is not None:
                if self._status(domain) is None:
                    raise Refused(_NOT_OURS.format(domain.name()))
                _undefine(domain)
            libvirt_warm.restore(connection, spec, memory)

        await self._patient.call(lambda: self._line.run(restore))

    async def screenshot(self, desktop: DesktopId) -> bytes:
        """Return the screen as PNG."""

        def shoot(connection: Any) -> bytes:
            domain = self._one(connection, desktop)
            if not domain.isActive():
                raise Unavailable("the desktop is powered off")
            stream = connection.newStream()
            domain.screenshot(stream, 0)
            picture = io.BytesIO()

            def take(_stream: Any, data: bytes, _: Any) -> int:
                return picture.write(data) if picture.tell() < _MOST_PICTURE else -1

            stream.recvAll(take, None)
            stream.finish()
            return picture.getvalue()

        return await self._call(shoot)

    async def with_domain(self, desktop: DesktopId, work: Callable[[Any], T]) -> T:
        """Return what `work` makes of a desktop's domain, on a thread; raise `NotFound` if there is none."""
        return await self._call(lambda connection: work(self._one(connection, desktop)))

    async def with_connection(self, work: Callable[[Any], T]) -> T:
        """Return what `work` makes of the connection, on a thread; it may be called twice."""
        return await self._call(work)

    async def close(self) -> None:
        """Close the connections; domains run on."""
        for line, calls in ((self._line, self._timely), (self._agents_line, self._agents)):
            if line.is_open:
                with contextlib.suppress(Unavailable):
                    await calls.call(line.close)

    async def _call(self, work: Callable[[Any], T]) -> T:
        return await self._timely.call(lambda: self._line.run(work))

    async def _call_guest(self, work: Callable[[Any], T]) -> T:
        return await self._agents.call(lambda: self._agents_line.run(work))

    def _status(self, domain: Any) -> DomainStatus | None:
        try:
            xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
            known = domainxml.ours(xml, grid=self._grid)
            state = domain.state()[0]
            provisional = not domain.isPersistent()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None  # it went between being listed and being looked at
            raise
        if known is None:
            return None
        return DomainStatus(known[0], known[1], _state(state), domainxml.personal(xml), provisional, _edited(xml))

    def _find(self, connection: Any, desktop: DesktopId) -> Any:
        """Return a desktop's domain, or None; somebody else's of that name is none."""
        domain = _lookup(connection, desktop)
        return None if domain is None or self._status(domain) is None else domain

    def _one(self, connection: Any, desktop: DesktopId) -> Any:
        domain = self._find(connection, desktop)
        if domain is None:
            raise NotFound(f"there is no domain of desktop {desktop}")
        return domain


class _Line:
    """One connection, made anew when it broke. Its methods block; several threads may be in them."""

    def __init__(self, uri: str, open: Callable[[str], Any] | None) -> None:
        self._uri = uri
        self._opened = open or libvirt.open
        self._connection: Any = None

    @property
    def is_open(self) -> bool:
        """Tell whether it has a connection."""
        return self._connection is not None

    def run(self, work: Callable[[Any], T]) -> T:
        """Return what `work` makes of the connection; on a broken one it is called again with another."""
        known = self._connection
        if known is not None and _alive(known):
            try:
                return self._translated(work, known)
            except _Broken as error:
                logger.info("the connection to libvirt broke, it is made anew", extra={"cause": error.message})
        return self._translated(work, self._open())

    def close(self) -> None:
        """Close it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            _close(connection)

    def _open(self) -> Any:
        try:
            # Two threads may do this at once: the later one's is kept, the other closes itself.
            self._connection = opened = self._opened(self._uri)
        except libvirt.libvirtError as error:
            self._connection = None
            raise Unavailable(
                f"libvirt is not answering: {_words(error)}. Start libvirtd (systemctl start libvirtd); "
                "kmgr tries again by itself."
            ) from error
        return opened

    def _translated(self, work: Callable[[Any], T], connection: Any) -> T:
        try:
            return work(connection)
        except libvirt.libvirtError as error:
            if _broken(error) or not _alive(connection):
                if self._connection is connection:
                    self._connection = None
                raise _Broken(f"libvirt is not answering: {_words(error)}") from error
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                raise NotFound("the domain is gone") from error
            raise Refused(_words(error)) from error


# The same definition is looked at again and again.
_edited = functools.lru_cache(maxsize=1024)(domainxml.edited)


class _Broken(Unavailable):
    """The connection is of no use any more: another one may do."""


_NOT_OURS = "a domain named {} exists that is not kmgr's: rename or remove it"
_LOOK = "Is libvirtd well (systemctl status libvirtd)? kmgr tries again by itself."


def _broken(error: Any) -> bool:
    if error.get_error_code() in (libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_RPC, libvirt.VIR_ERR_INVALID_CONN):
        return True
    # Whatever goes wrong on the wire itself; a missing disk is a "system error" too, from another part of libvirt.
    return bool(error.get_error_domain() in (libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE))


def _no_agent(error: Any) -> bool:
    return error.get_error_code() in (
        libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
        libvirt.VIR_ERR_AGENT_UNSYNCED,
        libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
        libvirt.VIR_ERR_NO_SUPPORT,
    )


def _too_long(error: Any) -> bool:
    """Tell whether a guest's answer is larger than libvirt passes on (4 MiB): it calls that an error of the wire."""
    return error.get_error_code() == libvirt.VIR_ERR_RPC and "encode message payload" in _words(error)


def _given_up(error: Any) -> bool:
    """Tell whether libvirt listens to an agent no more: it sent nonsense, or 10 MiB that are no answer."""
    return any(words in _words(error) for words in ("not available due to an error", "No complete agent response"))


def _processor() -> str:
    # Memory saved on one processor may not run on another: its features are part of what was saved.
    with _PROCESSOR.open() as told:
        lines = [line.partition(":")[2].strip() for line in told if line.startswith(("model name", "flags"))]
    return hashlib.sha256("\n".join(sorted(set(lines))).encode()).hexdigest()[:16]


def _set_going(domain: Any) -> None:
    state = domain.state()[0]
    if state == libvirt.VIR_DOMAIN_PAUSED:
        domain.resume()
    elif state == libvirt.VIR_DOMAIN_PMSUSPENDED:
        domain.pMWakeup()
    elif _state(state) is DomainState.OFF:
        domain.create()


def _state(state: int) -> DomainState:
    # One that is shutting down cannot be started yet: it counts as running until it is off.
    if state in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED, libvirt.VIR_DOMAIN_SHUTDOWN):
        return DomainState.RUNNING
    if state in (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PMSUSPENDED):
        return DomainState.PAUSED
    return DomainState.OFF


def _lookup(connection: Any, desktop: DesktopId) -> Any:
    try:
        return connection.lookupByName(domainxml.domain_name(desktop))
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _undefine(domain: Any) -> None:
    for step in (domain.destroy, lambda: _forget(domain)):
        try:
            step()
        except libvirt.libvirtError as error:
            if error.get_error_code() not in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN):
                raise


def _forget(domain: Any) -> None:
    saved = libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    # Firmware variables are files of ours, which go with the disk; unless told so libvirt keeps the domain.
    more = libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
    try:
        # The points that copies of its disk are counted from belong to the domain: libvirt keeps it for their sake.
        domain.undefineFlags(saved | more)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_INVALID_ARG:
            raise
        domain.undefineFlags(saved)  # a driver that knows no checkpoints


def _alive(connection: Any) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _close(connection: Any) -> None:
    try:
        connection.close()
    except libvirt.libvirtError as error:
        logger.debug("closing libvirt", extra={"cause": _words(error)})


def _words(error: Any) -> str:
    return str(error.get_error_message() or error).strip()
