"""A hypervisor in memory, for tests, simulations and working on pages: it ships, and obeys the same contract.

Guests "boot" in `boot_s` of the given clock. `fail` maps a step (`define`,
`start`, `boot`) to the cause that every next desktop fails with; `down` is the
reason the hypervisor does not answer at all; `picture` is what every guest shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kmgr.clock import Clock
from kmgr.errors import NotFound, Refused, Unavailable
from kmgr.ids import DesktopId
from kmgr.provision.hypervisor import DomainSpec, DomainState, DomainStatus

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


class FakeHypervisor:
    """Domains that exist only here."""

    def __init__(self, clock: Clock, *, boot_s: float = 10.0) -> None:
        self._clock = clock
        self._boot_s = boot_s
        self._domains: dict[DesktopId, _Domain] = {}
        self.fail: dict[str, str] = {}
        self.down = ""
        self.picture = _GREY

    async def domains(self) -> Sequence[DomainStatus]:
        """Return all domains by desktop."""
        self._check()
        return tuple(
            DomainStatus(desktop, domain.spec.generation, domain.state, domain.spec.personal)
            for desktop, domain in sorted(self._domains.items())
        )

    async def define(self, spec: DomainSpec) -> None:
        """Keep the spec; an existing domain of the same generation is left as it is."""
        self._check()
        self._maybe_fail("define")
        old = self._domains.get(spec.desktop)
        if old is None or old.spec.generation != spec.generation:
            self._domains[spec.desktop] = _Domain(spec, DomainState.OFF)

    async def start(self, desktop: DesktopId) -> None:
        """Begin to boot."""
        self._check()
        self._maybe_fail("start")
        domain = self._one(desktop)
        if domain.state is not DomainState.RUNNING:
            self._domains[desktop] = replace(domain, state=DomainState.RUNNING, started_at=self._clock.monotonic())

    async def suspend(self, desktop: DesktopId) -> None:
        """Halt it."""
        self._check()
        domain = self._domains.get(desktop)
        if domain is not None and domain.state is DomainState.RUNNING:
            self._domains[desktop] = replace(domain, state=DomainState.PAUSED)

    async def remove(self, desktop: DesktopId) -> None:
        """Forget the domain."""
        self._check()
        self._domains.pop(desktop, None)

    async def answers(self, desktop: DesktopId) -> bool:
        """Answer once the boot time has passed."""
        self._check()
        domain = self._domains.get(desktop)
        if domain is None or domain.state is not DomainState.RUNNING or "boot" in self.fail:
            return False
        return self._clock.monotonic() - domain.started_at >= self._boot_s

    async def screenshot(self, desktop: DesktopId) -> bytes:
        """Return what a running guest shows."""
        self._check()
        if self._one(desktop).state is not DomainState.RUNNING:
            raise Unavailable("the desktop is powered off")
        return self.picture

    async def close(self) -> None:
        """Nothing to let go of."""

    def power_cut(self) -> None:
        """The server loses power: definitions stay, nothing runs."""
        self._domains = {d: replace(domain, state=DomainState.OFF) for d, domain in self._domains.items()}

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
