"""What a hypervisor tells by itself: something happened to a domain. A reason to look, never a finding.

Events get lost (libvirtd was restarted, the daemon hung), so nothing is concluded
from one, and nothing depends on getting it: whoever listens looks at everything now
and then all the same, only less often. What is counted from them (reboots) may be
counted too low, never too high.

Pure: no I/O, no clock.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from kmgr.ids import DesktopId


class What(StrEnum):
    """What happened."""

    LISTENING = "listening"  # from now on events are told; what happened before is not known
    CHANGED = "changed"  # defined, started, halted, let go on, gone off, removed
    REBOOTED = "rebooted"
    ANSWERS = "answers"  # the guest agent came or went


@dataclass(frozen=True, slots=True)
class Happening:
    """Something happened to a desktop's domain (None: to the connection)."""

    what: What
    desktop: DesktopId | None = None


class Events(Protocol):
    """The events of this server's hypervisor."""

    def happenings(self) -> AsyncIterator[Happening]:
        """Yield LISTENING, then what happens, until the connection breaks: then raise `Unavailable`."""
        ...

    async def close(self) -> None:
        """Let go of the connection."""
        ...
