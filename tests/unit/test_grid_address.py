"""Who holds the grid address, and what is done to the network for it, on a network that only remembers."""

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from kmgr.clock import ManualClock
from kmgr.errors import Refused
from kmgr.grid import standing
from kmgr.grid.address import Card, check_address, holder, interface_for, should_hold
from kmgr.grid.floating import HOLD_S, PATIENCE_S, FloatingAddress
from kmgr.grid.local import LocalGrid
from kmgr.grid.model import GridStatus
from kmgr.grid.schema import SCHEMA
from kmgr.ids import ServerId
from tests.lab.raft_lab import eventually

A, B = ServerId("srv-a"), ServerId("srv-b")
ADDRESS = "192.0.2.5/24"
CARD = Card("eth0", "02:00:00:00:00:01", ipaddress.IPv4Interface("192.0.2.1/24"))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("192.0.2.5", "prefix length"), ("192.0.2.5/33", "cannot be"), ("2001:db8::1/64", "IPv4"), (5, "cannot be"),
        ("127.0.0.1/8", "reached"), ("224.0.0.1/24", "reached"), ("0.0.0.0/0", "reached"),
        ("192.0.2.0/24", "network itself"), ("192.0.2.255/24", "broadcast"), ("one/24", "cannot be"),
    ],
)  # fmt: skip
def test_what_cannot_be_the_grid_address_is_refused_with_the_reason(text: object, word: str) -> None:
    with pytest.raises(Refused, match="grid_address_ip") as caught:
        check_address(text)
    assert word in caught.value.message


def test_good_addresses() -> None:
    assert check_address("") == ""
    assert check_address(ADDRESS) == ADDRESS
    assert check_address("192.0.2.4/31") == "192.0.2.4/31"


@pytest.mark.parametrize(
    ("leads", "majority", "island", "held"),
    [(True, True, False, True), (True, False, False, False), (False, True, False, False), (True, False, True, True)],
)
def test_the_leader_holds_it_while_it_has_a_majority_and_an_island_alone(
    leads: bool, majority: bool, island: bool, held: bool
) -> None:
    assert should_hold(ADDRESS, leads=leads, majority=majority, island=island) is held
    assert not should_hold("", leads=leads, majority=majority, island=island)


def test_the_interface_is_the_one_in_its_network_or_the_configured_one() -> None:
    other = Card("eth1", "02:00:00:00:00:02", ipaddress.IPv4Interface("198.51.100.1/24"))
    itself = Card("eth2", "02:00:00:00:00:03", ipaddress.IPv4Interface(ADDRESS))
    assert interface_for(ADDRESS, [other, itself, CARD]) == CARD
    assert interface_for(ADDRESS, [other, itself]) is None
    assert interface_for(ADDRESS, [CARD, other], wanted="eth1") == other
    assert interface_for(ADDRESS, [CARD], wanted="eth9") is None


def test_the_holder_is_who_says_so() -> None:
    assert holder({B: True, A: False}) == B
    assert holder({B: True, A: True}) == A
    assert holder({}) is None


class FakeNetwork:
    """Remembers what was asked of it; `other` answers probes, `error` is raised instead of taking."""

    def __init__(self) -> None:
        self.there: tuple[Card, ...] = (CARD,)
        self.held: set[str] = set()
        self.calls: list[str] = []
        self.other: str | None = None
        self.error: OSError | None = None

    def cards(self) -> tuple[Card, ...]:
        return self.there

    def take(self, address: ipaddress.IPv4Interface, interface: str, *, for_s: int) -> None:
        assert for_s == HOLD_S
        if self.error is not None:
            raise self.error
        self.calls.append("take")
        self.held.add(f"{address} {interface}")

    def drop(self, address: ipaddress.IPv4Interface, interface: str) -> None:
        self.calls.append("drop")
        self.held.discard(f"{address} {interface}")

    def probe(self, ip: ipaddress.IPv4Address, card: Card, *, wait_s: float) -> str | None:
        self.calls.append("probe")
        return self.other

    def announce(self, ip: ipaddress.IPv4Address, card: Card) -> None:
        self.calls.append("announce")


class Standing(LocalGrid):
    """A grid whose status a test may bend."""

    bent: dict[str, object] = {}  # noqa: RUF012 - replaced, never changed

    def status(self) -> GridStatus:
        return replace(super().status(), **self.bent)  # type: ignore[arg-type]


class Lab:
    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.grid = Standing(
            A, path=folder / "a.sqlite", appliers=standing.APPLIERS, schemas=(SCHEMA,), clock=self.clock
        )
        self.network = FakeNetwork()
        self.names: list[str] = []
        self.floating = FloatingAddress(self.grid, self.network, clock=self.clock, interface="", named=self._named)

    async def _named(self, address: str) -> None:
        self.names.append(address)

    async def choose(self, address: str) -> None:
        await self.grid.propose("grid.address", {"address": address}, by="test")

    async def step(self, after_s: float = 0.6) -> None:
        await self.clock.advance(after_s)
        await self.floating.step()

    @property
    def problems(self) -> str:
        return " ".join(self.floating.vitals()["problems"])


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.grid.close()


async def test_it_is_asked_for_taken_told_and_renewed(lab: Lab) -> None:
    await lab.step()
    assert lab.network.calls == []
    await lab.choose(ADDRESS)
    await lab.step()
    assert lab.network.calls == ["probe", "take", "announce"]
    assert lab.names == [ADDRESS]
    assert lab.floating.vitals()["extra"] == {"holds_grid_address": True}
    await lab.step(0.1)
    assert lab.network.calls[3:] == []
    await lab.step()
    assert lab.network.calls[3:] == ["take"]
    for _ in range(10):
        await lab.step()
    assert lab.network.calls[3:].count("announce") == 1


async def test_it_is_dropped_with_the_majority_with_the_lead_and_with_its_interface(lab: Lab) -> None:
    await lab.choose(ADDRESS)
    ways: list[dict[str, object]] = [{"majority": False}, {"leader": B}, {"leader": None, "majority": False}]
    for bent in ways:
        lab.grid.bent = {}
        await lab.step()
        assert lab.network.held
        lab.grid.bent = bent
        await lab.step(0.1)
        assert not lab.network.held
    lab.grid.bent = {}
    await lab.step()
    lab.network.there = ()
    await lab.step()
    assert not lab.network.held
    await lab.step()
    assert "no interface of this server" in lab.problems


async def test_another_address_replaces_it_and_none_ends_it(lab: Lab) -> None:
    await lab.choose(ADDRESS)
    await lab.step()
    await lab.choose("192.0.2.6/24")
    await lab.step()
    assert lab.network.held == {"192.0.2.6/24 eth0"}
    await lab.choose("")
    await lab.step()
    assert not lab.network.held
    assert lab.names == [ADDRESS, "192.0.2.6/24", ""]


async def test_what_somebody_else_has_is_waited_for_and_then_told(lab: Lab) -> None:
    await lab.choose(ADDRESS)
    lab.network.other = "02:00:00:00:00:99"
    await lab.step()
    assert not lab.problems
    await lab.step(PATIENCE_S + 0.1)
    assert "02:00:00:00:00:99 answers for it" in lab.problems
    assert "take" not in lab.network.calls
    lab.network.other = None
    await lab.step()
    assert lab.network.held
    assert not lab.problems


async def test_an_island_lets_go_as_soon_as_somebody_else_answers(lab: Lab) -> None:
    await lab.choose(ADDRESS)
    lab.grid.bent = {"majority": False, "island": True}
    await lab.step()
    assert lab.network.held
    lab.network.other = "02:00:00:00:00:99"
    await lab.step(2.5)
    assert not lab.network.held


async def test_without_the_right_to_it_the_reason_and_the_cure_are_told(lab: Lab) -> None:
    await lab.choose(ADDRESS)
    lab.network.error = PermissionError(1, "Operation not permitted")
    await lab.step()
    assert "CAP_NET_ADMIN and CAP_NET_RAW" in lab.problems
    lab.network.error = OSError(19, "No such device")
    await lab.step()
    assert "No such device" in lab.problems


async def test_cancelled_it_lets_go(lab: Lab) -> None:
    await lab.choose(ADDRESS)
    task = asyncio.create_task(lab.floating.run())
    await eventually(lambda: lab.network.held)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not lab.network.held
