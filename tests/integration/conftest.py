"""Whole grids of real daemons, libvirts and guests, for the tests of this folder."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.demo.cluster import Cluster
from appliance.demo.progress import Progress
from appliance.demo.scene import Director, Scene
from appliance.image import tiny
from appliance.lab.node import PrivateLibvirt
from tests.lab.ports import port
from tests.lab.raw_disk import raw_disk

WEB_PORT = 0
GRID_PORT = 100

MakeGrid = Callable[..., Cluster]


@pytest.fixture(scope="session")
def tiny_image() -> Path:
    """A guest that answers its agent after a few seconds, built once."""
    return tiny.quick()


@pytest.fixture(scope="session")
def raw(tiny_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That guest's disk as a raw file, as a version's file is."""
    return raw_disk(tiny_image, tmp_path_factory.mktemp("raw") / "ver-1.raw")


@pytest.fixture(scope="module")
def libvirtd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateLibvirt]:
    """A libvirtd of a file's own; a test may stop it."""
    server = PrivateLibvirt(tmp_path_factory.mktemp("l") / "s", request.module.__name__.rpartition("_")[2])
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def short_tmp() -> Iterator[Path]:
    """A folder with a path short enough for QEMU's sockets, which pytest's own may not be."""
    folder = Path(tempfile.mkdtemp(prefix="kmgr-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def make_grid(short_tmp: Path) -> Iterator[MakeGrid]:
    """Returns a function that makes grids; all are stopped at the end, with every process they started."""
    made: list[Cluster] = []

    def make(name: str, **options: object) -> Cluster:
        ports = {
            "web_port": port(WEB_PORT + 10 * len(made)),
            "grid_port": port(GRID_PORT + 10 * len(made)),
        }
        # Guests boot by themselves here: saving a memory first costs each server some boots; it has its own tests.
        more = {"instant_clones": "never", **options.pop("more", {})}  # type: ignore[dict-item]
        grid = Cluster(short_tmp / name, grid=name, more=more, **{**ports, **options})  # type: ignore[arg-type]
        made.append(grid)
        return grid

    yield make
    for grid in made:
        grid.stop()


@pytest.fixture(scope="session")
def office(make_grid: MakeGrid, tiny_image: Path) -> Cluster:
    """Three servers with the test guest on all of them, a template, a user, and a desktop standing by.

    Shared by a whole run: a test that kills a server starts it again.
    """
    return _open(make_grid("office"), tiny_image)


@pytest.fixture(scope="session")
def branch(make_grid: MakeGrid, tiny_image: Path) -> Cluster:
    """Another such grid, for the tests of personal desktops and of moves: they run beside those of `office`."""
    return _open(make_grid("branch"), tiny_image)


def _open(grid: Cluster, tiny_image: Path) -> Cluster:
    grid.start()
    director = Director(grid.admin(), OFFICE, Progress())
    director.image(tiny_image, len(grid.servers))
    director.template()
    director.user(grid.password(OFFICE.user))
    director.ready()
    return grid


OFFICE = Scene(image="test-guest", template="office", memory_mib=192, standby=2, maximum=6)
