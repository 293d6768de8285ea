"""A desktop is mirrored while it runs and writes: real QEMU, libvirt, guest and agent, real deaths."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.lab.node import PrivateLibvirt
from kmgr.errors import Unavailable
from kmgr.provision.hypervisor import DomainState
from kmgr.provision.libvirt_backup import backups
from kmgr.replica.grains import GRAIN
from kmgr.replica.mirror import CopyPoint
from kmgr.replica.overlay_file import OverlayFile
from tests.lab.mirrors import D1, content, is_clean
from tests.lab.raft_lab import eventually

pytest.importorskip("libvirt")

from tests.lab.mirrored import DATA, Site  # (needs libvirt)

pytestmark = pytest.mark.libvirt


@pytest.fixture
async def site(libvirtd: PrivateLibvirt, raw: Path, tmp_path: Path) -> AsyncIterator[Site]:
    libvirtd.start()
    made = Site(tmp_path, libvirtd, raw)
    yield made
    libvirtd.start()
    for status in await made.driver.domains():
        await made.driver.remove(status.desktop)
    await made.driver.close()


async def test_all_that_was_synced_before_the_point_survives_the_death_of_the_server(site: Site) -> None:
    await site.boot(site.a)
    point: CopyPoint | None = None
    async with site.writing():
        points = []
        for _ in range(4):
            await asyncio.sleep(1)
            point = await site.cycle(point)
            points.append(point)
            assert len(await site.checkpoints()) == 1
        await asyncio.sleep(1)
        await asyncio.to_thread(site.kill)
    assert point is not None
    assert [p.full for p in points] == [True, False, False, False]
    # The agent has a second; in a guest that writes all it can, on a busy machine, it needs longer now and then. Such
    # a point is what a power cut leaves, and no less is expected of it below.
    assert any(p.frozen for p in points)
    assert all(p.sent_bytes < 6 << 20 for p in points[1:])

    assert await site.b.copies.promote(D1, 1, site.b.disk) == point
    assert is_clean(site.b.disk)
    expected = site.expected(point.as_of)
    assert len(expected) > 3
    assert expected <= set(site.file_system(site.b.disk).split())
    await site.boot(site.b, generation=2)
    assert expected <= set((await site.sh(f"cat {DATA}")).split())


async def test_after_a_power_cut_everything_is_compared_and_only_differences_travel(site: Site) -> None:
    await site.boot(site.a)
    await site.sh("dd if=/dev/urandom of=/mnt/large bs=1M count=8 conv=fsync")
    first = await site.still_cycle()
    assert not list((site.folder / "a" / "run").glob("*.frozen"))
    await site.write(1)
    await asyncio.to_thread(site.kill)
    await site.boot(site.a)
    second = await site.cycle(first)
    assert second.full
    assert second.sent_bytes < 4 << 20
    with OverlayFile(site.a.disk) as overlay:
        assert [bitmap.name for bitmap in overlay.bitmaps() if bitmap.name.startswith("kmgr-")] == []
    third = await site.cycle(second)
    assert not third.full
    assert len(await site.checkpoints()) == 1
    await site.off()
    await site.b.copies.promote(D1, 1, site.b.disk)
    assert "1" in site.file_system(site.b.disk).split()


async def test_off_and_on_again_goes_on_from_the_bitmap(site: Site) -> None:
    await site.boot(site.a)
    await site.sh("dd if=/dev/urandom of=/mnt/large bs=1M count=8 conv=fsync")
    running = await site.cycle()
    await site.write(1)
    await site.off()
    off = await site.cycle(running)
    assert not off.full
    assert off.sent_bytes < 4 << 20
    again = await site.cycle(off)
    assert again.sent_bytes < 100
    await site.boot(site.a)
    on = await site.cycle(again)
    assert not on.full
    await site.write(2)
    await site.cycle(on)
    await site.off()
    last = await site.cycle(on)
    assert not last.full
    await site.b.copies.promote(D1, 1, site.b.disk)
    assert content(site.b.disk) == content(site.a.disk)


async def test_a_guest_without_an_agent_is_copied_as_a_power_cut_would_leave_it(site: Site) -> None:
    await site.boot(site.a)
    await site.write(1)
    await site.sh("(sleep 1; kill $(cat /run/qemu-ga.pid)) >/dev/null 2>&1 &")
    await site.until_agent(False, 30)
    first = await site.cycle()
    second = await site.cycle(first)
    assert (first.full, first.frozen, second.full, second.frozen) == (True, False, False, False)
    assert [status.state for status in await site.driver.domains()] == [DomainState.RUNNING]
    await site.b.copies.promote(D1, 1, site.b.disk)
    assert "1" in site.file_system(site.b.disk).split()


async def test_what_a_killed_daemon_left_is_ended_at_the_next_start(site: Site) -> None:
    await site.boot(site.a)
    first = await site.cycle()
    await site.backups.begin(D1, since="", point="kmgr-orphan")
    mark = site.folder / "a" / "run" / f"{D1}.frozen"
    mark.touch()
    assert await site.agent("guest-fsfreeze-freeze")
    assert await site.agent("guest-fsfreeze-status") == "frozen"

    later = backups(site.driver, data_dir=site.folder / "a", clock=site.clock)
    await later.recover()
    assert await site.agent("guest-fsfreeze-status") == "thawed"
    assert not await site.driver.with_domain(D1, lambda domain: domain.jobInfo()[0])
    assert list((site.folder / "a" / "run").glob("*.frozen")) == []
    assert list((site.folder / "a" / "desktops").glob("*.scratch")) == []
    await site.write(1)
    second = await site.cycle(first)
    assert not second.full
    assert len(await site.checkpoints()) == 1


async def test_libvirt_restarted_in_the_middle_costs_one_cycle(site: Site, libvirtd: PrivateLibvirt) -> None:
    await site.boot(site.a)
    first = await site.cycle()
    await site.sh("dd if=/dev/urandom of=/mnt/large bs=1M count=8 conv=fsync")
    reached = asyncio.Event()

    async def wait(_: int) -> None:
        if not reached.is_set():
            reached.set()
            await asyncio.to_thread(libvirtd.restart_libvirtd)
            raise Unavailable("the wire broke as well")

    site.a.mirror._slow = wait
    with pytest.raises(Unavailable):
        await site.cycle(first)
    second = await site.cycle(first)
    assert not second.full
    assert second.sent_bytes > 8 << 20
    assert len(await site.checkpoints()) == 1
    await site.off()
    await site.cycle(second)
    await site.b.copies.promote(D1, 1, site.b.disk)
    assert content(site.b.disk) == content(site.a.disk)


async def test_what_the_guest_gave_back_is_zero_in_the_copy_too(site: Site) -> None:
    await site.boot(site.a)
    await site.sh("dd if=/dev/urandom of=/mnt/large bs=1M count=8 conv=fsync")
    first = await site.cycle()
    await site.sh("rm /mnt/large; sync; fstrim /mnt || true; dd if=/dev/zero of=/mnt/zeros bs=1M count=8 conv=fsync")
    second = await site.cycle(first)
    assert second.sent_bytes < 3 << 20
    await site.off()
    await site.cycle(second)
    await site.b.copies.promote(D1, 1, site.b.disk)
    assert content(site.b.disk) == content(site.a.disk)


async def test_stopping_forgets_the_points_and_the_domain_can_go(site: Site) -> None:
    await site.boot(site.a)
    await site.cycle()
    await site.a.mirror.stop(D1)
    assert await site.checkpoints() == []
    await site.cycle()
    await site.driver.remove(D1)
    assert await site.driver.domains() == ()
    with OverlayFile(site.a.disk) as overlay:
        assert sum(1 for grain in overlay.allocated()) * GRAIN > 0


# The guest's own agent is stopped in the moment in which it freezes, and goes on after so many seconds.
HANGING = """
(setsid sh -c '
while [ ! -e /run/qga.state.isfrozen ]; do :; done
kill -STOP $(cat /run/qemu-ga.pid)
sleep LASTS
kill -CONT $(cat /run/qemu-ga.pid)
' >/dev/null 2>&1 &)
(setsid sh -c 'while :; do echo tick >>/mnt/ticks; sync /mnt/ticks; echo tick >/dev/ttyS0; usleep 300000; done' \\
    >/dev/null 2>&1 &)
"""


class Hanging:
    """The guest's agent hangs in its next freeze, while a program in the guest writes and tells of it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.mark = site.folder / "a" / "run" / f"{D1}.frozen"

    async def begin(self, lasts_s: int) -> None:
        await self.site.boot(self.site.a)
        await self.site.sh("echo 502 >/proc/sys/kernel/sysrq; echo before >/mnt/records; sync")
        await self.site.sh(HANGING.replace("LASTS", str(lasts_s)))
        await eventually(self.ticks, within_s=30)

    def ticks(self) -> int:
        """How often the guest has written: it says so on its serial line."""
        told = (self.site.folder / "a" / "desktops" / "1.log").read_text(errors="replace")
        return told.split().count("tick")

    async def goes_on(self, limit_s: float) -> None:
        before = self.ticks()
        await eventually(lambda: self.ticks() > before + 2, within_s=limit_s)


@pytest.fixture
async def hanging(site: Site) -> AsyncIterator[Hanging]:
    asking = asyncio.create_task(site.backups.run())
    yield Hanging(site)
    asking.cancel()


async def test_an_agent_that_hangs_in_the_freeze_is_asked_until_it_answers_and_the_guest_goes_on(
    site: Site, hanging: Hanging
) -> None:
    await hanging.begin(12)
    point = await site.cycle()
    assert point.full
    assert hanging.mark.exists(), "it did not say that it goes on: somebody has to ask again"
    await eventually(lambda: not hanging.mark.exists(), within_s=60)
    await hanging.goes_on(20)
    assert await site.agent("guest-fsfreeze-status") == "thawed"
    again = await site.still_cycle(point)
    assert not again.full
    assert not hanging.mark.exists()
    assert await site.b.copies.promote(D1, 1, site.b.disk) == again
    assert "before" in site.file_system(site.b.disk).split()


async def test_an_agent_that_never_comes_back_leaves_no_guest_frozen(site: Site, hanging: Hanging) -> None:
    await hanging.begin(100_000)
    point = await site.cycle()
    # Nobody in the guest answers; its kernel obeys the keys.
    await hanging.goes_on(60)
    assert hanging.mark.exists(), "its agent may yet end what it was told to do"
    again = await site.cycle(point)
    assert (again.full, again.frozen) == (False, False)
    later = backups(site.driver, data_dir=site.folder / "a", clock=site.clock)
    await later.recover()
    assert hanging.mark.exists(), "the next life of the daemon asks on as well"
    await site.off()
    await later.recover()
    assert not hanging.mark.exists()
    last = await site.cycle(again)
    assert not last.full
    await site.b.copies.promote(D1, 1, site.b.disk)
    assert content(site.b.disk) == content(site.a.disk)
