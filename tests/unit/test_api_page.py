"""docs/api.md does what it says: its examples run, in order, and its answers have the shapes that it shows."""

import asyncio
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kmgr.clock import SystemClock
from kmgr.grid.identity import ensure_web_certificate
from kmgr.web.app import make_app
from kmgr.web.server import WebServer
from tests.lab.people import RIGHT
from tests.lab.web_lab import ADMIN, USER, Site, WebLab

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
TOOLS = ("bash", "curl", "jq", "qemu-img")
HERE = "127.0.0.1"
MARK = "\x1e"

needs_tools = pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"one of {', '.join(TOOLS)} is missing")


@dataclass(frozen=True, slots=True)
class Example:
    """Commands, and the answer that the page shows below them (None: it shows none)."""

    commands: str
    answer: Any


def examples(text: str) -> list[Example]:
    """Return the examples of a page in order."""
    found: list[Example] = []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if language == "sh":
            found.append(Example(block, None))
        else:
            found[-1] = Example(found[-1].commands, json.loads(block))
    return found


def misfits(told: Any, real: Any, at: str = "answer") -> list[str]:
    """Name where an answer has another shape than the page shows; only texts and numbers may differ."""
    if told is None:
        return []
    if type(told) is not type(real):
        return [f"{at} is {real!r}"]
    if isinstance(told, dict):
        differ = [f"{at}: {sorted(set(told) ^ set(real))}"] if set(told) != set(real) else []
        return differ + [one for key in set(told) & set(real) for one in misfits(told[key], real[key], f"{at}.{key}")]
    if isinstance(told, list) and told:
        return misfits(told[0], real[0], f"{at}[0]") if real else [f"{at} is empty"]
    return []


async def run(commands: list[str], folder: Path, **variables: str) -> list[str]:
    """Run blocks of commands in one shell; return what each printed."""
    script = "set -eu\n" + "".join(f"{block}\nprintf '{MARK}'\n" for block in commands)
    shell = await asyncio.create_subprocess_exec(
        "bash", "-c", script, cwd=folder, env={**os.environ, **variables, "no_proxy": "*"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        out, errors = await shell.communicate()
    printed = out.decode().split(MARK)
    assert shell.returncode == 0, f"{commands[len(printed) - 1]}\n{printed[-1]}\n{errors.decode()}"
    return printed[:-1]


@needs_tools
async def test_every_example_runs_and_answers_as_shown(lab: WebLab, tmp_path: Path) -> None:
    await lab.office.template("lab")
    await lab.office.give("", kind="everyone", template="tpl-lab")
    await lab.office.standby("tpl-lab")
    disk = tmp_path / "office.raw"
    disk.write_bytes(b"\x33" * 510 + b"\x55\xaa" + bytes((1 << 20) - 512))
    cert, key = ensure_web_certificate(tmp_path, frozenset({HERE}), now_ms=SystemClock().now_ms())
    server = WebServer(make_app(lab.services()), host=HERE, port=0, cert=cert, key=key)
    await server.start()
    try:
        shown = examples(PAGE.read_text())
        where = {"KMGR": f"https://{HERE}:{server.port}", "CERT": str(cert)}
        printed = await run([one.commands for one in shown], tmp_path, **where, USER_NAME=ADMIN, PASSWORD=RIGHT)
    finally:
        await server.stop()
    for example, text in zip(shown, printed, strict=True):
        if example.answer is not None:
            real, _ = json.JSONDecoder().raw_decode(text)
            assert not misfits(example.answer, real), example.commands
    said = {one.commands: text for one, text in zip(shown, printed, strict=True)}
    assert "event: state" in about(said, "/live")
    assert about(said, '"classroom"}').endswith("\n202\n")
    assert about(said, "sessions/current") == "204\n"
    history = about(said, "/events?")
    numbers = [int(line.split()[0]) for line in history.splitlines()]
    assert numbers == list(range(numbers[0], 0, -1))
    assert len(numbers) > 5


def about(said: Mapping[str, str], part: str) -> str:
    """Return what the one example with `part` in it printed."""
    (found,) = (text for commands, text in said.items() if part in commands)
    return found


def told_codes() -> set[int]:
    """Return the close codes that the page lists."""
    return {int(code) for code in re.findall(r"^\| (1\d{3}|4\d{3}) \|", PAGE.read_text(), re.MULTILINE)}


async def close_code(site: Site, word: str) -> int | None:
    socket = await site.client.ws_connect(f"/display/{word}", protocols=("binary",))
    async with asyncio.timeout(5):
        await socket.receive()
    return socket.close_code


async def test_the_codes_with_which_screens_close_are_on_the_page(lab: WebLab, site: Site) -> None:
    seen = {await close_code(site, "invented")}

    async def word() -> str:
        _, body = await site.ask("POST", f"/desktops/{desktop}/ticket", who=USER)
        return str(body["url"].rpartition("/")[2])

    desktop = await lab.office.standby()
    await lab.office.do("desktop.claim", user=USER, template="tpl-office")
    seen.add(await close_code(site, await word()))  # there is no QEMU behind it
    async with await lab.running(desktop):
        socket = await site.client.ws_connect(f"/display/{await word()}", protocols=("binary",))
        await socket.send_bytes(b"x")
        await socket.receive()
        lab.power_off()
        await socket.receive()
        seen.add(socket.close_code)
        ended = await site.client.ws_connect(f"/display/{await word()}", protocols=("binary",))
        await ended.send_bytes(b"x")
        await ended.receive()
        late, gone = await word(), await word()
        await lab.office.do("desktop.failed", desktop=desktop, server="srv-a", generation=1, step="run", cause="x")
        await lab.office.do("desktop.retry", desktop=desktop)
        await lab.office.do("desktop.building", desktop=desktop, server="srv-a", generation=2)
        await lab.office.do("desktop.ready", desktop=desktop, server="srv-a", generation=2)
        await lab.office.do("desktop.claim", user=USER, template="tpl-office")
        seen.add(await close_code(site, late))
        await lab.office.do("desktop.failed", desktop=desktop, server="srv-a", generation=2, step="run", cause="x")
        await lab.office.do("desktop.retry", desktop=desktop)
        seen.add(await close_code(site, gone))
        await site.ask("DELETE", "/sessions/current", who=USER)
        await lab.clock.advance(1)
        await ended.receive()
        seen.add(ended.close_code)
    assert seen == told_codes() - {1001}  # that one has its own test
