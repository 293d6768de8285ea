"""Servers' links at a known rate: a network namespace for each place, one with the switch, HTB at both ends.

HTB, because a token bucket filter falls far short of its rate at 1 Gbit/s; a large quantum, because a small one costs
processor time for every packet. Names begin with `kmgr-links` and this process's id; `close()` removes what `open()`
made, and `open()` what a killed run left. Needs root.
"""

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

_NETNS = Path("/run/netns")
_NAME = re.compile(r"kmgr-links-(\d+)-")


class Links:
    """`size` places at one switch, numbered from 0, each with a link of `mbit` Mbit/s in either direction."""

    def __init__(self, size: int, *, mbit: int) -> None:
        self.size = size
        self.mbit = mbit
        self._base = f"kmgr-links-{os.getpid()}"
        self._switch = f"{self._base}-switch"

    def __enter__(self) -> "Links":
        """Make the namespaces, the switch and the links."""
        remove_left_over()
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def namespace(self, place: int) -> str:
        """Return the name of a place's namespace."""
        return f"{self._base}-{place}"

    def address(self, place: int) -> str:
        """Return a place's address."""
        return f"10.204.0.{place + 1}"

    def inside(self, place: int, words: Sequence[str]) -> list[str]:
        """Return the command that runs `words` at a place, in the process that is started."""
        return ["nsenter", f"--net={_NETNS / self.namespace(place)}", *words]

    def limit(self, place: int, mbit: int) -> None:
        """Give a place another rate in both directions."""
        for space, wire in ((self.namespace(place), "eth0"), (self._switch, f"plug{place}")):
            _shape(space, wire, mbit, "replace")

    def cut(self, place: int) -> None:
        """Pull a place's plug: what is under way is lost, nobody is told."""
        run("ip", "-n", self._switch, "link", "set", f"plug{place}", "down")

    def mend(self, place: int) -> None:
        """Put the plug in again."""
        run("ip", "-n", self._switch, "link", "set", f"plug{place}", "up")

    def close(self) -> None:
        """Remove everything; what is not there any more is no error."""
        for space in (*map(self.namespace, range(self.size)), self._switch):
            if (_NETNS / space).exists():
                run("ip", "netns", "del", space)

    def _open(self) -> None:
        run("ip", "netns", "add", self._switch)
        run("ip", "-n", self._switch, "link", "add", "switch", "type", "bridge")
        run("ip", "-n", self._switch, "link", "set", "switch", "up")
        for place in range(self.size):
            space, plug = self.namespace(place), f"plug{place}"
            run("ip", "netns", "add", space)
            run("ip", "-n", self._switch, "link", "add", plug, "type", "veth", "peer", "name", "eth0", "netns", space)
            run("ip", "-n", self._switch, "link", "set", plug, "master", "switch", "up")
            run("ip", "-n", space, "link", "set", "lo", "up")
            run("ip", "-n", space, "addr", "add", f"{self.address(place)}/24", "dev", "eth0")
            run("ip", "-n", space, "link", "set", "eth0", "up")
            for where, wire in ((space, "eth0"), (self._switch, plug)):
                run("tc", "-n", where, "qdisc", "add", "dev", wire, "root", "handle", "1:", "htb", "default", "1")
                _shape(where, wire, self.mbit, "add")


def _shape(space: str, wire: str, mbit: int, verb: str) -> None:
    shape = ("rate", f"{mbit}mbit", "ceil", f"{mbit}mbit", "burst", "2mb", "cburst", "2mb", "quantum", "60000")
    run("tc", "-n", space, "class", verb, "dev", wire, "parent", "1:", "classid", "1:1", "htb", *shape)


def remove_left_over() -> None:
    """Remove the namespaces of runs whose process is gone."""
    for file in _NETNS.glob("kmgr-links-*") if _NETNS.exists() else ():
        found = _NAME.match(file.name)
        if found and not Path("/proc", found[1]).exists():
            run("ip", "netns", "del", file.name)


def run(*words: str) -> str:
    """Run a command and return what it said; raise with that if it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
