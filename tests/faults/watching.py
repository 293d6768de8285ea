"""Looks at all hypervisors at once, many times a second: does a desktop ever run on two of them?

What is seen is seen one after the other, a few milliseconds apart. So two that run count only if both are seen
running again right after: one that was halted before the other was started is not.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import libvirt

from appliance.demo.server import Server

EVERY_S = 0.1

Look = Callable[[], bool]


class Watcher(threading.Thread):
    """Watches until told to stop; `looks` tell, by server, whether the desktop runs there now."""

    def __init__(self, looks: Mapping[str, Look]) -> None:
        super().__init__(daemon=True)
        self._looks = looks
        self.ended = threading.Event()
        self.times = 0
        self.alone = 0
        self.twice: list[tuple[str, ...]] = []

    def run(self) -> None:
        """Look again and again."""
        while not self.ended.wait(EVERY_S):
            self.look()

    def look(self) -> None:
        """Look once; note who runs it if there are two."""
        self.times += 1
        found = self._running(self._looks)
        if len(found) > 1:
            found = self._running(found)
        self.alone += len(found) == 1
        if len(found) > 1:
            self.twice.append(found)

    def _running(self, names: "Mapping[str, Look] | tuple[str, ...]") -> tuple[str, ...]:
        return tuple(name for name in names if self._looks[name]())


class Eye:
    """Tells whether a domain runs on a server's libvirt, whatever its daemon is cut off from; a dead one runs none.

    libvirt's own complaints that there is none now are not printed.
    """

    def __init__(self, server: Server, domain: str) -> None:
        assert server.libvirt is not None
        self._uri = server.libvirt.uri
        self._domain = domain
        self._connection: Any = None
        libvirt.registerErrorHandler(lambda *_: None, None)

    def __call__(self) -> bool:
        """Look."""
        try:
            if self._connection is None:
                self._connection = libvirt.openReadOnly(self._uri)
            state, _ = self._connection.lookupByName(self._domain).state()
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                self._connection = None
            return False
        return bool(state == libvirt.VIR_DOMAIN_RUNNING)
