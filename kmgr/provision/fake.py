"""A hypervisor in memory, for tests, simulations and working on pages: it ships, and obeys the same contract.

Guests "boot" in `boot_s` of the given clock. `fail` maps a step (`define`,
`start`, `boot`) to the cause that every next desktop fails with; `down` is the
reason the hypervisor does not answer at all; `ignores` are the guests that do not
shut down when asked; `picture` is what every guest shows.
`save_warm` and `restore_warm` may fail too. `guest` is what happens in a guest
when its agent is called: `FakeGuest` does what is asked of it, as a Linux would.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kmgr.clock import Clock
from kmgr.errors import NotFound, Refused, Unavailable
from kmgr.ids import DesktopId
from kmgr.provision.hypervisor import DomainSpec, DomainState, DomainStatus

# The arguments of a shell that is only told a name.
_NAME_ONLY = 4
# The smallest PNG there is: one grey pixel.
_GREY = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c6360000000020001e221bc33"
    "0000000049454e44ae426082"
)


@dataclass(frozen=True, slots=True)
class _Domain:
    spec: DomainSpec
    state: DomainState
    started_at: float = 0.0
    provisional: bool = False
    boots: bool = True
    edited: str = ""


class FakeGuest:
    """Guest agents of Linux guests: `calls` is all that they were asked.

    `programs` are what the next ones print that are told a whole identity, not only a name. Without those a program
    that takes on an identity (`provision/identity.py`) reports just that.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[DesktopId, str, Mapping[str, Any]]] = []
        self.refuses: dict[str, str] = {}
        self.programs: list[str] = []
        self._printed: dict[int, str] = {}

    def __call__(self, desktop: DesktopId, command: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer one call."""
        self.calls.append((desktop, command, arguments))
        if command in self.refuses:
            raise Refused(self.refuses[command])
        if command == "guest-exec":
            number = 1000 + len(self._printed)
            self._printed[number] = self._printed_by(arguments, number)
            return {"pid": number}
        if command == "guest-exec-status":
            printed = base64.b64encode(self._printed[arguments["pid"]].encode()).decode()
            return {"exited": True, "exitcode": 0, "out-data": printed}
        return {}

    def _printed_by(self, arguments: Mapping[str, Any], number: int) -> str:
        whole = len(arguments.get("arg", [])) > _NAME_ONLY
        return self.programs.pop(0) if self.programs and whole else self._identity(arguments, number)

    def _identity(self, arguments: Mapping[str, Any], number: int) -> str:
        name, mac = [*arguments.get("arg", []), "", ""][3:5]
        return f"name={name}\nmac={mac}\nclock=set\nsample={number:032x}\n"


class FakeHypervisor:
    """Domains that exist only here."""

    def __init__(self, clock: Clock, *, boot_s: float = 10.0) -> None:
        self._clock = clock
        self.boot_s = boot_s
        self._domains: dict[DesktopId, _Domain] = {}
        self.guest: Callable[[DesktopId, str, Mapping[str, Any]], Mapping[str, Any]] = FakeGuest()
        self.processor = "fake 1"
        self.fail: dict[str, str] = {}
        self.down = ""
        self.ignores: set[DesktopId] = set()
        self.picture = _GREY
        self.on_remove: Callable[[DesktopId], None] = lambda _: None

    async def domains(self) -> Sequence[DomainStatus]:
        """Return all domains by desktop."""
        self._check()
        return tuple(
            DomainStatus(
                desktop,
                domain.spec.generation,
                domain.state,
                domain.spec.personal,
                domain.provisional,
                domain.edited,
            )
            for desktop, domain in sorted(self._domains.items())
        )

    async def define(self, spec: DomainSpec) -> None:
        """Keep the spec; an existing domain of the same generation is left as it is."""
        self._check()
        self._maybe_fail("define")
        old = self._domains.get(spec.desktop)
        if old is None or old.spec.generation != spec.generation:
            self._domains[spec.desktop] = _Domain(spec, DomainState.OFF)
        elif old.provisional:
            self._domains[spec.desktop] = replace(old, provisional=False)

    async def redefine(self, spec: DomainSpec) -> None:
        """Keep the new spec."""
        self._check()
        self._maybe_fail("define")
        self._domains[spec.desktop] = replace(self._one(spec.desktop), spec=spec, edited="")

    async def start(self, desktop: DesktopId) -> None:
        """Begin to boot."""
        self._check()
        self._maybe_fail("start")
        domain = self._one(desktop)
        if domain.state is not DomainState.RUNNING:
            started = domain.started_at if domain.state is DomainState.PAUSED else self._clock.monotonic()
            boots = domain.boots or domain.state is DomainState.OFF
            self._domains[desktop] = replace(domain, state=DomainState.RUNNING, started_at=started, boots=boots)

    async def suspend(self, desktop: DesktopId) -> None:
        """Halt it."""
        self._check()
        domain = self._domains.get(desktop)
        if domain is not None and domain.state is DomainState.RUNNING:
            self._domains[desktop] = replace(domain, state=DomainState.PAUSED)

    async def shut_down(self, desktop: DesktopId) -> None:
        """Go off at once; one that `ignores` it runs on."""
        self._check()
        domain = self._domains.get(desktop)
        if domain is not None and domain.state is DomainState.RUNNING and desktop not in self.ignores:
            self._domains[desktop] = replace(domain, state=DomainState.OFF)

    async def remove(self, desktop: DesktopId) -> None:
        """Forget the domain."""
        self._check()
        self._domains.pop(desktop, None)
        self.on_remove(desktop)

    async def answers(self, desktop: DesktopId) -> bool:
        """Answer once the boot time has passed."""
        self._check()
        domain = self._domains.get(desktop)
        if domain is None or domain.state is not DomainState.RUNNING or "boot" in self.fail:
            return False
        if not domain.boots:
            return True
        return self._clock.monotonic() - domain.started_at >= self.boot_s

    async def agent(
        self, desktop: DesktopId, command: str, arguments: Mapping[str, Any], timeout_s: float
    ) -> Mapping[str, Any]:
        """Have `guest` answer, once the guest has booted."""
        self._one(desktop)
        if not await self.answers(desktop):
            raise Unavailable("the guest agent does not answer")
        answer = self.guest(desktop, command, arguments)
        if command == "guest-shutdown":
            self._domains[desktop] = replace(self._one(desktop), state=DomainState.OFF)
        return answer

    async def hardware(self) -> str:
        """Return what a test says it is."""
        self._check()
        return self.processor

    async def save_warm(self, desktop: DesktopId, to: str) -> None:
        """Write a file in place of the memory."""
        self._check()
        domain = self._one(desktop)
        self._maybe_fail("save_warm")
        (Path(to) / "memory").write_text(f"{domain.spec.template} {domain.spec.memory_mib}\n")
        self._domains.pop(desktop)

    async def restore_warm(self, spec: DomainSpec, memory: str) -> None:
        """Run a domain that need not boot."""
        self._check()
        self._maybe_fail("restore_warm")
        if not (Path(memory) / "memory").exists():
            raise Refused(f"there is no saved memory in {memory}")
        self._domains[spec.desktop] = _Domain(
            spec, DomainState.RUNNING, self._clock.monotonic(), provisional=True, boots=False
        )

    async def screenshot(self, desktop: DesktopId) -> bytes:
        """Return what a running guest shows."""
        self._check()
        if self._one(desktop).state is not DomainState.RUNNING:
            raise Unavailable("the desktop is powered off")
        return self.picture

    async def close(self) -> None:
        """Nothing to let go of."""

    def adopt(self, spec: DomainSpec, generation: int) -> None:
        """One arrives from another server: its guest has booted long ago, and stands still."""
        self._check()
        booted = self._clock.monotonic() - self.boot_s
        self._domains[spec.desktop] = _Domain(replace(spec, generation=generation), DomainState.PAUSED, booted)

    def edit(self, desktop: DesktopId, words: str) -> None:
        """Somebody changes its definition by hand."""
        self._domains[desktop] = replace(self._one(desktop), edited=words)

    def power_cut(self) -> None:
        """The server loses power: definitions stay, nothing runs; what is provisional was never defined."""
        kept = {d: domain for d, domain in self._domains.items() if not domain.provisional}
        self._domains = {d: replace(domain, state=DomainState.OFF) for d, domain in kept.items()}

    def power_off(self, desktop: DesktopId) -> None:
        """The guest shut itself down."""
        self._domains[desktop] = replace(self._one(desktop), state=DomainState.OFF)

    def halt(self, desktop: DesktopId) -> None:
        """The guest was paused, as on a full disk."""
        self._domains[desktop] = replace(self._one(desktop), state=DomainState.PAUSED)

    def spec(self, desktop: DesktopId) -> DomainSpec:
        """Return what a domain was defined with."""
        return self._one(desktop).spec

    def _one(self, desktop: DesktopId) -> _Domain:
        if desktop not in self._domains:
            raise NotFound(f"there is no domain of desktop {desktop}")
        return self._domains[desktop]

    def _check(self) -> None:
        if self.down:
            raise Unavailable(self.down)

    def _maybe_fail(self, step: str) -> None:
        if step in self.fail:
            raise Refused(self.fail[step])
