"""What the kernel says about processors and disks, and what a server makes of it."""

import os
from pathlib import Path

import pytest

from kmgr.clock import ManualClock
from kmgr.errors import Unavailable
from kmgr.ids import DesktopId
from kmgr.provision.model import DesktopState
from kmgr.provision.pressure import Meter
from kmgr.provision.storm import Pressure, bounds_of
from kmgr.provision.storm_watch import StormWatch
from kmgr.provision.timely import at_once
from tests.lab.provision import Desk, done

CPU = "some avg10=7.80 avg60=14.90 avg300=13.41 total=11430850060\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
IO = "some avg10=40.04 avg60=0.05 avg300=0.16 total=585930736\nfull avg10=33.50 avg60=0.05 avg300=0.08 total=1931\n"


class Kernel:
    """A folder that looks like /proc."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        (self.proc / "pressure").mkdir(parents=True)
        self.data = folder / "desktops"
        self.data.mkdir()
        device = self.data.stat().st_dev
        self.number = f"{os.major(device):4} {os.minor(device):7}"
        self.clock = ManualClock()
        self.meter = Meter(self.data, clock=self.clock, proc=self.proc)

    def pressure(self, cpu: str = CPU, io: str = IO) -> None:
        (self.proc / "pressure" / "cpu").write_text(cpu)
        (self.proc / "pressure" / "io").write_text(io)

    def disk(self, requests: int, took_ms: int) -> None:
        other = "   7       0 loop0 9 9 9 9 9 9 9 9 9 9 9 0 0 0 0 0 0"
        mine = f"{self.number} vda {requests} 0 0 {took_ms} {requests} 0 0 {took_ms} 0 0 0 0 0 0 0 0 0"
        (self.proc / "diskstats").write_text(f"{other}\n{mine}\n")


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


async def test_the_kernels_words_are_read(kernel: Kernel) -> None:
    kernel.pressure()
    kernel.disk(1000, 5000)
    assert kernel.meter.read() == Pressure(7.8, 33.5, None)
    kernel.disk(1100, 12_000)
    assert kernel.meter.read().disk_ms is None  # at once: it is not concluded from a moment
    await kernel.clock.advance(2)
    assert kernel.meter.read().disk_ms == 70.0
    kernel.disk(1101, 12_900)
    await kernel.clock.advance(2)
    assert kernel.meter.read().disk_ms == 0.0, "two requests are no load, however long they took"


async def test_a_disk_that_counts_from_the_beginning_again_is_another_one(kernel: Kernel) -> None:
    kernel.disk(1000, 5000)
    kernel.meter.read()
    await kernel.clock.advance(2)
    kernel.disk(10, 50)
    assert kernel.meter.read().disk_ms is None


@pytest.mark.parametrize("text", ["", "some avg60=1\n", "nonsense", "some avg10=x avg60=0\n"])
def test_what_is_no_measure_is_none(kernel: Kernel, text: str) -> None:
    kernel.pressure(text, text)
    (kernel.proc / "diskstats").write_text(f"{kernel.number} vda 1 2\n{kernel.number} vda a b c d e f g h\n")
    assert kernel.meter.read() == Pressure()


def test_a_container_tells_nothing(tmp_path: Path) -> None:
    found = Meter(tmp_path / "gone", clock=ManualClock(), proc=tmp_path).read()
    assert (found, found.known) == (Pressure(), False)


def test_this_machine_is_understood(tmp_path: Path) -> None:
    found = Meter(tmp_path, clock=ManualClock()).read()
    for value in (found.cpu_percent, found.io_percent):
        assert value is None or 0 <= value <= 100
    assert (found.cpu_percent is None) == (not _readable(Path("/proc/pressure/cpu")))


async def test_a_server_with_busy_disks_makes_one_at_a_time_and_says_why(tmp_path: Path) -> None:
    desk = Stormy(tmp_path)
    await desk.found(standby=4)
    desk.pressure = Pressure(5.0, 60.0, 80.0)
    for _ in range(3):
        await desk.watch.look()
        await desk.clock.advance(11)
    assert desk.agent.vitals()["extra"]["builds"] == {
        "limit": 1,
        "most": 4,
        "why": "its disks were busy (60 % of the time nothing went on but waiting for them)",
    }
    for name in ("dsk-1", "dsk-2", "dsk-3"):
        done(await desk.place(name))
    await desk.round()
    assert list(desk.states().values()).count("building") == 1
    assert desk.agent.waiting(desk.waiting()).endswith("this server makes 1 desktops at a time")


async def test_one_that_is_quiet_makes_as_many_as_usual(tmp_path: Path) -> None:
    desk = Stormy(tmp_path)
    await desk.found(standby=4)
    for name in ("dsk-1", "dsk-2", "dsk-3", "dsk-4"):
        done(await desk.place(name))
    await desk.round()
    assert list(desk.states().values()).count("building") == 3
    await desk.live(60)
    assert set(desk.states().values()) == {"ready"}


async def test_boots_that_take_much_longer_than_the_first_ones_make_it_fewer(tmp_path: Path) -> None:
    desk = Stormy(tmp_path)
    await desk.found(standby=4)
    done(await desk.place("dsk-1"))
    await desk.live(14)
    assert desk.one("dsk-1").state is DesktopState.READY
    await desk.watch.look()
    before = desk.watch.limit
    desk.hypervisor.boot_s = 40
    for name in ("dsk-2", "dsk-3"):
        done(await desk.place(name))
    await desk.live(46)
    assert desk.one("dsk-3").state is DesktopState.READY
    assert desk.watch.limit < before
    assert "times as slowly as when it is quiet" in desk.watch.vitals()["builds"]["why"]


async def test_a_disk_that_hangs_leaves_the_usual_number() -> None:
    async def hangs(_: object) -> Pressure:
        raise Unavailable("the disk of this server did not answer")

    watch = StormWatch(bounds_of(2), Pressure, clock=ManualClock(), blocking=hangs)  # type: ignore[arg-type]
    await watch.look()
    assert watch.limit == 3


class Stormy(Desk):
    """Server a with two processors, whose pressure the test says."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.pressure = Pressure(5.0, 0.0, 1.0)
        self.watch: StormWatch = StormWatch(bounds_of(2), lambda: self.pressure, clock=self.clock, blocking=at_once)
        self.agent = self.restarted()

    def waiting(self) -> DesktopId:
        return min(DesktopId(name) for name, state in self.states().items() if state == "placed")


def _readable(path: Path) -> bool:
    try:
        return bool(path.read_text())
    except OSError:
        return False
