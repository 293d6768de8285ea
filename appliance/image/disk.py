"""A bootable disk from a folder: GPT, BIOS (syslinux) and UEFI (systemd-boot), without loop device or mount.

Layout: 1 MiB gap, EFI system partition (FAT16: mtools mistrusts small FAT32),
root (ext4, label `root`). Built as a sparse file in place by mke2fs -d, mtools
and dd, because this works in any container.
"""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
_EFI_TYPE = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
_ROOT_TYPE = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"


@dataclass(frozen=True, slots=True)
class Disk:
    """What goes onto the disk. `kernel` and `initrd` are copied to the EFI partition; sizes in MiB.

    Without `uefi` only BIOS boots it: a kernel of `plain_kernel` knows nothing else.
    """

    tree: Path
    kernel: Path
    initrd: Path
    arguments: str
    root_mib: int
    efi_mib: int = 96
    uefi: bool = True


def build(disk: Disk, target: Path, *, raw: bool = False) -> None:
    """Write the disk as compressed qcow2 (or sparse raw); `target` appears only when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=target.name, dir=target.parent) as work:
        whole = Path(work) / "disk.raw"
        with whole.open("wb") as file:
            file.truncate((disk.efi_mib + disk.root_mib + 2) * MIB)
        _partition(whole, disk)
        _write_efi(whole, disk, Path(work))
        _write_root(whole, disk)
        if raw:
            shutil.move(whole, target)
            return
        packed = Path(work) / "disk.qcow2"
        _run("qemu-img", "convert", "-c", "-o", "compression_type=zstd", "-O", "qcow2", whole, packed)
        shutil.move(packed, target)


def newest(tree: Path, pattern: str) -> Path:
    """Return the newest file of the tree that matches, like `boot/vmlinuz-*`."""
    found = sorted(tree.glob(pattern))
    if not found:
        raise FileNotFoundError(f"{tree} has no {pattern}")
    return found[-1]


def _partition(whole: Path, disk: Disk) -> None:
    table = (
        "label: gpt\n"
        f"start=1MiB, size={disk.efi_mib}MiB, type={_EFI_TYPE}, name=ESP, attrs=LegacyBIOSBootable\n"
        f"start={disk.efi_mib + 1}MiB, size={disk.root_mib}MiB, type={_ROOT_TYPE}, name=root\n"
    )
    _run("sfdisk", "-q", whole, stdin=table)


def _write_efi(whole: Path, disk: Disk, work: Path) -> None:
    efi = work / "efi.img"
    with efi.open("wb") as file:
        file.truncate(disk.efi_mib * MIB)
    _run("mkfs.vfat", "-F", "16", "-n", "ESP", efi)
    files: dict[str, Path | str] = {
        "syslinux.cfg": "DEFAULT linux\nPROMPT 0\nTIMEOUT 0\nLABEL linux\n KERNEL /linux\n"
        f" APPEND initrd=/initrd {disk.arguments}\n",
        "linux": disk.kernel,
        "initrd": disk.initrd,
    }
    if disk.uefi:
        _run("mmd", "-i", efi, "::/EFI", "::/EFI/BOOT", "::/loader", "::/loader/entries")
        files |= {
            "EFI/BOOT/BOOTX64.EFI": Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi"),
            "loader/loader.conf": "timeout 0\ndefault linux\n",
            "loader/entries/linux.conf": f"title linux\nlinux /linux\ninitrd /initrd\noptions {disk.arguments}\n",
        }
    for name, what in files.items():
        part = what if isinstance(what, Path) else work / "part"
        if isinstance(what, str):
            part.write_text(what)
        _run("mcopy", "-i", efi, part, f"::/{name}")
    _run("syslinux", "--install", efi)
    _run("dd", f"if={efi}", f"of={whole}", "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none")
    boot = "/usr/lib/syslinux/mbr/gptmbr.bin"
    _run("dd", f"if={boot}", f"of={whole}", "conv=notrunc", "bs=440", "count=1", "status=none")


def _write_root(whole: Path, disk: Disk) -> None:
    offset = (disk.efi_mib + 1) * MIB
    options = f"offset={offset},lazy_itable_init=1,lazy_journal_init=1"
    _run("mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", disk.tree, "-E", options, whole, f"{disk.root_mib}M")


def _run(*command: object, stdin: str | None = None) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(
        words, input=stdin, text=True, capture_output=True, check=False, env={"PATH": _PATH, "MTOOLS_SKIP_CHECK": "1"}
    )
    if done.returncode:
        raise OSError(f"{words[0]} failed: {(done.stderr or done.stdout).strip() or done.returncode}")


_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
