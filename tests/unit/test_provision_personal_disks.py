"""What a server keeps of personal desktops is tidied up, whatever is wrong with one of the disks."""

from pathlib import Path

import pytest

from kmgr.errors import Unavailable
from kmgr.ids import DesktopId
from kmgr.provision.fake import FakeHypervisor
from kmgr.provision.personal_disks import PersonalDisks
from kmgr.provision.queries import copies
from kmgr.provision.timely import at_once
from kmgr.replica.mirror_fake import FakeCopyStore, FakeDisks
from tests.lab.provision import A, Office


class Stuck(FakeCopyStore):
    """A store that cannot delete the copy of one desktop."""

    async def drop(self, desktop: DesktopId, generation: int) -> None:
        """Fail for that one."""
        if desktop == "dsk-1":
            raise OSError("the disk cannot be read")
        await super().drop(desktop, generation)


async def test_a_copy_that_cannot_be_deleted_keeps_no_other_from_it(tmp_path: Path) -> None:
    office = Office(tmp_path)
    await office.found()
    hypervisor = FakeHypervisor(office.clock, boot_s=1.0)
    store = Stuck(FakeDisks(), A)
    kept = PersonalDisks(office.grid, store, hypervisor, data_dir=tmp_path, clock=office.clock, blocking=at_once)
    for desktop in ("dsk-1", "dsk-2"):
        office.grid.store.writer.execute("insert into copies values (?, ?, 1, 'dropping', 5, 1, 1)", [desktop, A])
    await kept.tidy()
    with office.grid.view() as db:
        assert [copy.desktop for copy in copies(db)] == ["dsk-1"]
    # Without a majority nobody is asked one after the other.
    office.log.cut_off.add(A)
    with pytest.raises(Unavailable):
        await kept.tidy()
    office.grid.close()
