"""How one server makes desktops: where what belongs to one lies, what it is made from, and the domain that it gets.

`MadeFrom` is one look at the state, handed from step to step of a build: a
template that changes meanwhile does not give a desktop half of each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlite_utils import Database

from kmgr.ids import DesktopId, VersionId
from kmgr.provision import disks, firmware
from kmgr.provision.capture_queries import variables
from kmgr.provision.hypervisor import DomainSpec
from kmgr.provision.model import Desktop, Purpose
from kmgr.provision.outfit import machine_in
from kmgr.replica.images import version_path
from kmgr.templates.install_queries import installers
from kmgr.templates.machine import Machine
from kmgr.templates.model import Template
from kmgr.templates.policy import USUAL, Policy, Seed
from kmgr.templates.queries import template


@dataclass(frozen=True, slots=True)
class MadeFrom:
    """What the state says that a desktop is made from.

    `template`: None if it is deleted. `installers`: the versions of the ISOs that it is installed from: none, or that
    and maybe its drivers. `variables`: its firmware's, packed; empty for those that the firmware ships.
    """

    template: Template | None
    machine: Machine
    installers: tuple[VersionId, ...] = ()
    variables: str = ""

    @property
    def policy(self) -> Policy:
        """Return its template's rules, or the usual ones."""
        return USUAL if self.template is None else self.template.policy


def made_from(db: Database, desktop: Desktop) -> MadeFrom:
    """Look at what a desktop is made from."""
    found = template(db, desktop.template)
    machine = machine_in(desktop.outfit, found.policy if found is not None else USUAL)
    isos = installers(db, desktop.template) if desktop.purpose is Purpose.EDIT else ()
    kept = variables(db, desktop.version, machine.firmware) if machine.has_uefi else ""
    return MadeFrom(found, machine, isos, kept)


@dataclass(frozen=True, slots=True)
class Shape:
    """How this server makes desktops: its own configuration.

    `backing` finds a version's raw file (None: it is not here); it may block,
    and is called in a thread. `instant_clones`: desktops restored from a saved
    memory share it (`shared`) or get a copy (`plain`), or all boot (`never`).
    """

    data_dir: Path
    grid_id: str
    backing: Callable[[VersionId], Path | None]
    display: Callable[[DesktopId], Path]
    accelerator: str = "tcg"
    network: str = "user"
    max_builds: int = 1
    instant_clones: str = "never"
    fittings: Callable[[], firmware.Fittings] = firmware.look

    def disk(self, desktop: DesktopId) -> Path:
        """Return where a desktop's own disk lies."""
        return disks.overlay_path(self.data_dir, desktop)

    def variables(self, desktop: DesktopId) -> Path:
        """Return where its firmware's variables lie."""
        return firmware.variables_path(self.data_dir, desktop)

    def seed(self, desktop: DesktopId) -> Path:
        """Return where the disk for its guest's first boot lies."""
        return self.data_dir / "desktops" / f"{desktop}.seed.iso"

    def log(self, desktop: DesktopId) -> Path:
        """Return where what it says on its serial console lies."""
        return self.data_dir / "desktops" / f"{desktop}.log"

    def spec(self, desktop: Desktop, made: MadeFrom, fittings: firmware.Fittings) -> DomainSpec:
        """Return a desktop's domain, on a server that has these fittings."""
        isos = [str(version_path(self.data_dir, iso)) for iso in made.installers]
        policy, machine = made.policy, made.machine
        return DomainSpec(
            desktop=desktop.id,
            generation=desktop.generation,
            name=desktop.name,
            grid=self.grid_id,
            template=made.template.name if made.template else "",
            vcpus=desktop.vcpus,
            memory_mib=desktop.memory_mib,
            disk=str(self.disk(desktop.id)),
            display=str(self.display(desktop.id)),
            log=str(self.log(desktop.id)),
            accelerator=self.accelerator,
            network=f"network:{policy.network}" if policy.network else self.network,
            personal=desktop.personal,
            seed=str(self.seed(desktop.id)) if policy.seed is not Seed.NONE else "",
            devices=policy.devices,
            installer=next(iter(isos), ""),
            drivers=next(iter(isos[1:]), ""),
            machine=machine,
            loader=fittings.code(machine),
            variables=str(self.variables(desktop.id)) if machine.has_uefi else "",
        )
