"""Can this machine run a stock guest under KVM? Tried, not assumed: a /dev/kvm that opens may still not boot one.

The answer is kept until the machine boots again.
"""

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

MEMORY = Path(__file__).parents[2] / "build" / "lab" / "accelerator.json"
MARKER = "guest-init"
PATIENCE_S = 15.0


def best(image: Path) -> str:
    """Return `kvm` if `image` boots to its marker on the serial console under KVM, else `tcg`."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    try:
        known = json.loads(MEMORY.read_text())
        if known["boot"] == boot:
            return str(known["accelerator"])
    except (OSError, ValueError, KeyError):
        pass
    found = "kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) and _boots(image) else "tcg"
    MEMORY.parent.mkdir(parents=True, exist_ok=True)
    MEMORY.write_text(json.dumps({"boot": boot, "accelerator": found}))
    return found


def _boots(image: Path) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        serial = Path(folder) / "serial"
        command = [
            "qemu-system-x86_64", "-machine", "pc,accel=kvm", "-cpu", "host", "-m", "256", "-display", "none",
            "-nodefaults", "-drive", f"file={image},format=qcow2,if=virtio,snapshot=on", "-serial", f"file:{serial}",
        ]  # fmt: skip
        guest = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            deadline = time.monotonic() + PATIENCE_S
            while time.monotonic() < deadline and guest.poll() is None:
                if serial.exists() and MARKER in serial.read_text(errors="replace"):
                    return True
                time.sleep(0.1)
            return False
        finally:
            guest.kill()
            guest.wait()
