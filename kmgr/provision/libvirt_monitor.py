"""QEMU's own monitor, through libvirt: for what libvirt has no words for. Blocks; called on the driver's threads."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from kmgr.errors import Refused

try:
    import libvirt
    import libvirt_qemu
except ImportError:  # a server without libvirt still belongs to the grid
    libvirt = None

_POLL_S = 0.003
_SOON_S = 20.0


def ask(domain: Any, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """Return QEMU's answer; raise `Refused` with its words if it refuses."""
    return _told(command, libvirt_qemu.qemuMonitorCommand(domain, _words(command, arguments), 0))


def attempt(domain: Any, command: str, arguments: Mapping[str, Any] | None = None) -> None:
    """Ask for something that may have been done already, or have become impossible."""
    try:
        ask(domain, command, arguments)
    except Refused:
        return


def lend(domain: Any, name: str, descriptor: int) -> None:
    """Give QEMU an open file or connection, by name."""
    words = _words("getfd", {"fdname": name})
    answer, _ = libvirt_qemu.qemuMonitorCommandWithFiles(domain, words, [descriptor], 0)
    _told("getfd", answer)


def soon(done: Callable[[], bool], what: str, *, limit_s: float = _SOON_S) -> None:
    """Wait for what usually takes milliseconds; raise `Refused` if it does not happen within the limit."""
    deadline = time.monotonic() + limit_s
    while not done():
        if time.monotonic() > deadline:
            raise Refused(f"{what} took longer than {limit_s:.0f} s")
        time.sleep(_POLL_S)


def _words(command: str, arguments: Mapping[str, Any] | None) -> str:
    return json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})


def _told(command: str, text: str) -> Any:
    answer = json.loads(text)
    if "error" in answer:
        raise Refused(f"QEMU refuses {command}: {answer['error'].get('desc', 'it does not say why')}")
    return answer["return"]
