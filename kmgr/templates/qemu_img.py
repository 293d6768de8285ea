"""qemu-img, the only program that reads disks people offer: kept on a short leash.

* It is run under limits of memory, processor time and open files (prlimit), and a
  time-out; what it prints is read up to a limit. A file made to harm costs that much.
* The format is always given, never guessed, and paths are absolute: a name like
  `nbd:…` or `json:…` stays a name.
* What it may be given was looked at before (`signatures`): nothing that names other files.

Runs in the daemon's loop; the program is a child process that ends with its task.
"""

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmgr.errors import Refused, Unavailable

_MEMORY_BYTES = 2 << 30
_OUTPUT_BYTES = 1 << 20
_ERRORS_BYTES = 8 << 10
_LOOK_S = 30
# A disk of 16 TiB at 100 MB/s takes two days; nothing takes longer than that.
_WORK_S = 48 * 3600
_PERCENT = re.compile(rb"\((\d+)[.\d]*/100%\)")


@dataclass(frozen=True, slots=True)
class Disk:
    """What qemu-img says about an image file: sizes in bytes; `data_bytes` is the most that its copy takes."""

    format: str
    virtual_bytes: int
    data_bytes: int


async def inspect(path: Path, *, format: str, size: int) -> Disk:
    """Look into an image file of `size` bytes and check it for damage; raise `Refused` with what is wrong."""
    raw = _json(await _run(["info", "-U", "--output=json", "-f", format, str(path)], limit_s=_LOOK_S))
    specific = raw.get("format-specific", {}).get("data", {})
    if "backing-filename" in raw or "data-file" in specific or raw.get("encrypted"):
        raise Refused("it needs another file, or is encrypted")
    virtual = int(raw["virtual-size"])
    if format == "raw":
        return Disk(format, virtual, min(virtual, int(raw["actual-size"])))
    code, text = await _run_any(["check", "--output=json", "-f", format, str(path)], limit_s=3600)
    if code not in (0, 3):  # 3: clusters that nobody uses, harmless
        raise Refused(_damage(code, text, path))
    told = _json(text.out)
    if int(told.get("image-end-offset", 0)) - int(raw["cluster-size"]) >= size:
        raise Refused("it is a truncated qcow2 image: some of its data lies beyond its end")
    return Disk(format, virtual, int(told.get("allocated-clusters", 0)) * int(raw["cluster-size"]))


async def convert(source: Path, target: Path, *, format: str, on_percent: Callable[[int], None]) -> None:
    """Copy an image to a sparse raw file; raise `Unavailable` if the disk is full, `Refused` if it can't be read."""
    arguments = ["convert", "-p", "-f", format, "-O", "raw", str(source), str(target)]

    def heard(line: bytes) -> None:
        found = _PERCENT.search(line)
        if found:
            on_percent(int(found[1]))

    code, text = await _run_any(arguments, limit_s=_WORK_S, on_output=heard)
    if code:
        raise _failure(code, text.errors)


@dataclass(frozen=True, slots=True)
class _Text:
    out: bytes
    errors: str


async def _run(arguments: list[str], *, limit_s: int) -> bytes:
    code, text = await _run_any(arguments, limit_s=limit_s)
    if code:
        raise _failure(code, text.errors)
    return text.out


async def _run_any(
    arguments: list[str], *, limit_s: int, on_output: Callable[[bytes], None] | None = None
) -> tuple[int, _Text]:
    limits = [f"--as={_MEMORY_BYTES}", f"--cpu={limit_s}", "--nofile=64", "--core=0"]
    try:
        process = await asyncio.create_subprocess_exec(
            *("prlimit", *limits, "--", "qemu-img", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise Unavailable("prlimit is missing on this server: install the package util-linux") from error
    assert process.stdout is not None  # noqa: S101 - both are pipes
    assert process.stderr is not None  # noqa: S101
    try:
        async with asyncio.timeout(limit_s):
            out, errors, _ = await asyncio.gather(
                _read(process.stdout, most=_OUTPUT_BYTES, on_output=on_output),
                _read(process.stderr, most=_ERRORS_BYTES),
                process.wait(),
            )
    except TimeoutError:
        raise Refused(f"looking at it took longer than {limit_s} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None  # noqa: S101 - waited for
    return process.returncode, _Text(out, errors.decode(errors="replace"))


async def _read(
    reader: asyncio.StreamReader, *, most: int, on_output: Callable[[bytes], None] | None = None
) -> bytes:
    """Read to the end, keep the first `most` bytes."""
    kept = bytearray()
    while data := await reader.read(64 * 1024):
        if on_output is not None:
            on_output(data[data.rfind(b"(") :])
        kept += data[: most - len(kept)]
    return bytes(kept)


def _json(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise Refused("qemu-img cannot describe it") from error
    if not isinstance(found, dict):
        raise Refused("qemu-img cannot describe it")
    return found


def _damage(code: int, text: _Text, path: Path) -> str:
    if "beyond" in text.errors or "exceeding the end of the file" in text.errors:
        return "it is a truncated qcow2 image: some of its data lies beyond its end"
    if "lock" in text.errors:
        return _IN_USE
    return f"it is damaged: {_first_line(text.errors) or 'qemu-img check found errors'} (code {code})".replace(
        str(path), "the image"
    )


_IN_USE = "it is in use by a running machine: shut that down first"


def _failure(code: int, errors: str) -> Refused | Unavailable:
    if "No space left" in errors or "Disk quota" in errors:
        return Unavailable(
            "the disk is full: the import was stopped and removed. Make room on this server", code="disk_full"
        )
    if code == 127 or "failed to execute" in errors:
        return Unavailable("qemu-img is missing on this server: install the package qemu-utils")
    if code < 0:
        return Refused(f"reading it took more memory or time than an image should (signal {-code})")
    if "lock" in errors:
        return Refused(_IN_USE)
    return Refused(f"qemu-img cannot read it: {_first_line(errors)}")


def _first_line(errors: str) -> str:
    lines = [line.strip().removeprefix("qemu-img: ") for line in errors.splitlines() if line.strip()]
    return lines[0][:300] if lines else ""
