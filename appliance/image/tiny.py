"""Build the test guest: a kernel, busybox and the guest agent. `python -m appliance.image.tiny OUT`.

Boots in a few seconds in emulation, takes 20 MB, shows a shell on its screen and
answers the guest agent: all that a test of a desktop's life needs. Made from one
downloaded kernel package and this machine's busybox, agent and C library; kept
under `build/` by a hash of what it is made from.
"""

import hashlib
import lzma
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from appliance.image import disk, plain_kernel
from appliance.image.turns import turn
from kmgr.errors import KmgrError, Unavailable

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "images"
FILES = ROOT / "appliance" / "guest"

KERNEL = "linux-image-amd64"
# Debian's kernel for clouds boots in two thirds of the time in emulation, for it looks for less hardware. It knows no
# generation id of a virtual machine, so guests restored from one memory draw the same random numbers for a while.
QUICK_KERNEL = "linux-image-cloud-amd64"
AGENT = "qemu-guest-agent"
MODULES = (
    "virtio_pci", "virtio_blk", "virtio_console", "virtio_net", "virtio_rng", "virtio_balloon", "crc32c_generic",
    "ext4", "button", "evdev", "bochs", "virtio_gpu", "psmouse", "usbhid", "uhci_hcd", "ehci_pci", "xhci_pci",
)  # fmt: skip
ARGUMENTS = (
    "quiet loglevel=3 console=ttyS0,115200 console=tty0 panic=-1 mitigations=off nokaslr audit=0 "
    "cryptomgr.notests tsc=reliable no_timer_check"
)
DATA_MIB = 32
EFI_MIB = 64


def main() -> int:
    """Build (or take from the cache) and say where it is."""
    if len(sys.argv) != 2:
        print("usage: python -m appliance.image.tiny OUT.qcow2", file=sys.stderr)
        return 2
    target = Path(sys.argv[1])
    try:
        made = cached()
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, target)
    except (KmgrError, OSError) as error:
        print(f"tiny: {error}", file=sys.stderr)
        return 1
    print(f"{target}: {target.stat().st_size >> 20} MiB")
    return 0


def quick() -> Path:
    """Return the image that boots quickest; no instant clones can be made of it."""
    return cached(QUICK_KERNEL)


def cached(package: str = KERNEL) -> Path:
    """Return the image with the kernel of a Debian package, built at most once for the same ingredients."""
    made = CACHE / f"tiny-{ingredients(package)}.qcow2"
    with turn(CACHE, "tiny"):
        if not made.exists():
            started = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="tiny-", dir=CACHE) as work:
                build(made, Path(work), package)
            print(f"[{time.monotonic() - started:5.1f} s] test guest, {made.stat().st_size >> 20} MiB", flush=True)
    return made


def ingredients(package: str = KERNEL) -> str:
    """Return a short hash of everything the image is made from (the packages' versions excepted)."""
    digest = hashlib.sha256(repr((package, MODULES, ARGUMENTS, DATA_MIB, EFI_MIB)).encode())
    for file in (__file__, plain_kernel.__file__):
        digest.update(Path(file).read_bytes())
    for name in ("tiny-init", "guest-dhcp", "guest-shutdown", "plain-kernel.s"):
        digest.update((FILES / name).read_bytes())
    return digest.hexdigest()[:12]


def build(target: Path, work: Path, package: str = KERNEL) -> None:
    """Make the initial file system from packages, then the disk."""
    kernel = unpacked(kernel_package(package), work / "kernel")
    agent = unpacked(AGENT, work / "agent")
    tree = work / "initramfs"
    for folder in (
        "bin",
        "sbin",
        "usr/sbin",
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "mnt",
        "root",
        "etc/acpi/PWRF",
        "m",
    ):
        (tree / folder).mkdir(parents=True)
    _busybox(tree)
    _with_libraries(tree, agent / "usr/sbin/qemu-ga", "usr/sbin/qemu-ga")
    _modules(tree, kernel)
    for name, where in (
        ("tiny-init", "init"), ("guest-dhcp", "etc/guest-dhcp"), ("guest-shutdown", "sbin/shutdown"),
        ("guest-shutdown", "etc/acpi/PWRF/00000080"),
    ):  # fmt: skip
        (tree / where).unlink(missing_ok=True)
        shutil.copy2(FILES / name, tree / where)
    _run("sh", "-c", 'cd "$1" && find . | cpio -o -H newc -R 0:0 --quiet >"$2"', "sh", tree, work / "initrd")
    data = work / "data"
    data.mkdir()
    (data / "README").write_text("The test guest's own disk.\n")
    disk.build(
        disk.Disk(
            tree=data,
            kernel=plain_kernel.plain(disk.newest(kernel, "boot/vmlinuz-*"), work / "linux", work),
            initrd=work / "initrd",
            arguments=ARGUMENTS,
            root_mib=DATA_MIB,
            efi_mib=EFI_MIB,
            uefi=False,
        ),
        target,
    )


def unpacked(package: str, folder: Path) -> Path:
    """Return a folder with a Debian package's files; downloaded packages are kept."""
    packages = CACHE / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    found = sorted(packages.glob(f"{package}_*.deb"))
    if not found:
        _run("apt-get", "-o", "APT::Sandbox::User=root", "download", package, cwd=packages)
        found = sorted(packages.glob(f"{package}_*.deb"))
    if not found:
        raise Unavailable(f"apt-get download {package} brought nothing: try apt-get update")
    _run("dpkg-deb", "-x", found[-1], folder)
    return folder


def kernel_package(package: str = KERNEL) -> str:
    """Return the package with the kernel itself, which the other only points to."""
    flavour = package.removeprefix("linux-image-")
    for kept in sorted((CACHE / "packages").glob(f"linux-image-[0-9]*-{flavour}_*.deb"), reverse=True):
        name = kept.name.partition("_")[0]
        if re.fullmatch(rf"linux-image-[0-9.+~-]+(?:deb\d+-)?{flavour}", name):
            return name
    shown = _run("apt-cache", "depends", package)
    if (match := re.search(r"Depends: (linux-image-\S+)", shown)) is None:
        raise Unavailable(f"apt knows no {package}: run apt-get update")
    return match.group(1)


def _busybox(tree: Path) -> None:
    shutil.copy2("/bin/busybox", tree / "bin/busybox")
    for applet in _run("/bin/busybox", "--list").split():
        if applet != "busybox":
            (tree / "bin" / applet).symlink_to("busybox")
    # The guest agent asks for these by their full path.
    (tree / "sbin/hwclock").symlink_to("../bin/busybox")


def _with_libraries(tree: Path, program: Path, where: str) -> None:
    shutil.copy2(program, tree / where)
    for library in sorted(set(re.findall(r"(/\S+\.so\S*)", _run("ldd", program)))):
        target = tree / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(library).resolve(), target)


def _modules(tree: Path, kernel: Path) -> None:
    """Copy the modules and what they need, in the order of loading, uncompressed."""
    folder = disk.newest(kernel, "lib/modules/*")
    if not (folder / "modules.dep").exists():
        _run("/sbin/depmod", "-b", kernel, folder.name)
    needs = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[_module_name(path)] = [*reversed(rest.split()), path]
    order: list[str] = []
    for module in MODULES:
        # A module that is missing is built into this kernel.
        for path in needs.get(module, []):
            name = Path(path).name.removesuffix(".xz")
            if name not in order:
                order.append(name)
                raw = (folder / path).read_bytes()
                (tree / "m" / name).write_bytes(lzma.decompress(raw) if path.endswith(".xz") else raw)
                _run("strip", "--strip-debug", tree / "m" / name)
    (tree / "m/order").write_text("\n".join(order) + "\n")


def _module_name(path: str) -> str:
    return Path(path).name.partition(".ko")[0].replace("-", "_")


def _run(*command: object, cwd: Path | None = None) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        raise Unavailable(f"{' '.join(words[:3])} failed: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
