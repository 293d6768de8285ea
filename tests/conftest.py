"""What all tests share: how property tests choose their examples, and what may run side by side."""

import inspect
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from tests.lab.sockets import all_gone

# On a build machine the same examples at every run: what is found there was put in by the change, not by chance.
# Everywhere else they are drawn anew each time, and that is where new faults are found.
# No deadline anywhere: how long an example takes says how busy the machine is, nothing about the code.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("here", deadline=None)
settings.load_profile("here")
if os.environ.get("CI"):
    settings.load_profile("ci")

# Grids that many files share: their tests run in one lane, which builds such a grid once.
_SHARED = ("office", "branch", "show")
# Files that take a minute and more, much of it waiting: begun last, they would be what a run ends with.
_LONG = (
    "test_idle_desktop", "test_real_instant_clones", "test_mirror_running", "test_two_servers",
    "test_personal_leaves", "test_damaged_folder", "test_canary", "test_hypervisor_warm", "test_operating",
    "test_real_desktops", "test_cut_points", "test_move_cut_points", "test_cold_moves", "test_protect_walk",
    "test_raft_simulation",
)  # fmt: skip
_HERE = Path(__file__).parent


# A TLS connection that was closed ends when the other side has said goodbye too, which a busy machine delays.
GOODBYE_S = 10.0


@pytest.fixture(autouse=True)
def _goodbyes(request: pytest.FixtureRequest) -> Iterator[None]:
    """An async test ends when its connections have: else the garbage collector complains in the middle of another."""
    function = getattr(request.node, "function", None)
    if not inspect.iscoroutinefunction(inspect.unwrap(function) if function else None):
        yield
        return
    runner = request.getfixturevalue("_function_scoped_runner")
    yield
    runner.run(_all_gone())


async def _all_gone() -> None:
    left = [str(transport.get_extra_info("sockname")) for transport in await all_gone(GOODBYE_S)]
    assert not left, f"connections were left open: {', '.join(left)}"


class Lanes(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Deals tests out to the lanes that run side by side: what belongs together stays in one of them."""

    def _split_scope(self, nodeid: str) -> str:
        return _together(nodeid.split("::", 1)[0])


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Lanes:
    """Answer xdist's question how to deal (its own grouping by marks reads what pytest 9.2 no longer has)."""
    return Lanes(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In lanes, what takes longest begins first: the tests that share a grid, and so must follow each other."""
    if os.environ.get("PYTEST_XDIST_WORKER"):
        items.sort(key=lambda item: _rank(item.nodeid.split("::", 1)[0]))


def _rank(path: str) -> int:
    if _together(path) in _SHARED:
        return 0
    name = Path(path).stem
    return 1 + _LONG.index(name) if name in _LONG else 1 + len(_LONG)


@cache
def _together(path: str) -> str:
    """Return what a file's tests stay with: the shared grid that they ask for, or their file."""
    text = (_HERE.parent / path).read_text()
    for name in _SHARED:
        if re.search(rf"\b{name}: Cluster\b", text) and f"def {name}(" not in text:
            return name
    return path
