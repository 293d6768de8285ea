"""What tests of pages and of the API look at, a grid that takes newcomers in, a daemon whose threads are all busy."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.lab import join_lab
from tests.lab.core_lab import Speaker, speaking
from tests.lab.join_lab import Office
from tests.lab.web_lab import Site, WebLab, opened


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[WebLab]:
    """A grid with the web of each of its servers."""
    async with opened(tmp_path) as lab:
        yield lab


@pytest.fixture
async def site(lab: WebLab) -> Site:
    """The web of one of them, to ask."""
    return await lab.site()


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    """A grid that newcomers join. (Files about desktops have offices of their own.)"""
    async with join_lab.opened(tmp_path) as office:
        yield office


@pytest.fixture
def speaker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Speaker]:
    """A voter among three that knows its leader B, in term 3, with entries up to 10, of which 5 are committed."""
    with speaking(tmp_path, monkeypatch) as found:
        yield found


@pytest.fixture
async def every_thread_busy() -> AsyncIterator[None]:
    """Whoever asks for one of the loop's own threads waits until the test has ended."""
    free = threading.Event()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    busy = asyncio.create_task(asyncio.to_thread(free.wait))
    await asyncio.sleep(0)
    yield
    free.set()
    await busy
