"""A guest's file systems held still around one moment, by its agent behind libvirt.

A freeze is bounded by a timer of its own, and noted in a file before it begins.
The note goes when the agent says that all goes on; while it is there, the guest
is not told to hold still again, and `thawing` asks on.
"""

import contextlib
import logging
import threading
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from kmgr.provision.stillness import UNKNOWN, Owed, Told, spell

try:
    import libvirt
    import libvirt_qemu
except ImportError:  # a server without libvirt still belongs to the grid
    libvirt = None

logger = logging.getLogger(__name__)

# A guest whose writes stand still for longer is noticed by its user.
FREEZE_S = 1.5
_FREEZE_ANSWER_S = 1
_THAW_ANSWER_S = 3
_FREEZE = '{"execute":"guest-fsfreeze-freeze"}'
_THAW = '{"execute":"guest-fsfreeze-thaw"}'
# Left Alt, SysRq and J, in Linux' own numbers, held down for so many ms.
_KEYS = (56, 99, 36)
_HELD_MS = 100


class Freeze:
    """The guest's file systems stand still inside, if its agent answers; at most `FREEZE_S`."""

    def __init__(self, domain: Any, mark: Path, *, now_ms: int) -> None:
        self._domain = domain
        self._mark = mark
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._frozen = False
        self._late = threading.Timer(FREEZE_S, self._end)
        self._late.daemon = True

    def __enter__(self) -> None:
        if self._mark.exists():
            return  # it has not let go since the last time: what it holds it holds, and no agent hears us
        self._mark.write_text(spell(Owed(self._now_ms, self._domain.ID())))
        self._late.start()
        try:
            libvirt_qemu.qemuAgentCommand(self._domain, _FREEZE, _FREEZE_ANSWER_S, 0)
        except libvirt.libvirtError as error:
            logger.debug("the guest was not frozen", extra={"cause": str(error)})
            unheard = error.get_error_code() == libvirt.VIR_ERR_AGENT_UNRESPONSIVE and not _connected(self._domain)
            if unheard or _refused(error):
                self._forget()  # it was never asked, or let all go again before it said why not
            return
        with self._lock:
            self._frozen = self._mark.exists()

    def __exit__(self, *_: object) -> None:
        if self._late.ident is not None:
            self._late.cancel()
            self._end()

    def holds(self) -> bool:
        """Tell whether it is still frozen."""
        with self._lock:
            return self._frozen

    def _end(self) -> None:
        with self._lock:
            if self._mark.exists():
                self._frozen = False
                if thaw(self._domain).thawed:
                    self._mark.unlink(missing_ok=True)

    def _forget(self) -> None:
        with self._lock:
            self._mark.unlink(missing_ok=True)


def thaw(domain: Any) -> Told:
    """Ask an agent once to let all go on; one that is not frozen says yes as well."""
    try:
        libvirt_qemu.qemuAgentCommand(domain, _THAW, _THAW_ANSWER_S, 0)
    except libvirt.libvirtError as error:
        logger.info("a guest did not say that its file systems go on", extra={"cause": str(error)})
        return Told(False, domain.ID(), writes(domain))
    return Told(True, domain.ID(), UNKNOWN)


def press(domain: Any) -> None:
    """Press the keys by which Linux lets all file systems go on."""
    domain.sendKey(libvirt.VIR_KEYCODE_SET_LINUX, _HELD_MS, list(_KEYS), len(_KEYS), 0)


def writes(domain: Any) -> int:
    """Return how often the guest wrote to its disk, if that can be told."""
    with contextlib.suppress(libvirt.libvirtError):
        return int(domain.blockStats("")[2])
    return UNKNOWN


def _refused(error: Any) -> bool:
    """Tell whether this is the agent's own answer: forbidden, or a file system that cannot be held."""
    return bool(error.get_error_code() == libvirt.VIR_ERR_INTERNAL_ERROR)


def _connected(domain: Any) -> bool:
    """Tell whether a guest agent has the channel open."""
    state = ET.fromstring(domain.XMLDesc(0)).find(".//channel/target[@name='org.qemu.guest_agent.0']")  # noqa: S314
    return state is not None and state.get("state") == "connected"
