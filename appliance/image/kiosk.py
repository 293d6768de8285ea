"""Build the demonstration's golden image: a small graphical desktop. `python -m appliance.image.kiosk OUT`.

X, a window manager, a terminal, an editor and a browser; its own 1 MB initramfs
and first process instead of systemd, so that in emulation it shows a desktop
after some 15 s instead of 35. Kept under `build/` by a hash of what it is made from.
"""

import hashlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from appliance.image import disk, plain_kernel, rootfs
from appliance.image.turns import turn
from kmgr.errors import KmgrError, Unavailable

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "images"
FILES = ROOT / "appliance" / "guest"

PACKAGES = (
    "linux-image-amd64", "initramfs-tools", "busybox-static", "zstd", "udev", "dbus", "kmod", "iproute2",
    "util-linux", "xserver-xorg-core", "xserver-xorg-input-libinput", "x11-xserver-utils", "x11-utils", "icewm",
    "xterm", "spice-vdagent", "qemu-guest-agent", "fonts-dejavu-core", "mousepad", "netsurf-gtk",
)  # fmt: skip

# Software rendering of 3D and what only it needs: a third of the tree, useless on an emulated screen.
LEFT_OUT = (
    *rootfs.LEFT_OUT, "/usr/lib/*/dri/*", "/usr/lib/*/libLLVM*", "/usr/lib/*/libz3*",
    "/usr/share/icons/Adwaita/cursors/*",
    "/usr/share/icons/Adwaita/512x512/*", "/usr/share/icons/Adwaita/256x256/*",
    "/usr/share/fonts/truetype/dejavu/DejaVuSerif*", "/usr/share/gtk-doc/*",
    "/usr/share/bug/*", "/usr/share/lintian/*",
)  # fmt: skip

ARGUMENTS = (
    "root=/dev/vda2 rw quiet loglevel=3 console=ttyS0,115200 console=tty0 mitigations=off nokaslr audit=0 "
    "cryptomgr.notests tsc=reliable no_timer_check vt.global_cursor_default=0"
)
ROOT_MIB = 700


def main() -> int:
    """Build (or take from the cache) and say where it is."""
    if len(sys.argv) != 2:
        print("usage: python -m appliance.image.kiosk OUT.qcow2", file=sys.stderr)
        return 2
    target = Path(sys.argv[1])
    try:
        made = cached()
        if target.resolve() != made:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made, target)
    except (KmgrError, OSError) as error:
        print(f"kiosk: {error}", file=sys.stderr)
        return 1
    print(f"{target}: {target.stat().st_size >> 20} MiB")
    return 0


def cached() -> Path:
    """Return the image, built at most once for the same ingredients."""
    made = CACHE / f"kiosk-{ingredients()}.qcow2"
    with turn(CACHE, "kiosk"):
        if not made.exists():
            build(made)
    return made.resolve()


def ingredients() -> str:
    """Return a short hash of everything the image is made from (the Debian packages' versions excepted)."""
    digest = hashlib.sha256(repr((rootfs.suite(), PACKAGES, LEFT_OUT, ARGUMENTS, ROOT_MIB)).encode())
    for file in (Path(plain_kernel.__file__), *sorted(FILES.iterdir())):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def build(target: Path) -> None:
    """Make the tree and the disk."""
    if os.geteuid() != 0:
        raise Unavailable("building a Debian tree needs root: run it with sudo")
    started = time.monotonic()
    tree = CACHE / "kiosk-tree"
    CACHE.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(tree, ignore_errors=True)
    os.environ["KMGR_FILES"] = str(FILES)
    early, last = ([f'"{FILES / name}" "$1"'] for name in ("no-initramfs", "customize-kiosk"))
    rootfs.build(rootfs.Tree(tree, PACKAGES, early=early, hooks=last, left_out=LEFT_OUT), log=CACHE / "kiosk.log")
    print(f"[{time.monotonic() - started:5.0f} s] Debian tree", flush=True)
    packed = disk.newest(tree, "boot/vmlinuz-*")
    with tempfile.TemporaryDirectory(prefix="kiosk-", dir=CACHE) as work:
        kernel = plain_kernel.plain(packed, Path(work, "linux"), Path(work))
        packed.unlink()
        plan = disk.Disk(
            tree=tree,
            kernel=kernel,
            initrd=tree / "boot" / "initrd.img-kmgr",
            arguments=ARGUMENTS,
            root_mib=ROOT_MIB,
            efi_mib=64,
            uefi=False,
        )
        disk.build(plan, target)
    shutil.rmtree(tree, ignore_errors=True)
    print(f"[{time.monotonic() - started:5.0f} s] disk, {target.stat().st_size >> 20} MiB", flush=True)


if __name__ == "__main__":
    sys.exit(main())
