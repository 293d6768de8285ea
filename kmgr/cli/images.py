"""`kmgr image …`: bring disk images in from the terminal of a server, and list them."""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from kmgr.cli.options import DEFAULT_DATA, DataOption
from kmgr.control import ask
from kmgr.errors import Refused
from kmgr.web.words import size, span

image = typer.Typer(no_args_is_help=True, help="Golden images: import, list.")

_PIECE = 32 << 20
_LOOK_S = 0.5
_WAIT_S = 600


@image.command("import")
def bring(
    source: Annotated[
        str, typer.Argument(metavar="FILE|URL|-", help="A disk image, its address, or standard input.")
    ],
    name: Annotated[str, typer.Option("--name", help="Name of the golden image; a known one gets a new version.")],
    notes: Annotated[str, typer.Option("--notes", help="What is in it.")] = "",
    sha256: Annotated[str, typer.Option("--sha256", help="What the file must hash to.")] = "",
    sums: Annotated[str, typer.Option("--sums", help="Address of a file of checksums (with an address).")] = "",
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Import a qcow2, raw, VMDK, VDI or VHDX disk; interrupted, the same command goes on where it was."""
    facts = {"name": name, "notes": notes, "sha256": sha256}
    if "://" in source:
        answer = asyncio.run(ask(data, "import-fetch", {**facts, "url": source, "sums": sums}, wait_s=_WAIT_S))
        where = str(answer["id"])
    elif source == "-":
        where = _send(data, sys.stdin.buffer, {**facts, "file": "standard input", "size": None})
    else:
        where = _send_file(data, Path(source), facts)
    try:
        _follow(data, where)
    except KeyboardInterrupt:
        raise Refused(f"the server goes on with it; kmgr image cancel {where} stops it") from None
    print(f"{name} is imported.")


@image.command("list")
def listed(
    data: DataOption = DEFAULT_DATA,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show the golden images, and what is being imported on this server."""
    answer = asyncio.run(ask(data, "images"))
    if as_json:
        print(json.dumps(answer, indent=2))
        return
    for one in answer["images"]:
        print(one["name"])
        for version in one["versions"]:
            used, whole = size(version["used_bytes"]), size(version["size_bytes"])
            print(f"  {version['number']:>4}  {used} of a disk of {whole}  {version['notes']}")
    for job in answer["imports"]:
        print(f"{job['id']}  {job['image_name']}: {job['error'] or _line(job)}")


@image.command("cancel")
def cancel(
    id: Annotated[str, typer.Argument(help="An import, as kmgr image list names it.")],
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Stop an upload or a download, and forget what came of it."""
    asyncio.run(ask(data, "import-cancel", {"id": id}))
    print("Cancelled; nothing of it is kept.")


def _send_file(data: Path, path: Path, facts: dict[str, Any]) -> str:
    try:
        with path.open("rb") as file:
            told = path.stat()
            mark = f"{path.absolute()}|{told.st_size}|{told.st_mtime_ns}"
            return _send(data, file, {**facts, "file": path.name, "size": told.st_size, "fingerprint": mark})
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror or error}") from error


def _send(data: Path, file: BinaryIO, facts: dict[str, Any]) -> str:
    begun = asyncio.run(ask(data, "import-begin", facts))
    where, at, whole = str(begun["id"]), int(begun["offset"]), facts["size"]
    if at:
        file.seek(at)
    began, first = time.monotonic(), at
    while piece := file.read(_PIECE):
        body = {"id": where, "offset": at, "length": len(piece)}
        at = int(asyncio.run(ask(data, "import-piece", body, data=piece, wait_s=_WAIT_S))["offset"])
        rate = (at - first) / max(time.monotonic() - began, 0.001)
        left = f", {span((whole - at) / rate)} left" if whole and rate else ""
        _show(f"sent {size(at)}{f' of {size(whole)}' if whole else ''}, {size(int(rate))}/s{left}")
    if whole is None:
        asyncio.run(ask(data, "import-end", {"id": where, "size": at}))
    elif at < whole:
        # Nothing would ever bring the rest: the file that was announced is not there any more.
        asyncio.run(ask(data, "import-cancel", {"id": where}))
        _show("")
        raise Refused(
            f"{facts['file']} became shorter while it was sent: it ended after {at} of {whole} bytes. Nothing of it "
            "is kept; import it again when nobody writes to it any more"
        )
    return where


def _follow(data: Path, where: str) -> None:
    """Show how the import goes on until it ends; raise what stands against it."""
    while (state := asyncio.run(ask(data, "import-state", {"id": where})))["step"] != "done":
        if state["error"]:
            _show("")
            raise Refused(state["error"])
        _show(_line(state))
        time.sleep(_LOOK_S)
    _show("")


def _line(job: dict[str, Any]) -> str:
    rate = f", {size(job['rate_bytes_s'])}/s" if job["rate_bytes_s"] else ""
    left = f", {span(job['remaining_s'])} left" if job["remaining_s"] else ""
    return f"{job['step']} ({job['percent']} %){rate}{left}"


def _show(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
