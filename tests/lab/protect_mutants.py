"""Wrong versions of how personal desktops are fenced, one rule missing in each: what the walk must notice."""

from collections.abc import Callable, Mapping

import pytest

from kmgr.balancer.fencing import Fencing
from kmgr.errors import KmgrError
from kmgr.provision.lease import LEASE_S, Lease

Mutation = Callable[[pytest.MonkeyPatch], None]


def _lawless(patch: pytest.MonkeyPatch) -> None:
    """A server goes on without a lease."""
    patch.setattr(Lease, "holds", lambda *_: True)
    patch.setattr(Lease, "run", _endless)


def _impatient(patch: pytest.MonkeyPatch) -> None:
    """Nobody waits until the leases of a lost server have ended."""
    fenced = Fencing.fenced

    def at_once(self: Fencing, servers: object, now: float) -> frozenset[str]:
        self._wait_s = 0.0
        return fenced(self, servers, now)  # type: ignore[arg-type]

    patch.setattr(Fencing, "fenced", at_once)


def _credulous(patch: pytest.MonkeyPatch) -> None:
    """A lease is granted by whoever answers, without a look at what the log says of this server."""

    async def renew(self: Lease) -> bool:
        asked = self._clock.monotonic()
        try:
            await self._grid.barrier(2.0)
        except KmgrError:
            return False
        self._until = asked + LEASE_S
        self._told(self._until)
        return True

    patch.setattr(Lease, "renew", renew)


async def _endless(self: Lease) -> None:
    self._told(float("inf"))
    while True:
        await self._clock.sleep(1)


MUTANTS: Mapping[str, Mutation] = {
    "lawless": _lawless,
    "impatient": _impatient,
    "credulous": _credulous,
}
