"""What this server could not restore desktops from: how often that was found, and from when it may be tried again.

Rule 1: each failure doubles the wait (`warm.again_s`).
Rule 2: after `warm.MOST_TRIES` of them a key is not tried any more: another version, other hardware or another kmgr
makes it begin anew, and so does an administrator who says so.
Rule 3: once a desktop was restored, what failed before is forgotten.

Kept in a small file, so that a restart of the daemon does not begin to try again.
"""

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from kmgr import __version__
from kmgr.clock import Clock
from kmgr.provision.timely import Blocking
from kmgr.provision.warm import MOST_TRIES, Key, again_s

logger = logging.getLogger(__name__)

_FILE = "clones.json"
# Keys of versions that are long gone are of no use: so many are remembered, the newest ones.
_MOST_KEPT = 100
_STOPPED = "{}. It was tried {} times and is not tried any more until its version, its shape or this server changes"


@dataclass(frozen=True, slots=True)
class Failed:
    """How often a key failed, why the last time, and until when (monotonic) it is left alone."""

    failures: int
    why: str
    until: float


class Tries:
    """The failures of one server's saved memories."""

    def __init__(self, data_dir: Path, *, clock: Clock, blocking: Blocking) -> None:
        self._file = data_dir / "run" / _FILE
        self._clock = clock
        self._blocking = blocking
        self._failed: dict[Key, Failed] = {}

    async def load(self) -> None:
        """Read what is known from an earlier life of this daemon; what waits begins to wait anew."""
        now = self._clock.monotonic()
        for key, (failures, why) in (await self._blocking(lambda: _read(self._file))).items():
            self._failed[key] = Failed(failures, why, now + again_s(failures))

    @property
    def doubted(self) -> frozenset[Key]:
        """The keys whose last try failed: nobody waits for another one."""
        return frozenset(self._failed)

    def rests(self, key: Key) -> bool:
        """Tell whether a key is not to be tried now."""
        known = self._failed.get(key)
        return known is not None and self._clock.monotonic() < known.until

    def stopped(self, key: Key) -> bool:
        """Tell whether it is not tried any more by itself."""
        return key in self._failed and self._failed[key].failures >= MOST_TRIES

    def why(self, key: Key) -> str:
        """Say why desktops of a key boot by themselves; empty if nothing failed."""
        known = self._failed.get(key)
        if known is None:
            return ""
        return _STOPPED.format(known.why.rstrip("."), known.failures) if self.stopped(key) else known.why

    async def failed(self, key: Key, why: str) -> None:
        """Note a failure."""
        before = self._failed.pop(key, None)
        failures = 1 + (before.failures if before is not None else 0)
        self._failed[key] = Failed(failures, why, self._clock.monotonic() + again_s(failures))
        told = {"key": key, "cause": why, "failures": failures}
        logger.warning("desktops boot by themselves: none can be restored", extra=told)
        await self._keep()

    async def forget(self, keys: Collection[Key]) -> None:
        """Let these be tried again, as if nothing had failed."""
        known = self._failed.keys() & set(keys)
        for key in known:
            del self._failed[key]
        if known:
            await self._keep()

    async def _keep(self) -> None:
        told = {key: [one.failures, one.why] for key, one in list(self._failed.items())[-_MOST_KEPT:]}
        await self._blocking(lambda: _write(self._file, told))


def _read(file: Path) -> Mapping[Key, tuple[int, str]]:
    try:
        told = json.loads(file.read_text())
        if told["kmgr"] != __version__:
            return {}
        return {str(key): (max(1, int(failures)), str(why)) for key, (failures, why) in told["failed"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # then it is tried a few times more than needed


def _write(file: Path, told: Mapping[Key, list[object]]) -> None:
    try:
        file.write_text(json.dumps({"kmgr": __version__, "failed": told}))
    except OSError as error:
        logger.warning("which desktops cannot be restored is not remembered", extra={"cause": str(error)})
