"""KVM or emulation? Tried, not assumed.

A `/dev/kvm` that opens may still not run a stock kernel (nested and paravirtual
variants), and libvirt advertises KVM from its mere existence. So `auto` boots the
newest kernel of this machine in a tiny guest and waits for its first line. The
answer is kept until the kernel changes or the machine is started again.
"""

import asyncio
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

PATIENCE_S = 10.0
MARKER = b"Linux version"
_EMULATED = "desktops are emulated, which is slow"


@dataclass(frozen=True, slots=True)
class Accelerator:
    """`kvm` or `tcg`, and the reason, for log and console."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Machine:
    """Where things are on this machine; tests put others in their place."""

    device: Path = Path("/dev/kvm")
    boot: Path = Path("/boot")
    qemu: str = "qemu-system-x86_64"
    patience_s: float = PATIENCE_S


async def choose(wanted: str, *, memory: Path, machine: Machine = Machine()) -> Accelerator:
    """Return what this server's desktops run on. `wanted` is auto, kvm or tcg; `memory` keeps an answer."""
    if wanted != "auto":
        return Accelerator(wanted, "set in kmgr.toml")
    if problem := _obstacle(machine):
        return Accelerator("tcg", f"{problem}: {_EMULATED}")
    kernels = sorted(machine.boot.glob("vmlinuz-*"), key=lambda path: path.stat().st_mtime)
    readable = [path for path in kernels if os.access(path, os.R_OK)]
    if not readable:
        why = "may not be read by this user" if kernels else "do not exist"
        return Accelerator(
            "tcg",
            f"KVM could not be tried, because kernels in {machine.boot} {why}: {_EMULATED}. If KVM works here, set "
            'accelerator = "kvm" in kmgr.toml',
        )
    kernel = readable[-1]
    key = f"{kernel} {kernel.stat().st_mtime_ns} {_boot_id()}"
    known = await asyncio.to_thread(_remembered, memory, key)
    if known is None:
        known = await _boots(kernel, machine)
        await asyncio.to_thread(_remember, memory, key, known)
    if known:
        return Accelerator("kvm", f"a guest with {kernel.name} started under KVM")
    return Accelerator("tcg", f"{machine.device} is there, but {kernel.name} did not start under it: {_EMULATED}")


def _obstacle(machine: Machine) -> str:
    if not machine.device.exists():
        return f"this machine offers no KVM (there is no {machine.device}; is virtualisation on in its firmware?)"
    if not os.access(machine.device, os.R_OK | os.W_OK):
        return f"this user may not open {machine.device} (add it to the group kvm)"
    if shutil.which(machine.qemu) is None:
        return f"KVM could not be tried, because {machine.qemu} is not installed"
    return ""


async def _boots(kernel: Path, machine: Machine) -> bool:
    command = [
        *(machine.qemu, "-accel", "kvm", "-cpu", "host", "-m", "128", "-display", "none", "-nodefaults"),
        *("-no-reboot", "-serial", "stdio", "-kernel", str(kernel), "-append", "console=ttyS0 panic=-1"),
    ]
    try:
        guest = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        logger.warning("KVM could not be tried", extra={"cause": str(error)})
        return False
    try:
        async with asyncio.timeout(machine.patience_s):
            return await _seen(guest)
    except TimeoutError:
        return False
    finally:
        if guest.returncode is None:
            guest.kill()
        await guest.wait()


async def _seen(guest: asyncio.subprocess.Process) -> bool:
    text = b""
    while guest.stdout is not None and (piece := await guest.stdout.read(4096)):
        text += piece
        if MARKER in text:
            return True
    return False


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _remembered(memory: Path, key: str) -> bool | None:
    try:
        raw = json.loads(memory.read_text())
        return bool(raw["works"]) if raw["key"] == key else None
    except (OSError, ValueError, KeyError):
        return None


def _remember(memory: Path, key: str, works: bool) -> None:
    try:
        memory.write_text(json.dumps({"key": key, "works": works}))
    except OSError as error:
        logger.warning("whether KVM works is not remembered", extra={"cause": str(error)})
