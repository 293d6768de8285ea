"""`kmgr image …` against a daemon's local door: a file, standard input, what is refused, going on, the list."""

import asyncio
import io
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kmgr.cli import images as command
from kmgr.control import ControlServer, ask
from kmgr.daemon import images_door
from kmgr.errors import Refused
from kmgr.replica import queries
from kmgr.web.services import Services
from tests.lab.web_lab import opened

MIB = 1 << 20
DISK = (bytes(510) + b"\x55\xaa" + b"installed" * 300_000).ljust(4 * MIB, b"\0")


class Door:
    """A server's door, its data folder, and what it knows."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.data = services.config.data_dir
        words = images_door.operations(services.grid, services.importer, services.reception, services.fetch_sum)
        self.server = ControlServer(self.data, words, taking=images_door.taking(services.reception))

    async def run(self, source: str, name: str, *, notes: str = "", sha256: str = "") -> None:
        """Run a command as another process would: in a thread with a loop of its own."""
        await asyncio.to_thread(command.bring, source, name, notes=notes, sha256=sha256, sums="", data=self.data)

    def versions(self, name: str) -> int:
        with self.services.grid.view() as db:
            image = queries.image_by_name(db, name)
            return len(queries.versions(db, image.id)) if image else 0


@pytest.fixture
async def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Door]:
    monkeypatch.setattr(command, "_PIECE", MIB)
    monkeypatch.setattr(command, "_LOOK_S", 0.01)
    async with opened(tmp_path) as lab:
        door = Door(lab.services())
        await door.server.start()
        yield door
        await door.server.stop()


async def test_a_file_is_sent_and_listed(door: Door, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "win.raw"
    file.write_bytes(DISK)
    await door.run(str(file), "win", notes="first")
    assert door.versions("win") == 1
    await asyncio.to_thread(command.listed, data=door.data, as_json=False)
    told = capsys.readouterr().out
    assert "win is imported." in told
    assert "first" in told


async def test_standard_input_may_be_of_any_length(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(DISK)))
    await door.run("-", "piped")
    assert door.versions("piped") == 1


async def test_an_interrupted_command_goes_on_where_it_was(door: Door, tmp_path: Path) -> None:
    file = tmp_path / "win.raw"
    file.write_bytes(DISK)
    told = file.stat()
    facts = {"name": "win", "file": "win.raw", "size": len(DISK), "notes": ""}
    mark = f"{file}|{told.st_size}|{told.st_mtime_ns}"
    begun = await ask(door.data, "import-begin", {**facts, "fingerprint": mark})
    body = {"id": begun["id"], "offset": 0, "length": 3 * MIB}
    assert (await ask(door.data, "import-piece", body, data=DISK[: 3 * MIB]))["offset"] == 3 * MIB
    sent: list[int] = []
    append = door.services.reception.append

    async def noted(id: str, offset: int, *rest: Any, **more: Any) -> Any:
        sent.append(offset)
        return await append(id, offset, *rest, **more)

    door.services.reception.append = noted  # type: ignore[method-assign]
    await door.run(str(file), "win")
    assert sent == [3 * MIB]
    assert door.versions("win") == 1


async def test_what_is_refused_is_told_with_its_reason(door: Door, tmp_path: Path) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear administrator " * 1000)
    with pytest.raises(Refused, match="it is a text file"):
        await door.run(str(letter), "win")
    with pytest.raises(Refused, match="cannot be read"):
        await door.run(str(tmp_path / "none"), "win")
    with pytest.raises(Refused, match="only http and https"):
        await door.run("file:///etc/passwd", "win")
    with pytest.raises(Refused, match="may not be fetched"):
        await door.run("http://127.0.0.1:1/x", "win")
    file = tmp_path / "win.raw"
    file.write_bytes(DISK)
    with pytest.raises(Refused, match="SHA-256 differs"):
        await door.run(str(file), "win", sha256="0" * 64)
    begun = await ask(door.data, "import-begin", {"name": "win", "file": "a", "size": 5 * MIB})
    with pytest.raises(Refused, match="is being uploaded as win by local"):
        await door.run(str(file), "win")
    await asyncio.to_thread(command.cancel, begun["id"], data=door.data)
    await door.run(str(file), "win")
    assert door.versions("win") == 1


async def test_a_file_that_became_shorter_is_an_error_and_nothing_of_it_is_kept(door: Door, tmp_path: Path) -> None:
    file = tmp_path / "win.raw"
    file.write_bytes(DISK)
    append = door.services.reception.append

    async def cut(id: str, offset: int, *rest: Any, **more: Any) -> Any:
        if offset == MIB:  # somebody writes a smaller one in its place, or its disk goes
            os.truncate(file, 2 * MIB + 5)
        return await append(id, offset, *rest, **more)

    door.services.reception.append = cut  # type: ignore[method-assign]
    async with asyncio.timeout(60):
        with pytest.raises(
            Refused, match="became shorter while it was sent: it ended after 2097157 of 4194304 bytes"
        ):
            await door.run(str(file), "win")
    answer = await ask(door.data, "images")
    assert answer["imports"] == []
    door.services.reception.append = append  # type: ignore[method-assign]
    file.write_bytes(DISK)
    await door.run(str(file), "win")
    assert door.versions("win") == 1
