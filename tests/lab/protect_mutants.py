"""Wrong versions of how personal desktops are fenced, one rule missing in each: what the walk must notice."""

from collections.abc import Callable, Collection, Mapping, Sequence

import pytest

from kmgr.balancer import agent
from kmgr.balancer.fencing import Fencing
from kmgr.errors import KmgrError
from kmgr.grid.model import Server
from kmgr.ids import ServerId
from kmgr.provision import copy_commands
from kmgr.provision.lease import LEASE_S, Lease
from kmgr.provision.tenure import Tenure

Mutation = Callable[[pytest.MonkeyPatch], None]


def _lawless(patch: pytest.MonkeyPatch) -> None:
    """A server goes on without a lease."""
    patch.setattr(Lease, "holds", lambda *_: True)
    patch.setattr(Lease, "run", _endless)


def _impatient(patch: pytest.MonkeyPatch) -> None:
    """Nobody waits until the leases of a lost server have ended."""
    fenced = Fencing.fenced

    def at_once(
        self: Fencing, servers: Sequence[Server], now: float, tenures: Collection[ServerId] = ()
    ) -> frozenset[ServerId]:
        self._wait_s = 0.0
        return fenced(self, servers, now, tenures)

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


def _overruled(patch: pytest.MonkeyPatch) -> None:
    """Whoever has a majority takes over what a server may run without one."""
    patch.setattr(copy_commands, "tenure_of", lambda *_: "")
    patch.setattr(agent, "tenures", lambda _: frozenset())


def _clinging(patch: pytest.MonkeyPatch) -> None:
    """What was given back is used on."""
    had: set[int] = set()

    def lasts(self: Tenure) -> bool:
        if self._mine:
            had.add(id(self))
        return id(self) in had

    patch.setattr(Tenure, "lasts", lasts)


def _hasty(patch: pytest.MonkeyPatch) -> None:
    """Two voters are enough: nothing is asked of the log."""

    def lasts(self: Tenure) -> bool:
        return len(self._grid.status().voters) == 2

    patch.setattr(Tenure, "lasts", lasts)
    patch.setattr(Tenure, "run", _idle)


async def _idle(self: Tenure) -> None:
    while True:
        await self._clock.sleep(1)


async def _endless(self: Lease) -> None:
    self._told(float("inf"))
    while True:
        await self._clock.sleep(1)


MUTANTS: Mapping[str, Mutation] = {
    "lawless": _lawless,
    "impatient": _impatient,
    "credulous": _credulous,
}

# What is noticed where a third vote comes.
OF_TWO: Mapping[str, Mutation] = {"overruled": _overruled, "clinging": _clinging, "hasty": _hasty}
