"""The local door to the running daemon."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kmgr.control import ControlServer, ask, socket_path
from kmgr.daemon.folder import locked, prepare
from kmgr.errors import Conflict, InvariantBroken, KmgrError, NotFound, Refused, Unavailable


async def greet(body: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"hello": body["name"]}


async def refuse(_: Mapping[str, Any]) -> Mapping[str, Any]:
    raise Conflict("it moved on")


@pytest.fixture
async def data(tmp_path: Path) -> AsyncIterator[Path]:
    server = ControlServer(tmp_path, {"greet": greet, "refuse": refuse})
    await server.start()
    yield tmp_path
    await server.stop()


async def test_an_operation_answers(data: Path) -> None:
    assert await ask(data, "greet", {"name": "one"}) == {"hello": "one"}


async def test_what_an_operation_raises_reaches_the_caller(data: Path) -> None:
    with pytest.raises(Conflict, match="it moved on"):
        await ask(data, "refuse")


async def test_an_unknown_operation_is_named(data: Path) -> None:
    with pytest.raises(NotFound, match="dance"):
        await ask(data, "dance")


async def test_a_daemon_that_does_one_thing_only_says_why_it_does_nothing_else(tmp_path: Path) -> None:
    server = ControlServer(tmp_path, {"greet": greet}, otherwise=lambda: Refused("this machine only votes"))
    await server.start()
    try:
        assert await ask(tmp_path, "greet", {"name": "one"}) == {"hello": "one"}
        with pytest.raises(Refused, match="only votes"):
            await ask(tmp_path, "drain")
    finally:
        await server.stop()


async def test_without_a_daemon_the_message_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"no kmgr runs.*systemctl start kmgr.*kmgr run --data.*journalctl -u kmgr"):
        await ask(tmp_path, "greet")


async def test_one_that_waits_for_room_on_its_disk_is_not_said_to_be_off(tmp_path: Path) -> None:
    prepare(tmp_path)
    with locked(tmp_path), pytest.raises(Unavailable, match=r"answers nothing yet.*journalctl -u kmgr"):
        await ask(tmp_path, "greet")
    with pytest.raises(Unavailable, match="no kmgr runs"):
        await ask(tmp_path, "greet")


@pytest.mark.parametrize(
    ("error", "told", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), Unavailable, "No space left on device"),
        (AttributeError("row"), InvariantBroken, "please report it"),
    ],
)
async def test_who_asks_a_daemon_that_fails_at_it_is_not_told_that_it_stopped(
    tmp_path: Path, error: Exception, told: type[KmgrError], words: str
) -> None:
    async def fail(_: Mapping[str, Any]) -> Mapping[str, Any]:
        raise error

    server = ControlServer(tmp_path, {"fail": fail})
    await server.start()
    try:
        with pytest.raises(told, match=words):
            await ask(tmp_path, "fail")
    finally:
        await server.stop()


async def test_only_the_owner_may_open_the_door(data: Path) -> None:
    assert socket_path(data).stat().st_mode & 0o777 == 0o600


async def test_a_folder_with_a_very_long_path_works(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 80) / ("y" * 80)
    deep.mkdir(parents=True)
    server = ControlServer(deep, {"greet": greet})
    await server.start()
    try:
        assert await ask(deep, "greet", {"name": "far"}) == {"hello": "far"}
    finally:
        await server.stop()


async def test_a_daemon_killed_while_it_is_being_told_is_called_stopped(tmp_path: Path) -> None:
    """Its pipe breaks while much is still to be sent: that is no fault of the file which is being sent."""

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.transport.abort()

    socket_path(tmp_path).parent.mkdir()
    async with await asyncio.start_unix_server(die, socket_path(tmp_path)):
        for _ in range(3):
            with pytest.raises(Unavailable, match="stopped while it was asked"):
                await ask(tmp_path, "greet", {}, data=bytes(8 << 20))
