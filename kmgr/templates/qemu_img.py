"""qemu-img, the only program that reads disks people offer: always in a cell (`sandbox`).

* The format is always given, never guessed; the file has a fixed name inside, so
  a name like `nbd:…` or `json:…` cannot be meant otherwise.
* What it may be given was looked at before (`signatures`): nothing that names other files. Should one slip through,
  there are no other files in the cell.
* Raw disks need no program: kmgr reads them itself (`absorb`).

Runs in the daemon's loop; the program is a child process that ends with its task.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmgr.errors import Refused, Unavailable
from kmgr.templates import sandbox
from kmgr.templates.sandbox import INPUT, OUTPUT, Ended, Job
from kmgr.templates.signatures import AGAIN

_LOOK_S = 30
_CHECK_S = 3600
# A disk of 16 TiB at 100 MB/s takes two days; nothing takes longer than that.
_WORK_S = 48 * 3600
_PERCENT = re.compile(rb"\((\d+)[.\d]*/100%\)")
_EXTENT = re.compile(rb'"length": (\d+),[^}]*"zero": false, "data": true')
# What `check` answers for formats that it cannot check.
_NO_CHECK = 63
_LEAKS = 3
_NOT_COMPRESSED = ("vdi", "vhdx")


@dataclass(frozen=True, slots=True)
class Disk:
    """What qemu-img says about an image file: sizes in bytes; `data_bytes` is the most that its copy takes."""

    format: str
    virtual_bytes: int
    data_bytes: int


async def inspect(path: Path, *, format: str, size: int, judge: Callable[[int], None]) -> Disk:
    """Look into an image file of `size` bytes and check it for damage; raise `Refused` with what is wrong.

    `judge` hears the size of the disk before anything else is done that takes longer the larger it is.
    """
    told = await _qemu_img(["info", "-U", "--output=json", "-f", format, INPUT], Job(path, _LOOK_S))
    if told.code:
        raise _failure(told, format)
    raw = _json(told.out)
    specific = raw.get("format-specific", {}).get("data", {})
    if "backing-filename" in raw or "data-file" in specific or raw.get("encrypted"):
        raise Refused(
            "it needs another file, or is encrypted. Make a whole copy of it first, without encryption: qemu-img "
            f"convert -f {format} -O qcow2 OLD NEW"
        )
    judge(int(raw["virtual-size"]))
    await _check(path, format, size=size, cluster_bytes=int(raw.get("cluster-size", 0)))
    data = await _data_bytes(path, format)
    # Some drivers call everything data; without compression there cannot be more than the file is long.
    return Disk(format, int(raw["virtual-size"]), min(data, size) if format in _NOT_COMPRESSED else data)


async def convert(source: Path, target: Path, *, disk: Disk, on_percent: Callable[[int], None]) -> None:
    """Copy an image into a fresh, empty sparse file; raise `Unavailable` if the disk is full, `Refused` if it's bad.

    It is written from the beginning to the end, as qemu-img does unless told otherwise: `absorb.follow` reads behind.
    """

    def heard(data: bytes) -> None:
        for found in _PERCENT.finditer(data):
            on_percent(int(found[1]))

    arguments = ["convert", "-p", "-n", "--target-is-zero", "-f", disk.format, "-O", "raw", INPUT, OUTPUT]
    job = Job(source, _WORK_S, target=target, write_bytes=disk.virtual_bytes, keep_bytes=0)
    told = await _qemu_img(arguments, job, on_output=heard)
    if told.code:
        raise _failure(told, disk.format)


async def _qemu_img(arguments: list[str], job: Job, *, on_output: sandbox.OnOutput | None = None) -> Ended:
    return await sandbox.run(("qemu-img", *arguments), job, on_output=on_output)


async def _check(path: Path, format: str, *, size: int, cluster_bytes: int) -> None:
    told = await _qemu_img(["check", "--output=json", "-f", format, INPUT], Job(path, _CHECK_S))
    if told.code == _NO_CHECK:
        return
    if told.code not in (0, _LEAKS):  # clusters that nobody uses are harmless
        raise Refused(_damage(told, format))
    if format == "qcow2" and int(_json(told.out).get("image-end-offset", 0)) - cluster_bytes >= size:
        raise Refused(_truncated(format))


async def _data_bytes(path: Path, format: str) -> int:
    """Return how much of the disk may hold something; read as it comes, an image may have millions of extents."""
    total, kept = 0, b""

    def heard(data: bytes) -> None:
        nonlocal total, kept
        whole, _, kept = (kept + data).rpartition(b"\n")
        kept = kept[-4096:]
        total += sum(int(found[1]) for found in _EXTENT.finditer(whole))

    job = Job(path, _CHECK_S, keep_bytes=0)
    told = await _qemu_img(["map", "-U", "--output=json", "-f", format, INPUT], job, on_output=heard)
    if told.code:
        raise _failure(told, format)
    return total + sum(int(found[1]) for found in _EXTENT.finditer(kept))


def _json(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise Refused(f"qemu-img cannot describe it. {AGAIN}") from error
    if not isinstance(found, dict):
        raise Refused(f"qemu-img cannot describe it. {AGAIN}")
    return found


def _truncated(format: str) -> str:
    return f"it is a truncated {format} image: some of its data lies beyond its end. {AGAIN}"


def _damage(told: Ended, format: str) -> str:
    if "beyond" in told.errors or "exceeding the end of the file" in told.errors:
        return _truncated(format)
    if "lock" in told.errors:
        return _IN_USE
    found = _first_line(told.errors) or "qemu-img check found errors"
    return f"it is damaged: {found} (code {told.code}). {AGAIN}, or try: qemu-img check -r all FILE"


_IN_USE = "it is in use by a running machine: shut that down first"


def _failure(told: Ended, format: str) -> Refused | Unavailable:
    code, errors = told.code, told.errors
    if "No space left" in errors or "Disk quota" in errors:
        return Unavailable(
            "the disk is full: the import was stopped and removed. Make room on this server", code="disk_full"
        )
    if code < 0 or code > 128:
        return Refused(
            f"reading it took more memory or time than an image should (signal {-code if code < 0 else code - 128}). "
            f"Make a fresh image of it first: qemu-img convert -f {format} -O qcow2 OLD NEW"
        )
    if "lock" in errors:
        return Refused(_IN_USE)
    if "Input/output error" in errors or "End of file" in errors or "beyond" in errors:
        return Refused(f"it is a truncated or damaged {format} image: {_first_line(errors)}. {AGAIN}")
    return Refused(
        f"qemu-img cannot read it: {_first_line(errors)}. Make a qcow2 or raw image of it with the program it is from"
    )


def _first_line(errors: str) -> str:
    lines = [line.strip().removeprefix("qemu-img: ") for line in errors.splitlines() if line.strip()]
    return lines[0][:300].replace(INPUT, "the image").replace(OUTPUT, "the copy") if lines else ""
