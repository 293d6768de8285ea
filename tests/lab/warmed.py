"""Server a of that office, which restores its desktops from saved memories."""

from pathlib import Path

from kmgr.ids import DesktopId
from kmgr.provision import warm_files
from kmgr.provision.fake import FakeGuest
from kmgr.provision.hypervisor import DomainState
from kmgr.provision.model import Origin
from kmgr.provision.warm import is_builder
from tests.lab.provision import Desk, done


class Warmed(Desk):
    """Guests boot in ten seconds; `mode` as in `kmgr.toml`."""

    def __init__(self, folder: Path, *, max_builds: int = 3, mode: str = "shared") -> None:
        super().__init__(folder, max_builds=max_builds, mode=mode)
        self.guest = FakeGuest()
        self.saved: list[DesktopId] = []
        self._save_warm = self.hypervisor.save_warm
        self.hypervisor.save_warm = self._noted  # type: ignore[method-assign]
        self.hypervisor.guest = self.guest

    async def several(self, n: int, first: int = 1, version: str = "ver-1") -> list[DesktopId]:
        """Place so many desktops."""
        names = [DesktopId(f"d-{number}") for number in range(first, first + n)]
        for name in names:
            done(await self.place(name, version=version))
        return names

    async def _noted(self, desktop: DesktopId, to: str) -> None:
        self.saved.append(desktop)
        await self._save_warm(desktop, to)

    def origins(self) -> dict[str, Origin]:
        """Return how the desktops that are ready or in use came to be so."""
        return {d: self.one(d).origin for d, state in self.states().items() if state in ("ready", "in_use")}

    def kept(self) -> list[str]:
        """Return the versions of which a whole memory lies here."""
        return [one.version for one in warm_files.kept(self.folder)]

    def lying(self) -> list[str]:
        """Return all folders of memories."""
        base = self.folder / "warm"
        return sorted(path.name for path in base.iterdir()) if base.exists() else []

    async def builders(self) -> list[DesktopId]:
        """Return the domains that are nobody's desktop."""
        return [status.desktop for status in await self.hypervisor.domains() if is_builder(status.desktop)]

    async def domain(self, desktop: str) -> DomainState:
        """Return how a desktop's domain is found."""
        return {str(status.desktop): status.state for status in await self.hypervisor.domains()}[desktop]

    def stopped(self) -> list[str]:
        """Return the templates whose desktops this server does not try to restore any more."""
        return [str(template) for template in self.agent.vitals()["extra"].get("warm", {"stopped": []})["stopped"]]

    def notes(self) -> dict[str, str]:
        """Return why desktops of templates boot by themselves, as the heartbeat says."""
        told = self.agent.vitals()["extra"].get("warm", {"notes": {}})["notes"]
        return {str(template): str(why) for template, why in told.items()}
