"""Build the appliance: a disk that boots into kmgr's wizard. `python -m appliance.image.appliance [OUT.qcow2]`.

Debian of this machine's own release, libvirt and QEMU, this project's wheel in
its own virtual environment (installed offline from wheels made here), systemd
units from `appliance/files`.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from appliance.image import disk, rootfs
from kmgr.errors import ConfigError, KmgrError, Unavailable

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "appliance"
FILES = ROOT / "appliance" / "files"

PACKAGES = (
    "linux-image-amd64", "initramfs-tools", "zstd", "systemd-sysv", "udev", "dbus", "kmod", "iproute2",
    "iputils-ping", "nftables", "openssh-server", "openssl", "ca-certificates", "libvirt-daemon-system",
    "libvirt-clients", "qemu-system-x86", "qemu-utils", "bubblewrap", "ovmf", "swtpm", "swtpm-tools", "python3",
    "python3-venv", "e2fsprogs", "fdisk", "gdisk", "chrony", "polkitd", "libpam-systemd", "less", "nano",
)  # fmt: skip

ARGUMENTS = "root=LABEL=root rw quiet loglevel=3 systemd.show_status=no console=ttyS0,115200 console=tty0"
ROOT_MIB = 3072


def main() -> int:
    """Build the image and say how long each step took."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else BUILD / "kmgr-appliance.qcow2"
    try:
        build(target)
    except (KmgrError, OSError) as error:
        print(f"appliance: {error}", file=sys.stderr)
        return 1
    print(f"{target}: {target.stat().st_size >> 20} MiB. Try it with `make appliance-test`.")
    return 0


def build(target: Path) -> None:
    """Make wheels, the tree and the disk."""
    if os.geteuid() != 0:
        raise Unavailable("building a Debian tree needs root: run it with sudo")
    started = time.monotonic()
    BUILD.mkdir(parents=True, exist_ok=True)
    wheels = make_wheels(BUILD / "wheels")
    _said("wheels", started)
    tree = BUILD / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    os.environ.update(KMGR_FILES=str(FILES), KMGR_WHEELS=str(wheels))
    hook = f'"{FILES / "customize-appliance"}" "$1"'
    rootfs.build(rootfs.Tree(tree, PACKAGES, hooks=[hook]), log=BUILD / "tree.log")
    _said("Debian tree", started)
    plan = disk.Disk(
        tree=tree,
        kernel=disk.newest(tree, "boot/vmlinuz-*"),
        initrd=disk.newest(tree, "boot/initrd.img-*"),
        arguments=ARGUMENTS,
        root_mib=ROOT_MIB,
    )
    disk.build(plan, target)
    shutil.rmtree(tree, ignore_errors=True)
    _said("disk", started)


def make_wheels(folder: Path) -> Path:
    """Make wheels of the project and of all it needs, so that the tree needs no network."""
    _refuse_foreign_python()
    # What an earlier build left there would be packed again, files that are long gone included.
    for leftover in (folder, ROOT / "build" / "lib", *(ROOT / "build").glob("bdist.*")):
        shutil.rmtree(leftover, ignore_errors=True)
    folder.mkdir(parents=True)
    # The lock's hashes are for downloads; a list with hashes would refuse the project itself, which has none.
    pins = folder.with_suffix(".pins")
    pins.write_text(pinned((ROOT / "requirements.lock").read_text()))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(folder), "--constraint", str(pins)]
    done = subprocess.run([*command, f"{ROOT}[desktops]"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"making wheels failed: {done.stderr.strip()[-500:]}")
    return folder


def _refuse_foreign_python() -> None:
    """Wheels are made for one Python: it must be the one that the appliance will have, this Debian's own."""
    asked = subprocess.run(["/usr/bin/python3", "-V"], capture_output=True, text=True, check=False).stdout
    own = f"Python {sys.version_info.major}.{sys.version_info.minor}."
    if not asked.startswith(own):
        raise ConfigError(f".venv has {own}x, this Debian {asked.strip()}: remove .venv and run make setup again")


def pinned(lock: str) -> str:
    """Return the lock's versions without their hashes."""
    lines = [line.rstrip("\\ ") for line in lock.splitlines() if line and line[0].isalnum()]
    return "\n".join(lines) + "\n"


def _said(step: str, started: float) -> None:
    print(f"[{time.monotonic() - started:5.0f} s] {step}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
