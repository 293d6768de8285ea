"""A Debian tree in a folder, from this machine's own package sources.

mmdebstrap is used because it needs no device mapper, no loop device and no
second machine; the choice and what failed beside it are in
`docs/decisions/0004-appliance-by-mmdebstrap.md`.
"""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kmgr.errors import ConfigError, Unavailable

# Never read in a server or a kiosk, and half of a Debian tree's size.
LEFT_OUT = (
    "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*",
    "*/lib/modules/*/kernel/drivers/media/*", "*/lib/modules/*/kernel/drivers/net/wireless/*",
    "*/lib/modules/*/kernel/drivers/gpu/drm/amd/*", "*/lib/modules/*/kernel/drivers/gpu/drm/nouveau/*",
    "*/lib/modules/*/kernel/drivers/gpu/drm/radeon/*", "*/lib/modules/*/kernel/drivers/infiniband/*",
    "*/lib/modules/*/kernel/drivers/iio/*", "*/lib/modules/*/kernel/drivers/staging/*",
    "*/lib/modules/*/kernel/sound/*",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tree:
    """What to install into which folder, and the scripts that finish it (each gets the folder as argument).

    `early` ones run when the essential packages are there and before all others.
    """

    folder: Path
    packages: Sequence[str]
    hooks: Sequence[str] = ()
    early: Sequence[str] = ()
    left_out: Sequence[str] = field(default=LEFT_OUT)


def suite() -> str:
    """Return this machine's Debian release name, like `bookworm`."""
    for line in Path("/etc/os-release").read_text().splitlines():
        name, _, value = line.partition("=")
        if name == "VERSION_CODENAME":
            return value.strip('"')
    raise ConfigError("this machine does not say which Debian it is (/etc/os-release has no VERSION_CODENAME)")


def sources(folder: Path = Path("/etc/apt")) -> str:
    """Return this machine's Debian sources (either spelling) for the tree; sources of other vendors are left out."""
    keyring = "debian-archive-keyring"
    for path in sorted((folder / "sources.list.d").glob("*.sources")):
        stanzas = [s for s in path.read_text().split("\n\n") if keyring in s and "Types:" in s]
        if stanzas:
            return "\n\n".join(s.strip() for s in stanzas) + "\n"
    listed = folder / "sources.list"
    lines = [line for line in listed.read_text().splitlines() if _debian_line(line)] if listed.exists() else []
    if not lines:
        raise ConfigError(f"no Debian package source was found under {folder}: apt-get cannot work here either")
    return "\n".join(lines) + "\n"


def _debian_line(line: str) -> bool:
    words = line.split()
    return words[:1] == ["deb"] and "cdrom:" not in line and any(w.startswith(suite()) for w in words)


def build(tree: Tree, *, log: Path) -> None:
    """Make the tree; raises `Unavailable` naming the log if a package cannot be had."""
    command = [
        "mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory",
        '--aptopt=APT::Install-Recommends "0"', '--aptopt=Acquire::Languages "none"',
        '--aptopt=Acquire::Check-Valid-Until "false"', '--aptopt=Acquire::Retries "3"',
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in tree.left_out),
        f"--include={','.join(tree.packages)}",
        *(f"--essential-hook={hook}" for hook in tree.early),
        *(f"--customize-hook={hook}" for hook in tree.hooks),
        suite(), str(tree.folder), "-",
    ]  # fmt: skip
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        done = subprocess.run(command, input=sources(), text=True, stdout=out, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        tail = " / ".join(line[:160] for line in log.read_text(errors="replace").strip().splitlines()[-3:])
        raise Unavailable(f"building the Debian tree failed ({tail}); all of it is in {log}")
