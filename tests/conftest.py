"""What all tests share: how property tests choose their examples, and what may run side by side."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# On a build machine the same examples at every run: what is found there was put in by the change, not by chance.
# Everywhere else they are drawn anew each time, and that is where new faults are found.
# No deadline anywhere: how long an example takes says how busy the machine is, nothing about the code.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("here", deadline=None)
settings.load_profile("here")
if os.environ.get("CI"):
    settings.load_profile("ci")

# What takes longest comes first, so that no lane is left alone with it at the end.
_ORDER = ("integration", "browser", "faults", "contract", "simulation", "property", "unit")
# Grids that many files share: their tests run in one lane, which builds such a grid once.
_SHARED = ("office", "show")
_HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where tests run in lanes side by side, keep together what belongs together: a file, a shared grid."""
    if not getattr(config.option, "loadgroup", False):  # what xdist tells its workers
        return
    items.sort(key=lambda item: _ORDER.index(item.path.relative_to(_HERE).parts[0]))  # keeps the order within
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_lane(item)))


def _lane(item: pytest.Item) -> str:
    fixtures = item._fixtureinfo.name2fixturedefs  # type: ignore[attr-defined]
    for name in _SHARED:
        if any(found.scope == "session" for found in fixtures.get(name, ())):
            return name
    return item.path.relative_to(_HERE).as_posix()
