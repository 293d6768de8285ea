"""What tests of pages and of the API look at."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

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
