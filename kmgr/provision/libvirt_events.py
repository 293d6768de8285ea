"""libvirt's events as `Happening`s, on a connection of their own.

libvirt calls back on whatever thread runs its event loop; that is one daemon thread
of this process, begun before the first connection that is to have events. What it
says is handed to the asyncio loop and told once, however often it happened meanwhile.

The connection may break (libvirtd was restarted) or hang: keep-alive finds out, and
the iterator ends with `Unavailable`. Whoever listens begins anew.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

from kmgr.errors import Unavailable
from kmgr.ids import DesktopId
from kmgr.provision import domainxml
from kmgr.provision.happening import Events, Happening, What
from kmgr.provision.timely import Timely

try:
    import libvirt
except ImportError:  # a server without libvirt still belongs to the grid
    libvirt = None

logger = logging.getLogger(__name__)

DEADLINE_S = 30.0
# A connection that did not answer so many of these questions is broken.
_KEEP_ALIVE_S, _KEEP_ALIVES = 5, 3
# More different things than this at once are told as "look at everything".
_MOST_WAITING = 4096
_PREFIX = domainxml.domain_name(DesktopId(""))
_ADVICE = "Is libvirtd well (systemctl status libvirtd)? kmgr tries again by itself."

_pump_lock = threading.Lock()
_pumping = False


def events(uri: str, *, deadline_s: float = DEADLINE_S) -> Events | None:
    """Return the events of a libvirt address, None where there is no libvirt."""
    return LibvirtEvents(uri, deadline_s=deadline_s) if uri and libvirt is not None else None


class LibvirtEvents:
    """The events of one libvirt address; one listener at a time."""

    def __init__(self, uri: str, *, deadline_s: float = DEADLINE_S) -> None:
        self._uri = uri
        self._timely = Timely("libvirt", deadline_s=deadline_s, advice=_ADVICE)
        self._connection: Any = None

    async def happenings(self) -> AsyncIterator[Happening]:
        """Yield what happens until the connection breaks."""
        mailbox = _Mailbox(asyncio.get_running_loop())
        await self.close()
        self._connection = connection = await self._timely.call(lambda: _listen(self._uri, mailbox))
        try:
            yield Happening(What.LISTENING)
            while True:
                for happening in await mailbox.take():
                    yield happening
        finally:
            mailbox.close()
            if self._connection is connection:
                await self.close()

    async def close(self) -> None:
        """Close the connection, if it lets us."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Unavailable):
                await self._timely.call(lambda: _close(connection))


class _Mailbox:
    """What libvirt's thread has said and nobody has taken yet: things that are alike are told once, reboots each."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._waiting: list[Happening] = []
        self._known: set[Happening] = set()
        self._broken = ""
        self._filled = asyncio.Event()
        self._closed = False

    def put(self, happening: Happening) -> None:
        """Put something in; from any thread."""
        with self._lock:
            if self._closed or (happening in self._known and happening.what is not What.REBOOTED):
                return
            if len(self._waiting) >= _MOST_WAITING:
                happening = Happening(What.CHANGED)
                if happening in self._known:
                    return
            self._waiting.append(happening)
            self._known.add(happening)
        self._ring()

    def end(self, why: str) -> None:
        """Say that nothing follows; from any thread."""
        with self._lock:
            self._broken = why
        self._ring()

    def close(self) -> None:
        """Nobody takes anything out any more."""
        with self._lock:
            self._closed = True

    async def take(self) -> list[Happening]:
        """Return what came in as soon as something has; raise `Unavailable` at the end."""
        await self._filled.wait()
        self._filled.clear()
        with self._lock:
            taken, self._waiting = self._waiting, []
            self._known.clear()
            if self._broken and not taken:
                raise Unavailable(f"the connection to libvirt broke off: {self._broken}")
            if self._broken:
                self._filled.set()
        return taken

    def _ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended in the meantime
            self._loop.call_soon_threadsafe(self._filled.set)


def _listen(uri: str, mailbox: _Mailbox) -> Any:
    _pump()
    try:
        connection = libvirt.open(uri)
        connection.registerCloseCallback(lambda _connection, reason, _: mailbox.end(_CLOSED.get(reason, "")), None)
        with contextlib.suppress(libvirt.libvirtError):  # drivers without a wire need none
            connection.setKeepAlive(_KEEP_ALIVE_S, _KEEP_ALIVES)
        for event, what in _events():
            connection.domainEventRegisterAny(None, event, _caller(mailbox, what), None)
    except libvirt.libvirtError as error:
        raise Unavailable(f"libvirt is not answering: {error.get_error_message() or error}. {_ADVICE}") from error
    return connection


_CLOSED = {
    0: "an error on the wire",
    1: "libvirtd went",
    2: "it did not answer for some time",
    3: "kmgr let go of it",
}


def _events() -> tuple[tuple[int, What], ...]:
    return (
        (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, What.CHANGED),
        (libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, What.REBOOTED),
        (libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, What.ANSWERS),
    )


def _caller(mailbox: _Mailbox, what: What) -> Callable[..., None]:
    def tell(_connection: Any, domain: Any, *_: Any) -> None:
        name = domain.name()
        if name.startswith(_PREFIX):
            mailbox.put(Happening(what, DesktopId(name.removeprefix(_PREFIX))))

    return tell


def _close(connection: Any) -> None:
    with contextlib.suppress(libvirt.libvirtError):
        connection.unregisterCloseCallback()
    with contextlib.suppress(libvirt.libvirtError):
        connection.close()


def _pump() -> None:
    """Begin to run libvirt's event loop, once per process."""
    global _pumping  # noqa: PLW0603 - libvirt has one per process as well
    with _pump_lock:
        if _pumping:
            return
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_run_pump, name="libvirt-events", daemon=True).start()
        _pumping = True


def _run_pump() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError as error:
            logger.warning("libvirt's event loop stumbled", extra={"cause": str(error)})
