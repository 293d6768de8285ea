"""What this server has to start desktops by UEFI and to give them a TPM, and a desktop's own firmware variables.

Variables are what the guest has told its firmware: which of its files it is started from, which keys it trusts. They
lie in a file of the desktop's own. A fresh desktop gets those that its version was made with (they travel in the log,
as they are small), else those that the firmware ships.
"""

import base64
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kmgr.clock import Clock
from kmgr.errors import Refused
from kmgr.ids import DesktopId
from kmgr.provision import disks
from kmgr.templates.machine import Firmware, Machine

# What is installed changes when somebody installs something: no need to look in every round of the agent.
LOOK_S = 60.0
# What is put into the log of a desktop's variables; a usual set takes a tenth of that.
MOST_BYTES = 96 * 1024
_LARGEST_FILE = 16 << 20
_FOLDERS = (Path("/usr/share/OVMF"), Path("/usr/share/edk2/ovmf"), Path("/usr/share/edk2/x64"))
# Code and the variables that it begins with, as distributions name them; the first that is there counts.
_FILES: Mapping[Firmware, Sequence[tuple[str, str]]] = {
    Firmware.UEFI: (
        ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
        ("OVMF_CODE.fd", "OVMF_VARS.fd"),
        ("OVMF_CODE.4m.fd", "OVMF_VARS.4m.fd"),
    ),
    # Only what is signed by Microsoft's keys starts: Windows, and the shim of Linux distributions.
    Firmware.SECURE: (
        ("OVMF_CODE_4M.ms.fd", "OVMF_VARS_4M.ms.fd"),
        ("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd"),
        ("OVMF_CODE.secboot.fd", "OVMF_VARS.secboot.fd"),
    ),
}
_PROGRAMS = ("swtpm", "swtpm_setup")
_NO_UEFI = (
    "this server has no UEFI firmware for it ({}): install it (apt-get install ovmf); it is used from then on "
    "without a restart"
)
_NO_TPM = (
    "this server has no TPM emulator for it: install it (apt-get install swtpm swtpm-tools), it is used from then on "
    "without a restart"
)


@dataclass(frozen=True, slots=True)
class Files:
    """One firmware on this server: its `code`, and the `variables` that a fresh machine begins with."""

    code: Path
    variables: Path


@dataclass(frozen=True, slots=True)
class Fittings:
    """What this server can make machines of besides the usual one."""

    files: Mapping[Firmware, Files] = field(default_factory=dict)
    tpm: bool = False

    @property
    def has(self) -> tuple[str, ...]:
        """Return it in the words of a heartbeat, as `Machine.needs` asks for it."""
        return tuple(sorted([one.value for one in self.files] + ["tpm"] * self.tpm))

    def code(self, machine: Machine) -> str:
        """Return the firmware's file for a machine; empty for BIOS, and where there is none."""
        found = self.files.get(machine.firmware)
        return "" if found is None else str(found.code)

    def check(self, machine: Machine) -> None:
        """Raise `Refused` with cause and cure if such a machine cannot be made here."""
        if machine.has_uefi and machine.firmware not in self.files:
            raise Refused(_NO_UEFI.format("with secure boot" if machine.firmware is Firmware.SECURE else "OVMF"))
        if machine.tpm and not self.tpm:
            raise Refused(_NO_TPM)


def look(folders: Sequence[Path] = _FOLDERS) -> Fittings:
    """Return what is installed on this server now; some looks at its disk."""
    found = {}
    for firmware, names in _FILES.items():
        pairs = (Files(folder / code, folder / variables) for folder in folders for code, variables in names)
        chosen = next((one for one in pairs if _readable(one.code) and _readable(one.variables)), None)
        if chosen is not None:
            found[firmware] = chosen
    return Fittings(found, all(shutil.which(program) for program in _PROGRAMS))


class Installed:
    """What `look` finds on this server: looked for once a minute, and again before a machine that needs any of it."""

    def __init__(self, look: Callable[[], Fittings], *, clock: Clock) -> None:
        self._look = look
        self._clock = clock
        self._looked_at: float | None = None
        self.fittings = Fittings()

    def is_due(self) -> bool:
        """Tell whether what was found last is a minute old."""
        return self._looked_at is None or self._clock.monotonic() - self._looked_at >= LOOK_S

    def look(self) -> None:
        """Look at the disk now; blocks."""
        self.fittings = self._look()
        self._looked_at = self._clock.monotonic()

    def before(self, machine: Machine) -> Fittings:
        """Return what such a machine can be made of now: somebody may have just installed what it lacked; blocks."""
        if machine.needs:
            self.look()
        return self.fittings


def variables_path(data_dir: Path, desktop: DesktopId) -> Path:
    """Return where a desktop's own firmware variables lie."""
    return disks.variables_of(disks.overlay_path(data_dir, desktop))


def provide(path: Path, fittings: Fittings, machine: Machine, kept: str) -> None:
    """Have a desktop's variables lie there; those that lie there stay. `kept` are its version's, as packed."""
    fittings.check(machine)
    if not machine.has_uefi or path.exists():
        return
    fresh = fittings.files[machine.firmware].variables.read_bytes()
    own = unpacked(kept) if kept else b""
    # Another size is of another build of the firmware, which could not read them.
    disks.write_whole(path, own if len(own) == len(fresh) else fresh)


def packed(path: Path) -> str:
    """Return a desktop's variables as the log keeps them for a version; empty if there are none, or too many."""
    try:
        if path.stat().st_size > _LARGEST_FILE:
            return ""
        data = path.read_bytes()
    except OSError:  # none there: it starts by BIOS
        return ""
    text = base64.b64encode(zlib.compress(data, 9)).decode()
    return text if len(text) <= MOST_BYTES else ""


def unpacked(text: str) -> bytes:
    """Return what `packed` made; nothing for anything else."""
    try:
        reader = zlib.decompressobj()
        found = reader.decompress(base64.b64decode(text, validate=True), _LARGEST_FILE)
    except (ValueError, zlib.error):
        return b""
    return found if reader.eof else b""


def _readable(path: Path) -> bool:
    return os.access(path, os.R_OK)
