"""What a server has for UEFI and TPMs, and a desktop's own firmware variables."""

import base64
import os
from pathlib import Path

import pytest

from kmgr.clock import ManualClock
from kmgr.errors import Refused
from kmgr.ids import DesktopId
from kmgr.provision import disks, firmware
from kmgr.provision.causes import Trouble, recognise
from kmgr.templates.machine import MACHINES, USUAL_MACHINE, Firmware, Machine, System, limits, machine_of

UEFI, WINDOWS = Machine(Firmware.UEFI), MACHINES[System.WINDOWS]
FRESH = b"\xff" * 4096


def fittings(folder: Path, *, tpm: bool = True) -> firmware.Fittings:
    """Return those of a server where Debian's `ovmf` is installed."""
    for name in ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd", "OVMF_CODE_4M.ms.fd", "OVMF_VARS_4M.ms.fd"):
        (folder / name).write_bytes(FRESH)
    return firmware.Fittings(firmware.look([folder / "none", folder]).files, tpm)


def test_a_server_finds_what_is_installed_and_says_so(tmp_path: Path) -> None:
    assert firmware.look([tmp_path]).files == {}
    (tmp_path / "OVMF_CODE_4M.fd").write_bytes(FRESH)
    assert firmware.look([tmp_path]).files == {}, "code without the variables that it begins with is nothing"
    found = fittings(tmp_path)
    assert found.has == ("secure", "tpm", "uefi")
    assert found.code(UEFI) == str(tmp_path / "OVMF_CODE_4M.fd")
    assert found.code(WINDOWS) == str(tmp_path / "OVMF_CODE_4M.ms.fd")
    assert found.code(USUAL_MACHINE) == ""
    assert WINDOWS.needs == {"secure", "tpm"} and UEFI.needs == {"uefi"} and not USUAL_MACHINE.needs


async def test_it_looks_once_a_minute_and_again_before_a_machine_that_needs_any_of_it(tmp_path: Path) -> None:
    clock, found = ManualClock(), [firmware.Fittings()]
    installed = firmware.Installed(lambda: found[-1], clock=clock)
    assert installed.is_due(), "nothing is known yet"
    installed.look()
    assert not installed.is_due()
    found.append(fittings(tmp_path))
    assert not installed.before(USUAL_MACHINE).has, "what is in every server is not looked for"
    assert installed.before(UEFI).has == found[-1].has
    await clock.advance(firmware.LOOK_S - 1)
    assert not installed.is_due()
    await clock.advance(1)
    assert installed.is_due()


def test_what_is_missing_has_a_name_a_cause_and_a_cure(tmp_path: Path) -> None:
    path = tmp_path / "dsk-1.nvram.fd"
    firmware.provide(path, firmware.Fittings(), USUAL_MACHINE, "")
    assert not path.exists()
    with pytest.raises(Refused, match="apt-get install ovmf") as none:
        firmware.provide(path, firmware.Fittings(), UEFI, "")
    assert recognise("start", none.value.message) is Trouble.NO_FIRMWARE
    with pytest.raises(Refused, match="apt-get install swtpm") as no_tpm:
        firmware.provide(path, fittings(tmp_path, tpm=False), WINDOWS, "")
    assert recognise("start", no_tpm.value.message) is Trouble.NO_TPM
    # As libvirt words it, when it was taken away behind kmgr's back.
    assert recognise("start", "Unable to find 'swtpm' binary in $PATH") is Trouble.NO_TPM
    gone = "Failed to open file '/usr/share/OVMF/OVMF_CODE_4M.fd': No such file or directory"
    assert recognise("start", gone) is Trouble.NO_FIRMWARE


def test_a_fresh_desktop_begins_with_its_versions_variables_and_keeps_its_own(tmp_path: Path) -> None:
    has, path = fittings(tmp_path), firmware.variables_path(tmp_path, DesktopId("dsk-1"))
    path.parent.mkdir()
    firmware.provide(path, has, UEFI, "")
    assert path.read_bytes() == FRESH
    path.write_bytes(b"\x01" * 4096)
    kept = firmware.packed(path)
    firmware.provide(path, has, UEFI, "")
    assert path.read_bytes() == b"\x01" * 4096, "its own stay"
    raw = tmp_path / "ver-1.raw"
    raw.write_bytes(bytes(4096))
    disks.make_overlay(disks.overlay_path(tmp_path, DesktopId("dsk-1")), raw)
    assert not path.exists(), "a fresh disk begins with fresh ones"
    firmware.provide(path, has, UEFI, kept)
    assert path.read_bytes() == b"\x01" * 4096
    disks.remove_overlay(disks.overlay_path(tmp_path, DesktopId("dsk-1")))
    assert not path.exists()
    assert firmware.packed(path) == ""


@pytest.mark.parametrize("kept", ["", "not base64!", "AAAA", base64.b64encode(b"x\x9cshort").decode()])
def test_variables_that_cannot_be_read_are_none(tmp_path: Path, kept: str) -> None:
    path = tmp_path / "dsk-1.nvram.fd"
    firmware.provide(path, fittings(tmp_path), UEFI, kept)
    assert path.read_bytes() == FRESH


def test_variables_of_another_build_are_not_used_and_too_many_are_not_kept(tmp_path: Path) -> None:
    path, other = tmp_path / "dsk-1.nvram.fd", tmp_path / "other.fd"
    other.write_bytes(b"\x02" * 8192)
    firmware.provide(path, fittings(tmp_path), UEFI, firmware.packed(other))
    assert path.read_bytes() == FRESH
    other.write_bytes(os.urandom(512 * 1024))
    assert firmware.packed(other) == ""


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (3, "a machine has firmware, tpm, hardware"),
        ({"colour": "red"}, "a machine has firmware, tpm, hardware"),
        ({"firmware": "coreboot"}, "bios or uefi or secure"),
        ({"firmware": ["uefi"]}, "bios or uefi or secure"),
        ({"hardware": "floppy"}, "virtio or plain"),
        ({"tpm": 1}, "true or false"),
        ({"tpm": True}, "a TPM needs UEFI"),
    ],
)
def test_a_machine_that_there_is_not_is_refused(values: object, words: str) -> None:
    assert words in machine_of(values)[1]


def test_what_a_machine_cannot_do_is_told() -> None:
    assert limits(USUAL_MACHINE) == ()
    assert len(limits(UEFI)) == 1
    assert "not moved while they run" in limits(WINDOWS)[1] and "BitLocker" in limits(WINDOWS)[1]
