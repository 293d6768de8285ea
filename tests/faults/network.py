"""Servers' networks: a namespace for each place a server may stand, and one with the switch between them.

Faults are iptables drops where packets arrive (so one direction alone can fail,
or some of the packets) and a rate limit on the wire. Names begin with `kmgr-faults`
and this process's id; `close()` removes what `open()` made. Needs root.
"""

import asyncio
import itertools
import os
import random
from collections.abc import Iterable

from tests.faults.relay import Relay

PORT = 8440
_RATE = "10gbit"


class Network:
    """`size` places at one switch, numbered from 0."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._base = f"kmgr-faults-{os.getpid()}"
        self._switch = f"{self._base}-switch"
        self._blocked: set[tuple[int, int]] = set()
        self._lossy: dict[int, float] = {}
        self._relays: dict[int, Relay] = {}
        self._dice = random.Random(size)  # noqa: S311 - an imitation of a wire

    def namespace(self, place: int) -> str:
        """Return the name of a place's namespace."""
        return f"{self._base}-{place}"

    def address(self, place: int) -> str:
        """Return a place's address."""
        return f"10.203.0.{place + 1}"

    def inside(self, place: int, *words: str) -> list[str]:
        """Return the command that runs `words` at a place."""
        return ["nsenter", f"--net=/run/netns/{self.namespace(place)}", *words]

    async def open(self) -> None:
        """Make the namespaces, the switch and the wires."""
        await run("ip", "netns", "add", self._switch)
        await run("ip", "-n", self._switch, "link", "add", "switch", "type", "bridge")
        await run("ip", "-n", self._switch, "link", "set", "switch", "up")
        for place in range(self.size):
            space, plug = self.namespace(place), f"plug{place}"
            await run("ip", "netns", "add", space)
            await run(
                "ip", "-n", self._switch, "link", "add", plug, "type", "veth", "peer", "name", "eth0", "netns", space
            )
            await run("ip", "-n", self._switch, "link", "set", plug, "master", "switch", "up")
            await run("ip", "-n", space, "link", "set", "lo", "up")
            await run("ip", "-n", space, "addr", "add", f"{self.address(place)}/24", "dev", "eth0")
            await run("ip", "-n", space, "link", "set", "eth0", "up")

    async def close(self) -> None:
        """Remove everything."""
        for relay in self._relays.values():
            relay.close()
        self._relays.clear()
        for space in (self._switch, *map(self.namespace, range(self.size))):
            await run("ip", "netns", "del", space, check=False)

    async def block(self, ways: Iterable[tuple[int, int]]) -> None:
        """Let nothing through on these ways (from, to)."""
        fresh = set(ways) - self._blocked
        self._blocked |= fresh
        await self._set_rules({target for _, target in fresh})

    async def unblock(self, ways: Iterable[tuple[int, int]]) -> None:
        """Let packets through again on these ways."""
        gone = set(ways) & self._blocked
        self._blocked -= gone
        await self._set_rules({target for _, target in gone})

    async def lose(self, place: int, share: float) -> None:
        """Lose this share of the packets that arrive at a place."""
        self._lossy[place] = share
        await self._set_rules({place})

    async def slow(self, place: int, kbit: int | None) -> None:
        """Limit a place's wire to a rate in both directions; None takes the limit away."""
        for space, wire in ((self.namespace(place), "eth0"), (self._switch, f"plug{place}")):
            if kbit is None:
                await run("tc", "-n", space, "qdisc", "del", "dev", wire, "root", check=False)
                continue
            await run(
                "tc", "-n", space, "qdisc", "replace", "dev", wire, "root", "handle", "1:", "htb", "default", "1"
            )
            shape = ("htb", "rate", f"{kbit}kbit", "burst", "16k", "quantum", "3000")
            await run("tc", "-n", space, "class", "replace", "dev", wire, "parent", "1:", "classid", "1:1", *shape)
            await run(
                "tc",
                "-n",
                space,
                "qdisc",
                "replace",
                "dev",
                wire,
                "parent",
                "1:1",
                "handle",
                "10:",
                "pfifo",
                "limit",
                "60",
            )

    async def far(self, place: int, delay_s: float, jitter_s: float) -> None:
        """Keep all packets of a place on their way for so long in each direction, and up to `jitter_s` longer."""
        if place in self._relays:
            self._relays[place].delay(delay_s, jitter_s)
            return
        near, far, side = f"near{place}", f"far{place}", f"side{place}"
        relay = self._relays[place] = Relay(self._switch, near, far, self._dice)
        relay.delay(delay_s, jitter_s)
        link = ("ip", "-n", self._switch, "link")
        await run(*link, "add", side, "type", "bridge")
        await run(*link, "set", side, "up")
        await run(*link, "set", near, "master", side, "up")
        await run(*link, "set", far, "master", "switch", "up")
        await run(*link, "set", f"plug{place}", "master", side)

    async def near(self, place: int) -> None:
        """Plug a place into the switch again."""
        relay = self._relays.pop(place, None)
        if relay is not None:
            await run("ip", "-n", self._switch, "link", "set", f"plug{place}", "master", "switch")
            await run("ip", "-n", self._switch, "link", "del", f"side{place}")
            relay.close()

    async def heal(self) -> None:
        """Let everything through everywhere."""
        self._blocked.clear()
        self._lossy.clear()
        await self._set_rules(set(range(self.size)))
        for place in range(self.size):
            await self.slow(place, None)
            await self.near(place)

    async def _set_rules(self, places: set[int]) -> None:
        for place in sorted(places):
            rules = [
                f"-A INPUT -s {self.address(source)} -j DROP"
                for source, target in sorted(self._blocked)
                if target == place
            ]
            share = self._lossy.get(place, 0.0)
            if share:
                rules.append(f"-A INPUT -i eth0 -m statistic --mode random --probability {share:.3f} -j DROP")
            text = "\n".join(["*filter", ":INPUT ACCEPT [0:0]", *rules, "COMMIT", ""])
            await run(*self.inside(place, "iptables-restore", "-w", "5"), text=text)


def both(one: Iterable[int], other: Iterable[int]) -> set[tuple[int, int]]:
    """Return the ways between two groups, in both directions."""
    pairs = set(itertools.product(one, other))
    return pairs | {(target, source) for source, target in pairs}


async def run(*words: str, text: str = "", check: bool = True) -> None:
    """Run a command; raise with what it said if it fails."""
    process = await asyncio.create_subprocess_exec(
        *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate(text.encode())
    if check and process.returncode:
        raise RuntimeError(f"{' '.join(words)}: {said.decode(errors='replace').strip()}")
