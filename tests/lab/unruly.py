"""What a guest can do wrong on purpose: its agent hangs, floods or talks nonsense, its init reboots.

Scripts for the shell of the test guest (`appliance/image/tiny.py`), run through the agent that they then harm; and
disks of that guest which begin with another script.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any

# Where the disk's first partition begins (appliance/image/disk.py).
_BOOT = "@@1M"

REBOOTS = "#!/bin/sh\nexec /bin/busybox reboot -f\n"
# A line that is JSON and answers nothing that was asked.
LINES = """yes '{"return": {"value": "nobody asked for this"}}'"""
ONE_LINE = r"tr '\0' x </dev/zero"


def harmed(deed: str, seconds: int) -> str:
    """Return a script that does something to the guest's agent for so long, then lets it be as it was."""
    return f"""
for d in /sys/class/virtio-ports/*; do
[ "$(cat "$d/name")" = org.qemu.guest_agent.0 ] && port=/dev/${{d##*/}}
done
{deed.format(seconds=seconds)}
"""


HANGS = "kill -STOP $(pidof qemu-ga); sleep {seconds}; kill -CONT $(pidof qemu-ga)"


def writes(what: str) -> str:
    """Return a deed: something else writes to the agent's channel instead."""
    return (
        "kill $(pidof qemu-ga); while pidof qemu-ga; do usleep 50000; done\n"
        f'timeout {{seconds}} sh -c "exec {_quoted(what)} >$port"\n'
        "qemu-ga -d -m virtio-serial -p $port -f /run/qemu-ga.pid -t /run"
    )


def detached(script: str) -> dict[str, Any]:
    """Return the arguments of `guest-exec` that run a script which outlives the agent."""
    return {"path": "/bin/setsid", "arg": ["/bin/sh", "-c", script], "capture-output": False}


def captured(script: str) -> dict[str, Any]:
    """Return the arguments of `guest-exec` that run a script and keep what it prints."""
    return {"path": "/bin/sh", "arg": ["-c", script], "capture-output": True}


def beginning_with(script: str, raw: Path, target: Path) -> Path:
    """Copy the test guest's raw disk and have it begin with another script; return the copy."""
    copied(raw, target)
    work = target.with_suffix(".work")
    (work / "more").mkdir(parents=True)
    (work / "more" / "init").write_text(script)
    (work / "more" / "init").chmod(0o755)
    _run("mcopy", "-n", "-i", f"{target}{_BOOT}", "::/initrd", work / "initrd")
    with (work / "initrd").open("ab") as initrd:
        # The kernel unpacks one archive after the other: what the second has replaces what the first had.
        packed = subprocess.run(
            ["cpio", "-o", "-H", "newc", "-R", "0:0", "--quiet"],
            input=b"init\n", cwd=work / "more", capture_output=True, check=True,
        )  # fmt: skip
        initrd.write(packed.stdout)
    _run("mcopy", "-o", "-i", f"{target}{_BOOT}", work / "initrd", "::/initrd")
    shutil.rmtree(work)
    return target


def copied(raw: Path, target: Path) -> Path:
    """Copy a disk, holes as holes; return the copy."""
    subprocess.run(["cp", "--sparse=always", str(raw), str(target)], check=True)
    return target


def _quoted(text: str) -> str:
    """Escape a command for a place between double quotes; its braces stay what they are after `format`."""
    for what, escaped in (("\\", "\\\\"), ('"', '\\"'), ("$", "\\$"), ("{", "{{"), ("}", "}}")):
        text = text.replace(what, escaped)
    return text


def _run(*command: object) -> None:
    words = [str(word) for word in command]
    subprocess.run(words, check=True, capture_output=True, env={"PATH": "/usr/bin:/bin", "MTOOLS_SKIP_CHECK": "1"})
