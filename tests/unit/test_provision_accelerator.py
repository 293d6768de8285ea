"""KVM or emulation: tried, remembered, and said why."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from kmgr.provision.accelerator import Machine, choose

ROOT = Path(__file__).parents[2]
WORKS = "echo 'SeaBIOS'; echo '[    0.000000] Linux version 6.1'; exec sleep 60"
HANGS = "echo 'SeaBIOS'; exec sleep 60"
ENDS = "echo 'failed to initialize kvm' >&2; exit 1"


class Lab:
    """A machine with a device, a kernel, and a QEMU that does what its script says; it notes each start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "boot").mkdir()
        (folder / "kvm").touch()
        self.kernel("6.1")
        self.machine = Machine(folder / "kvm", folder / "boot", str(folder / "qemu"), patience_s=0.5)
        self.memory = folder / "accelerator.json"

    def kernel(self, version: str) -> Path:
        path = self.folder / "boot" / f"vmlinuz-{version}"
        path.touch()
        return path

    def qemu(self, script: str) -> None:
        path = self.folder / "qemu"
        path.write_text(f'#!/bin/sh\necho $$ "$@" >>{self.folder}/started\n{script}\n')
        path.chmod(0o755)

    def starts(self) -> list[str]:
        path = self.folder / "started"
        return path.read_text().splitlines() if path.exists() else []

    async def choose(self, wanted: str = "auto") -> tuple[str, str]:
        chosen = await choose(wanted, memory=self.memory, machine=self.machine)
        return chosen.name, chosen.reason


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.mark.parametrize("wanted", ["kvm", "tcg"])
async def test_what_is_set_is_taken_without_trying(lab: Lab, wanted: str) -> None:
    lab.qemu(HANGS)
    assert await lab.choose(wanted) == (wanted, "set in kmgr.toml")
    assert lab.starts() == []


@pytest.mark.parametrize(("script", "name"), [(WORKS, "kvm"), (HANGS, "tcg"), (ENDS, "tcg")])
async def test_it_is_tried_once_and_remembered_and_no_guest_is_left(lab: Lab, script: str, name: str) -> None:
    lab.qemu(script)
    started = time.monotonic()
    first = await lab.choose()
    assert time.monotonic() - started < 5
    assert first[0] == name
    assert "vmlinuz-6.1" in first[1]
    assert await lab.choose() == first
    (start,) = lab.starts()
    assert "-accel kvm -cpu host" in start
    assert not psutil.pid_exists(int(start.split()[0]))


async def test_a_new_kernel_is_tried_anew_and_a_spoilt_memory_too(lab: Lab) -> None:
    lab.qemu(ENDS)
    assert (await lab.choose())[0] == "tcg"
    lab.qemu(WORKS)
    os.utime(lab.kernel("6.12"), (2e9, 2e9))
    assert await lab.choose() == ("kvm", "a guest with vmlinuz-6.12 started under KVM")
    lab.memory.write_text("{")
    assert (await lab.choose())[0] == "kvm"
    assert len(lab.starts()) == 3


async def test_why_it_could_not_be_tried_is_said(lab: Lab) -> None:
    assert "is not installed" in (await lab.choose())[1]
    lab.qemu(WORKS)
    lab.machine = replace(lab.machine, boot=lab.folder / "none")
    name, why = await lab.choose()
    assert (name, "do not exist" in why, "in kmgr.toml" in why) == ("tcg", True, True)
    lab.machine = replace(lab.machine, device=lab.folder / "none")
    assert "offers no KVM" in (await lab.choose())[1]
    assert lab.starts() == []


async def test_a_memory_that_cannot_be_written_only_costs_time(lab: Lab) -> None:
    lab.qemu(WORKS)
    lab.memory = lab.folder / "no" / "folder"
    assert (await lab.choose())[0] == "kvm"


AS_NOBODY = """
import asyncio, os, sys
from pathlib import Path
from kmgr.provision.accelerator import Machine, choose
folder = Path(sys.argv[1])
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
machine = Machine(folder / "kvm", folder / "boot", str(folder / "qemu"))
print(asyncio.run(choose("auto", memory=folder / "memory", machine=machine)))
"""


@pytest.fixture
def open_lab() -> Iterator[Lab]:
    """A lab that other users reach, which pytest's own folders are not."""
    with tempfile.TemporaryDirectory(prefix="kmgr-") as folder:
        Path(folder).chmod(0o755)
        yield Lab(Path(folder))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_user_who_may_not_read_or_open_is_told_what_to_do(open_lab: Lab) -> None:
    def told() -> str:
        words = [sys.executable, "-c", AS_NOBODY, str(open_lab.folder)]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout

    open_lab.qemu(WORKS)
    (open_lab.folder / "kvm").chmod(0o666)
    open_lab.kernel("6.1").chmod(0o600)
    assert "may not be read by this user" in told()
    (open_lab.folder / "kvm").chmod(0o600)
    assert "add it to the group kvm" in told()
