"""The real KVM of this machine, if it has one: judged in time, remembered, and no guest is left behind."""

import time
from pathlib import Path

import psutil
import pytest

from appliance.image import tiny
from kmgr.provision.accelerator import PATIENCE_S, Machine, choose

pytestmark = pytest.mark.libvirt


async def test_kvm_is_judged_by_a_stock_kernel_in_time(tmp_path: Path, tiny_image: Path) -> None:
    if not Machine().device.exists():
        pytest.skip("this machine has no /dev/kvm")
    tiny.unpacked(tiny.kernel_package(), tmp_path)  # where the test guest's kernel came from
    machine = Machine(boot=tmp_path / "boot")
    started = time.monotonic()
    first = await choose("auto", memory=tmp_path / "memory", machine=machine)
    assert time.monotonic() - started < PATIENCE_S + 2
    assert "vmlinuz-" in first.reason
    again = time.monotonic()
    assert await choose("auto", memory=tmp_path / "memory", machine=machine) == first
    assert time.monotonic() - again < 0.5
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(machine.boot) in " ".join(p.info["cmdline"] or [])]
